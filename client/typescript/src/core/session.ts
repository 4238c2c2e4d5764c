/// <reference lib="esnext.disposable" preserve="true" />
/** Sessions: keys and values that stay in the server between calls. */

import { create } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { DataType as WireType, Scores } from "../gen/attention/v1/attention_pb.js";
import type {
  AttendResponse,
  Session as SessionMessage,
  SessionConfig as ConfigMessage,
  StepItem as ItemMessage,
  StepResult as ResultMessage,
} from "../gen/attention/v1/session_pb.js";
import { SessionConfigSchema, StepItemSchema } from "../gen/attention/v1/session_pb.js";
import type { CallOptions, ClientBase } from "./client.js";
import type { Timing } from "./compute.js";
import { asked } from "./compute.js";
import type { ScoringOptions } from "./options.js";
import { checkNames, integer, optionsMessage, SCORING_NAMES } from "./options.js";
import type { SessionState } from "./session_state.js";
import type { DataType, Tensor, TensorLike } from "./tensor.js";
import { fromMessage, malformed, tensorMessage, toIndices, toTensor, typeName, wireType } from "./tensor.js";

/** The types that sessions store. */
export type SessionDataType =
  Extract<DataType, "float32" | "float16" | "bfloat16" | "float64" | "int8"> | "float8_e4m3";

/** What a session holds. */
export interface SessionConfig {
  /** Layers of the model. Default: 1. */
  readonly layers?: number | undefined;
  /** Heads of keys and values. */
  readonly kvHeads: number;
  /** The head size of keys and queries. */
  readonly headSize: number;
  /** That of values. Default: `headSize`. */
  readonly valueHeadSize?: number | undefined;
  /** What keys and values are stored as. Default: float32. */
  readonly dataType?: SessionDataType | undefined;
  /** Values are the first columns of keys, as in multi-head latent attention: they are not sent. */
  readonly valueIsKeyPrefix?: boolean | undefined;
  /** How long the session lives unused, at least 1000. Default: a minute. */
  readonly leaseMs?: number | undefined;
  /** For layers with a sliding window: how many of the last tokens a query sees; 0 is all. */
  readonly retainWindow?: number | readonly number[] | undefined;
  /** How far such layers can be truncated, at least. Default: 256. */
  readonly rollbackTokens?: number | undefined;
}

/** What the server tells of a session. */
export interface SessionInfo {
  readonly id: string;
  /** Tells the session from every other one that had or will have its id. */
  readonly incarnation: bigint;
  /** With every default filled in. */
  readonly config: SessionConfig;
  /** Tokens of each layer. */
  readonly lengths: readonly number[];
  /** When the lease is over unless something uses the session, by the server's clock. */
  readonly expireTime: Date | undefined;
  /** The first token that each layer keeps. */
  readonly firstTokens: readonly number[];
  /** The least length above 0 that each layer can be truncated to. */
  readonly leastLengths: readonly number[];
}

/** How queries are attended to. */
export interface AttendOptions extends ScoringOptions {
  /** Broadcast to (1, Hq, S, T - maskBegin), T being the layer's length. */
  readonly mask?: TensorLike | undefined;
  /** The token of the mask's first column: a multiple of 256. */
  readonly maskBegin?: number | undefined;
  /**
   * The tokens that each query sees, of those that all else lets it see: of int32 or int64, (S, k), or (Hq, S, k)
   * for each query head. Tokens are counted from the session's first one; -1 is none. Lists hold whole numbers.
   */
  readonly indices?: TensorLike | undefined;
  /** An extra logit for each row of each query head, in place of `sinks`: (Hq, S), of a float type. */
  readonly rowSinks?: TensorLike | undefined;
  /** Every query sees every token, but for what mask, indices and options hide. */
  readonly notCausal?: boolean | undefined;
}

/** Tokens for a layer. */
export interface AppendRequest {
  /** Default: 0. */
  readonly layer?: number | undefined;
  /** (Hkv, n, D), of any float type. */
  readonly key: TensorLike;
  /** (Hkv, n, Dv), of any float type; left out with `valueIsKeyPrefix`. */
  readonly value?: TensorLike | undefined;
}

/** Queries over a layer. */
export interface AttendRequest extends AttendOptions {
  /** Default: 0. */
  readonly layer?: number | undefined;
  /** (Hq, S, D), of the type that the session stores; float32 over int8 and float8_e4m3. */
  readonly query: TensorLike;
  /**
   * Attends to whatever the layer has, whoever has appended it. Without it a layer that is not as long as
   * this object knows is ABORTED.
   */
  readonly anyLength?: boolean | undefined;
}

/** Tokens for a layer, and queries that see them too. */
export interface StepRequest extends AppendRequest, AttendOptions {
  /** As in {@link AttendRequest}. */
  readonly query: TensorLike;
}

/** One part of {@link ClientBase.step}: an append, an attend or both. */
export interface StepItem extends AttendOptions {
  /** A session of the client that steps. */
  readonly session: Session;
  readonly layer?: number | undefined;
  readonly key?: TensorLike | undefined;
  readonly value?: TensorLike | undefined;
  readonly query?: TensorLike | undefined;
  /** As in {@link AttendRequest}, where nothing is appended. */
  readonly anyLength?: boolean | undefined;
}

/** The answer of an attend. */
export interface AttendResult {
  /** (Hq, S, Dv), of the query's type. */
  readonly output: Tensor;
  /** (Hq, S), where it was asked for. */
  readonly logSumExp: Tensor | undefined;
  /** (Hq, S, T), where they were asked for. */
  readonly scores: Tensor | undefined;
  /** The layer's length: what was attended to. */
  readonly length: number;
  /** Of a step: of all its items together. */
  readonly timing: Timing;
}

/** The answer of one item of a step: `output` is undefined where there was no query. */
export interface StepResult extends Omit<AttendResult, "output"> {
  readonly output: Tensor | undefined;
}

/** @internal */
export function configMessage(config: SessionConfig): ConfigMessage {
  const message = create(SessionConfigSchema);
  message.numLayers = integer("layers", config.layers ?? 1);
  message.kvHeads = integer("kvHeads", config.kvHeads);
  message.headSize = integer("headSize", config.headSize);
  message.valueHeadSize = integer("valueHeadSize", config.valueHeadSize ?? 0);
  const { dataType, leaseMs, retainWindow, rollbackTokens } = config;
  if (dataType !== undefined) {
    message.dataType = dataType === "float8_e4m3" ? WireType.FLOAT8_E4M3 : wireType(dataType);
  }
  message.valueIsKeyPrefix = config.valueIsKeyPrefix ?? false;
  if (leaseMs !== undefined) {
    const whole = Math.floor(leaseMs / 1000);
    message.lease = {
      $typeName: "google.protobuf.Duration",
      seconds: integer("leaseMs", whole),
      nanos: Math.round((leaseMs - whole * 1000) * 1e6),
    };
  }
  if (retainWindow !== undefined) {
    const windows = typeof retainWindow === "number" ? [retainWindow] : retainWindow;
    message.retainWindow = windows.map((window) => integer("retainWindow", window));
  }
  if (rollbackTokens !== undefined) message.rollbackTokens = integer("rollbackTokens", rollbackTokens);
  return message;
}

function configOf(message: ConfigMessage | undefined): SessionConfig {
  const lease = message?.lease;
  const type = message?.dataType ?? WireType.FLOAT32;
  return {
    layers: Number(message?.numLayers ?? 1n),
    kvHeads: Number(message?.kvHeads ?? 0n),
    headSize: Number(message?.headSize ?? 0n),
    valueHeadSize: Number(message?.valueHeadSize ?? 0n),
    dataType:
      type === WireType.FLOAT8_E4M3 ? "float8_e4m3" : ((typeName(type) ?? "float32") as SessionDataType),
    valueIsKeyPrefix: message?.valueIsKeyPrefix ?? false,
    leaseMs: lease ? Number(lease.seconds) * 1000 + lease.nanos / 1e6 : undefined,
    retainWindow: message?.retainWindow.map(Number) ?? [],
    rollbackTokens: message?.rollbackTokens === undefined ? undefined : Number(message.rollbackTokens),
  };
}

/** @internal */
export function sessionInfo(message: SessionMessage): SessionInfo {
  return {
    id: message.id,
    incarnation: message.incarnation,
    config: configOf(message.config),
    lengths: message.lengths.map(Number),
    expireTime: message.expireTime && timestampDate(message.expireTime),
    firstTokens: message.firstTokens.map(Number),
    leastLengths: message.leastLengths.map(Number),
  };
}

const ITEM_NAMES: Readonly<Record<keyof StepItem, true>> = {
  session: true,
  layer: true,
  key: true,
  value: true,
  query: true,
  anyLength: true,
  mask: true,
  maskBegin: true,
  indices: true,
  rowSinks: true,
  notCausal: true,
  ...SCORING_NAMES,
};

/** @internal */
export function itemMessage(state: SessionState, item: Omit<StepItem, "session">): ItemMessage {
  checkNames(item, ITEM_NAMES);
  const message = create(StepItemSchema);
  message.id = state.id;
  message.incarnation = state.incarnation;
  message.layer = integer("layer", item.layer ?? 0);
  if (item.key !== undefined) message.key = tensorMessage(toTensor("key", item.key));
  if (item.value !== undefined) message.value = tensorMessage(toTensor("value", item.value));
  if (item.query !== undefined) message.query = tensorMessage(toTensor("query", item.query));
  if (item.mask !== undefined) message.mask = tensorMessage(toTensor("mask", item.mask));
  if (item.indices !== undefined) message.indices = tensorMessage(toIndices("indices", item.indices));
  if (item.rowSinks !== undefined) message.sinks = tensorMessage(toTensor("rowSinks", item.rowSinks));
  const options = optionsMessage(item);
  if (options) message.options = options;
  message.notCausal = item.notCausal ?? false;
  message.maskBegin = integer("maskBegin", item.maskBegin ?? 0);
  return message;
}

/** @internal */
export function stepResult(
  item: ItemMessage,
  answer: Pick<ResultMessage | AttendResponse, "output" | "logSumExp" | "scores" | "length">,
  timing: Timing,
): StepResult {
  const { options, query } = item;
  const output = query && fromMessage("output", answer.output);
  if (query && output) {
    const rows = query.shape.slice(0, 2).map(Number);
    const same = output.shape.length === 3 && rows.every((length, i) => length === output.shape[i]);
    if (!same || answer.output?.dataType !== query.dataType) {
      throw malformed(
        `output: got ${output.dataType} (${output.shape.join(", ")}), wanted (${rows.join(", ")}, Dv) of the query's type`,
      );
    }
  }
  return {
    output,
    logSumExp: asked("log_sum_exp", query && options?.returnLogSumExp, answer.logSumExp),
    scores: asked(
      "scores",
      query && options !== undefined && options.returnScores !== Scores.UNSPECIFIED,
      answer.scores,
    ),
    length: Number(answer.length),
    timing,
  };
}

/**
 * A handle of one session, of `createSession()`, `openSession()` or a fork. Several may be open of one
 * session: each knows only its own appends.
 *
 * It knows how long each layer is, from what the server answered to it, and appends only where that is
 * still so: else nothing is appended, and the call is ABORTED with the true `length`. An append that failed
 * for want of an answer may be made again with the same tokens and the same object: they are there once.
 *
 * The client renews its lease for as long as something refers to this object. `await using` deletes the
 * session at the end of the block; an object that is dropped deletes nothing.
 */
export class Session {
  /** @internal */
  readonly state: SessionState;
  /** @internal */
  readonly client: ClientBase;
  /** With every default filled in. */
  readonly config: SessionConfig;

  /** @internal */
  constructor(client: ClientBase, state: SessionState, config: SessionConfig) {
    this.client = client;
    this.state = state;
    this.config = config;
    Object.defineProperty(this, "client", { enumerable: false });
  }

  /** The session's id. */
  get id(): string {
    return this.state.id;
  }

  /** Tells the session from others that had or will have its id. */
  get incarnation(): bigint {
    return this.state.incarnation;
  }

  /** Tokens of each layer, as far as this object knows. */
  get lengths(): readonly number[] {
    return this.state.lengths;
  }

  /** Tokens of a layer, as far as this object knows. */
  length(layer = 0): number {
    const length = this.state.length(layer);
    if (length === undefined)
      throw new RangeError(`layer: got ${String(layer)}, of ${String(this.lengths.length)}`);
    return length;
  }

  /**
   * Adds tokens to a layer, and resolves to its length.
   *
   * More than 8 MiB go in several calls, each of which is done whole or not at all. If one fails, those
   * before it stay, and `length()` counts their tokens; the same tokens, appended once more with this
   * object, go on from there.
   *
   * While an append to a layer is under way another one to it fails at once with ABORTED.
   */
  append(request: AppendRequest, options?: CallOptions): Promise<number> {
    return this.client.sessions.append(this.state, request, options);
  }

  /** Attends to all tokens of a layer. */
  attend(request: AttendRequest, options?: CallOptions): Promise<AttendResult> {
    return this.client.sessions.attend(this.state, request, options);
  }

  /**
   * Appends, then attends to all tokens, the new ones too. From Node that is one message: both are done or,
   * on an error, neither. From a browser it is two calls: where the second one fails the tokens are there,
   * `length()` counts them, and `attend()` asks again.
   */
  step(request: StepRequest, options?: CallOptions): Promise<AttendResult> {
    return this.client.sessions.stepOne(this.state, request, options);
  }

  /** A new session with the tokens of this one. */
  async fork(id = "", options?: CallOptions): Promise<Session> {
    const [session] = await this.client.forkSessions([{ source: this, target: id }], options);
    return session as Session;
  }

  /** `count` of them, at most 128: all or none. */
  forkMany(count: number, options?: CallOptions): Promise<Session[]> {
    return this.client.forkSessions(
      Array.from({ length: count }, () => ({ source: this })),
      options,
    );
  }

  /** Forgets the tokens of every layer from `length` on. */
  truncate(length: number, options?: CallOptions): Promise<void> {
    return this.client.sessions.truncate(this.state, length, options);
  }

  /** Takes over the lengths that the server has, and renews the lease. */
  refresh(options?: CallOptions): Promise<void> {
    return this.client.sessions.refresh(this.state, options);
  }

  /** Ends the session; resolves also if it has ended before. */
  delete(options?: CallOptions): Promise<void> {
    return this.client.sessions.delete(this.state, options);
  }

  /** Deletes the session, at the end of an `await using` block. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.delete();
  }
}
