/// <reference lib="esnext.disposable" preserve="true" />
/** What every client can do, whatever carries its calls. */

import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";
import { create } from "@bufbuild/protobuf";
import type { DataType as WireType } from "../gen/attention/v1/attention_pb.js";
import {
  AttentionService,
  GetCapabilitiesRequestSchema,
  MathMode,
} from "../gen/attention/v1/attention_pb.js";
import type { Session as SessionMessage } from "../gen/attention/v1/session_pb.js";
import {
  CreateSessionRequestSchema,
  DeleteSessionRequestSchema,
  ForkSessionsRequest_ForkSchema,
  ForkSessionsRequestSchema,
  GetSessionRequestSchema,
  ListSessionsRequestSchema,
  SessionService,
} from "../gen/attention/v1/session_pb.js";
import {
  Health,
  HealthCheckRequestSchema,
  HealthCheckResponse_ServingStatus,
} from "../gen/grpc/health/v1/health_pb.js";
import type { ComputeRequest, ComputeResult } from "./compute.js";
import { computeMessage, computeResult } from "./compute.js";
import type { AttentionError } from "./errors.js";
import { LeaseRenewer } from "./lease.js";
import type { RetryPolicy } from "./retry.js";
import { retrying } from "./retry.js";
import type { SessionConfig, SessionInfo, StepItem, StepResult } from "./session.js";
import { configMessage, Session, sessionInfo } from "./session.js";
import { SessionCalls } from "./session_calls.js";
import { randomId, SessionState } from "./session_state.js";
import type { DataType } from "./tensor.js";
import { malformed, typeName } from "./tensor.js";
import type { CallContext, Transport } from "./transport.js";

/** What every call takes. */
export interface CallOptions {
  /** The call fails with DEADLINE_EXCEEDED after so long, all its tries together. Default: the client's. */
  readonly timeoutMs?: number | undefined;
  /** Cancels the call: it fails with CANCELLED, and the server stops working on it. */
  readonly signal?: AbortSignal | undefined;
  /** Tries in all; 1 is no retries. Default: the client's. */
  readonly maxAttempts?: number | undefined;
  /**
   * More headers, such as `traceparent` and `x-request-id`. Steps from Node share a stream as long as they have the
   * same ones.
   */
  readonly headers?: Readonly<Record<string, string>> | undefined;
  /** Told, while a large request is sent in pieces, how many bytes of keys and values are on their way. */
  readonly onProgress?: ((sentBytes: number, totalBytes: number) => void) | undefined;
}

/** What both clients' constructors take. */
export interface CommonOptions {
  /** How long a call may take by default. Default: 60000; Infinity is without end. */
  readonly timeoutMs?: number | undefined;
  /** How often a call is tried at most by default. Default: 4; 1 is no retries. */
  readonly maxAttempts?: number | undefined;
  /** Largest answer taken, in bytes of the message. Default: no limit. */
  readonly maxReceiveBytes?: number | undefined;
  /** Sends the token without TLS where others can read it. Default: false. */
  readonly allowPlaintextToken?: boolean | undefined;
}

/** What a server can do, and its limits. attention.proto says what each number means. */
export interface Capabilities {
  readonly version: string;
  readonly simdTarget: string;
  readonly threads: number;
  readonly dataTypes: readonly DataType[];
  readonly mathModes: readonly ("reproducible" | "fast")[];
  readonly maxRequestBytes: number;
  readonly maxResponseBytes: number;
  readonly keyBlock: number;
  readonly maxHeadSize: number;
  readonly maxHeads: number;
  readonly maxBatch: number;
  readonly maxBatchHeads: number;
  /** Most multiply-adds of one request, as attention.proto counts them. */
  readonly maxWork: number;
  /** Largest chunk of a stream in bytes. */
  readonly maxChunkBytes: number;
}

/** What a health check says. */
export type HealthStatus = "serving" | "not_serving" | "unknown";

/** One fork of {@link ClientBase.forkSessions}. */
export interface Fork {
  /** A session of this client. */
  readonly source: Session;
  /** The id of the new one. Empty or left out: the server chooses. */
  readonly target?: string | undefined;
}

interface Safety {
  readonly repeatable?: boolean;
  readonly append?: boolean;
}

function checkTimeout(timeoutMs: number): number {
  if (typeof timeoutMs !== "number" || !(timeoutMs > 0)) {
    throw new RangeError(`timeoutMs: got ${String(timeoutMs)}, wanted a number above 0`);
  }
  return timeoutMs;
}

/** What HTTP/2, gRPC or this client says by itself. */
const RESERVED =
  /^(grpc-.*|connection|content-(length|type)|host|keep-alive|proxy-connection|te|trailer|transfer-encoding|upgrade|user-agent)$/i;

function checkHeaders(headers: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  for (const [name, value] of Object.entries(headers)) {
    if (!/^[\w.-]+$/.test(name) || RESERVED.test(name)) {
      throw new TypeError(
        `headers: got the name '${name}', wanted one of your own, of letters, digits and -_.`,
      );
    }
    if (typeof value !== "string" || !/^[\x20-\x7e]*$/.test(value)) {
      throw new TypeError(`headers: got a value of ${name} that is no text of printable ASCII`);
    }
  }
  return headers;
}

function checkAttempts(maxAttempts: number): number {
  if (!Number.isInteger(maxAttempts) || maxAttempts < 1) {
    throw new RangeError(`maxAttempts: got ${String(maxAttempts)}, wanted a whole number from 1`);
  }
  return maxAttempts;
}

/** The methods of both clients: of Node's and of the browser's `AttentionClient`. */
export abstract class ClientBase {
  /** @internal */
  readonly sessions: SessionCalls;
  readonly #transport: Transport;
  readonly #timeoutMs: number;
  readonly #maxAttempts: number;
  readonly #renewer: LeaseRenewer;

  /** @internal */
  protected constructor(transport: Transport, options: CommonOptions) {
    this.#transport = transport;
    this.#timeoutMs = checkTimeout(options.timeoutMs ?? 60_000);
    this.#maxAttempts = checkAttempts(options.maxAttempts ?? 4);
    this.sessions = new SessionCalls(this, transport);
    this.#renewer = new LeaseRenewer((session) => this.sessions.renew(session));
    Object.defineProperty(this, "sessions", { enumerable: false });
  }

  /** @internal */
  context(options: CallOptions): CallContext {
    const timeoutMs = options.timeoutMs === undefined ? this.#timeoutMs : checkTimeout(options.timeoutMs);
    return {
      deadline: performance.now() + timeoutMs,
      timeoutMs,
      signal: options.signal,
      headers: checkHeaders(options.headers ?? {}),
      onProgress: options.onProgress,
    };
  }

  /** @internal */
  policy(context: CallContext, options: CallOptions, safety: Safety = {}): RetryPolicy {
    return {
      maxAttempts: options.maxAttempts === undefined ? this.#maxAttempts : checkAttempts(options.maxAttempts),
      deadline: context.deadline,
      signal: context.signal,
      repeatable: safety.repeatable ?? true,
      append: safety.append ?? false,
    };
  }

  /** @internal */
  call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    context: CallContext,
    options: CallOptions,
    safety: Safety = {},
  ): Promise<MessageShape<O>> {
    return retrying(this.policy(context, options, safety), () =>
      this.#transport.unary(method, request, context),
    );
  }

  /**
   * Computes attention. The tensors' memory must stay as it is until the call has ended.
   *
   * ```ts
   * const { output } = await client.compute({ query, key, value, causal: "bottom_right" });
   * ```
   */
  async compute(request: ComputeRequest, options: CallOptions = {}): Promise<ComputeResult> {
    const message = computeMessage(request);
    const context = this.context(options);
    const response = await retrying(this.policy(context, options), () =>
      this.#transport.compute(message, context),
    );
    return computeResult(message, response);
  }

  /** The server's limits, types and build. */
  async capabilities(options: CallOptions = {}): Promise<Capabilities> {
    const all = await this.call(
      AttentionService.method.getCapabilities,
      create(GetCapabilitiesRequestSchema),
      this.context(options),
      options,
    );
    return {
      version: all.version,
      simdTarget: all.simdTarget,
      threads: all.threads,
      dataTypes: all.dataTypes.flatMap((type: WireType) => typeName(type) ?? []),
      mathModes: all.mathModes.flatMap((mode: MathMode) =>
        mode === MathMode.FAST
          ? ["fast" as const]
          : mode === MathMode.REPRODUCIBLE
            ? ["reproducible" as const]
            : [],
      ),
      maxRequestBytes: Number(all.maxRequestBytes),
      maxResponseBytes: Number(all.maxResponseBytes),
      keyBlock: all.keyBlock,
      maxHeadSize: Number(all.maxHeadSize),
      maxHeads: Number(all.maxHeads),
      maxBatch: Number(all.maxBatch),
      maxBatchHeads: Number(all.maxBatchHeads),
      maxWork: Number(all.maxWork),
      maxChunkBytes: Number(all.maxChunkBytes),
    };
  }

  /** The standard health check: of one service by its full name, or of the whole server. */
  async health(service = "", options: CallOptions = {}): Promise<HealthStatus> {
    const { status } = await this.call(
      Health.method.check,
      create(HealthCheckRequestSchema, { service }),
      this.context(options),
      options,
    );
    if (status === HealthCheckResponse_ServingStatus.SERVING) return "serving";
    return status === HealthCheckResponse_ServingStatus.NOT_SERVING ? "not_serving" : "unknown";
  }

  /**
   * Makes a session without tokens, under `id` or a random one. Where there is one with this id and the
   * same configuration it is the answer, with its tokens.
   */
  async createSession(
    config: SessionConfig & { readonly id?: string | undefined },
    options: CallOptions = {},
  ): Promise<Session> {
    const message = create(CreateSessionRequestSchema);
    // An id, so that a call that is tried again makes no second session.
    message.id = config.id === undefined || config.id === "" ? randomId() : config.id;
    message.config = configMessage(config);
    const { session } = await this.call(
      SessionService.method.createSession,
      message,
      this.context(options),
      options,
    );
    return this.#handle(session);
  }

  /** A session that exists. */
  async openSession(id: string, options: CallOptions = {}): Promise<Session> {
    return this.#handle(await this.#get(id, options));
  }

  /** Tells of a session, and renews its lease. */
  async getSession(id: string, options: CallOptions = {}): Promise<SessionInfo> {
    return sessionInfo(await this.#get(id, options));
  }

  /** Tells of the caller's sessions in the order of their ids, and renews no lease. */
  async listSessions(options: CallOptions = {}): Promise<SessionInfo[]> {
    const context = this.context(options);
    const request = create(ListSessionsRequestSchema);
    const sessions: SessionInfo[] = [];
    do {
      const page = await this.call(SessionService.method.listSessions, request, context, options);
      sessions.push(...page.sessions.map(sessionInfo));
      request.pageToken = page.nextPageToken;
    } while (request.pageToken !== "");
    return sessions;
  }

  /** Makes new sessions with the tokens of others: all of them or none, in the order of `forks`. */
  async forkSessions(forks: readonly Fork[], options: CallOptions = {}): Promise<Session[]> {
    const message = create(ForkSessionsRequestSchema);
    for (const { source, target } of forks) {
      if (source.client !== this) throw new TypeError("source: got a session of another client");
      source.state.check();
      const fork = create(ForkSessionsRequest_ForkSchema);
      fork.source = source.id;
      fork.sourceIncarnation = source.incarnation;
      fork.target = target ?? "";
      message.forks.push(fork);
    }
    const begun = performance.now();
    try {
      const { sessions } = await this.call(
        SessionService.method.forkSessions,
        message,
        this.context(options),
        options,
        { repeatable: false },
      );
      if (sessions.length !== forks.length) {
        throw malformed(`got ${String(sessions.length)} sessions of ${String(forks.length)} forks`);
      }
      for (const { source } of forks) source.state.used(begun);
      return sessions.map((session) => this.#handle(session));
    } catch (error) {
      // Of several sources nobody knows which one is meant.
      if (new Set(forks.map(({ source }) => source.state)).size === 1) forks[0]?.source.state.failed(error);
      throw error;
    }
  }

  /** Ends a session; resolves also where there is none. */
  async deleteSession(id: string, options: CallOptions = {}): Promise<void> {
    const message = create(DeleteSessionRequestSchema);
    message.id = id;
    await this.call(SessionService.method.deleteSession, message, this.context(options), options);
  }

  /**
   * Appends to and attends over layers of several sessions: at most 1024 items, each for itself. A list of
   * a result or an error for each item, in their order, so that one failure hides no other result: look at
   * each. From Node that is one message and its answer, from a browser calls for each item.
   *
   * A layer may be named twice only by items that do not append.
   */
  async step(
    items: readonly StepItem[],
    options: CallOptions = {},
  ): Promise<(StepResult | AttentionError)[]> {
    return this.sessions.step(items, options);
  }

  async #get(id: string, options: CallOptions): Promise<SessionMessage> {
    const message = create(GetSessionRequestSchema);
    message.id = id;
    const { session } = await this.call(
      SessionService.method.getSession,
      message,
      this.context(options),
      options,
    );
    if (!session) throw malformed("session: got none");
    return session;
  }

  #handle(message: SessionMessage | undefined): Session {
    const layers = Number(message?.config?.numLayers ?? 0n);
    if (!message?.id || message.lengths.length !== layers) {
      throw malformed(
        `session '${message?.id ?? ""}' of ${String(layers)} layers with ${String(message?.lengths.length)} lengths`,
      );
    }
    const state = new SessionState(message);
    this.#renewer.add(state);
    return new Session(this, state, sessionInfo(message).config);
  }

  /** Ends the connection; calls that are under way fail with CANCELLED. Sessions live on. */
  async close(): Promise<void> {
    this.#renewer.close();
    await this.#transport.close();
  }

  /** Closes the client, at the end of an `await using` block. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
