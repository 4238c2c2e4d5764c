/** Calls from a browser: gRPC-Web, which a proxy such as Envoy translates. */

import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";
import type { Transport as ConnectTransport } from "@connectrpc/connect";
import { ConnectError } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import type { ComputeAttentionRequest, ComputeAttentionResponse } from "../gen/attention/v1/attention_pb.js";
import { AttentionService } from "../gen/attention/v1/attention_pb.js";
import { AttentionError, cancelled, codeName, deadlineExceeded } from "../core/errors.js";
import type { CallContext, Transport } from "../core/transport.js";
import { writeCompute } from "../core/wire.js";

type Fetch = typeof globalThis.fetch;

/** A fetch whose answers are at most so large. */
function limited(fetch: Fetch, most: number, server: string): Fetch {
  return async (input, init) => {
    const response = await fetch(input, init);
    let received = 0;
    const counted = response.body?.pipeThrough(
      new TransformStream<Uint8Array, Uint8Array>({
        transform(chunk, controller) {
          received += chunk.byteLength;
          // An answer has its trailers too, which the server keeps below 8 KiB.
          if (received > most + 8192) {
            throw new AttentionError(
              "RESOURCE_EXHAUSTED",
              `the answer is above maxReceiveBytes, ${String(most)}`,
              {
                reason: "CLIENT_LIMIT",
                server,
              },
            );
          }
          controller.enqueue(chunk);
        },
      }),
    );
    return new Response(counted, response);
  };
}

/** @internal */
export class WebTransport implements Transport {
  readonly server: string;
  readonly #connect: ConnectTransport;
  readonly #token: (() => string | Promise<string>) | undefined;
  readonly #maxReceiveBytes: number;
  readonly #closing = new AbortController();

  constructor(
    baseUrl: URL,
    fetch: Fetch | undefined,
    token: (() => string | Promise<string>) | undefined,
    maxReceiveBytes: number,
  ) {
    this.server = baseUrl.host;
    this.#token = token;
    this.#maxReceiveBytes = maxReceiveBytes;
    const plain: Fetch = fetch ?? ((input, init) => globalThis.fetch(input, init));
    this.#connect = createGrpcWebTransport({
      baseUrl: baseUrl.href.replace(/\/+$/, ""),
      fetch: maxReceiveBytes === Infinity ? plain : limited(plain, maxReceiveBytes, this.server),
    });
  }

  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    context: CallContext,
  ): Promise<MessageShape<O>> {
    return this.#call(method, request, context, {});
  }

  async #call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    context: CallContext,
    extra: Readonly<Record<string, string>>,
  ): Promise<MessageShape<O>> {
    const left = context.deadline - performance.now();
    if (this.#closing.signal.aborted) throw this.#closedError();
    if (context.signal?.aborted) throw cancelled(context.signal, this.server);
    if (left <= 0) throw deadlineExceeded(context.timeoutMs, this.server);
    // One signal of both: AbortSignal.any() is younger than many browsers.
    const stop = new AbortController();
    const abort = (): void => {
      stop.abort();
    };
    context.signal?.addEventListener("abort", abort, { once: true });
    this.#closing.signal.addEventListener("abort", abort, { once: true });
    try {
      const headers: Record<string, string> = { ...context.headers, ...extra };
      if (this.#token) headers["authorization"] = `Bearer ${await this.#token()}`;
      const timeoutMs = left === Infinity ? 0 : Math.max(1, Math.ceil(left));
      const answer = await this.#connect.unary(method, stop.signal, timeoutMs, headers, request);
      return answer.message;
    } catch (error) {
      throw this.#errorOf(error, context);
    } finally {
      context.signal?.removeEventListener("abort", abort);
      this.#closing.signal.removeEventListener("abort", abort);
    }
  }

  #closedError(): AttentionError {
    return new AttentionError("CANCELLED", "the client is closed", { server: this.server });
  }

  #errorOf(error: unknown, context: CallContext): unknown {
    if (error instanceof AttentionError) return error;
    if (!(error instanceof ConnectError)) return error;
    if (error.cause instanceof AttentionError) return error.cause;
    if (context.signal?.aborted) return cancelled(context.signal, this.server);
    if (this.#closing.signal.aborted) return this.#closedError();
    // Browser or proxy may notice before this client that the time is over, and have other words for it.
    const late = performance.now() >= context.deadline;
    // What fetch() throws where there is no connection, or CORS forbids the call; it says no more.
    if (error.cause instanceof TypeError) {
      if (late) return deadlineExceeded(context.timeoutMs, this.server);
      return new AttentionError(
        "UNAVAILABLE",
        `the server cannot be reached, or forbids this origin: ${error.cause.message}`,
        {
          server: this.server,
          cause: error.cause,
        },
      );
    }
    const told = new AttentionError(codeName(error.code), error.rawMessage, {
      details: error.details.flatMap((detail) =>
        "desc" in detail ? [] : [{ type: detail.type, value: detail.value }],
      ),
      pushback: error.metadata.get("grpc-retry-pushback-ms") ?? undefined,
      server: this.server,
      cause: error.cause,
    });
    return late && told.reason === undefined ? deadlineExceeded(context.timeoutMs, this.server) : told;
  }

  compute(request: ComputeAttentionRequest, context: CallContext): Promise<ComputeAttentionResponse> {
    const headers: Record<string, string> = { "attention-request-bytes": String(sizeOf(request)) };
    if (this.#maxReceiveBytes !== Infinity)
      headers["attention-max-response-bytes"] = String(this.#maxReceiveBytes);
    return this.#call(AttentionService.method.computeAttention, request, context, headers);
  }

  close(): Promise<void> {
    this.#closing.abort();
    return Promise.resolve();
  }
}

function sizeOf(request: ComputeAttentionRequest): number {
  const message = writeCompute(request);
  message.finish();
  return message.size;
}
