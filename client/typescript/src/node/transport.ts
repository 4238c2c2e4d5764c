/** Calls from Node: gRPC over HTTP/2, tensors written from where they are. */

import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import type { ComputeAttentionRequest, ComputeAttentionResponse } from "../gen/attention/v1/attention_pb.js";
import { ComputeAttentionResponseSchema } from "../gen/attention/v1/attention_pb.js";
import type { AppendKeyValuesRequest, StepRequest, StepResponse } from "../gen/attention/v1/session_pb.js";
import { AppendKeyValuesRequestSchema } from "../gen/attention/v1/session_pb.js";
import { AttentionError } from "../core/errors.js";
import { malformed } from "../core/tensor.js";
import type { CallContext, Transport } from "../core/transport.js";
import type { MessageWriter } from "../core/wire.js";
import { writeAppend, writeCompute } from "../core/wire.js";
import { Call } from "./call.js";
import type { Connection } from "./connection.js";
import { KeyChunks } from "./key_chunks.js";
import { StepStreams } from "./step_streams.js";
import { runStream, wantsOneMessage } from "./stream.js";

const COMPUTE_PATH = "/attention.v1.AttentionService/ComputeAttention";
const STREAM_PATH = "/attention.v1.AttentionService/StreamAttention";
/** A server that knows no streams may be replaced by one that does. */
const FORGET_NO_STREAMS_MS = 60_000;

function pieces(size: number, list: readonly Uint8Array[]): { size: number; list: readonly Uint8Array[] } {
  return { size, list };
}

function written(writer: MessageWriter): { size: number; list: readonly Uint8Array[] } {
  const list = writer.finish();
  return pieces(writer.size, list);
}

/** @internal */
export class NodeTransport implements Transport {
  readonly #connection: Connection;
  readonly #maxReceiveBytes: number;
  readonly #steps: StepStreams;
  #noStreamsUntil = 0;

  constructor(connection: Connection, maxReceiveBytes: number) {
    this.#connection = connection;
    this.#maxReceiveBytes = maxReceiveBytes;
    this.#steps = new StepStreams(connection, maxReceiveBytes);
  }

  get server(): string {
    return this.#connection.server;
  }

  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    context: CallContext,
  ): Promise<MessageShape<O>> {
    const message =
      method.input.typeName === AppendKeyValuesRequestSchema.typeName
        ? written(writeAppend(request as unknown as AppendKeyValuesRequest))
        : ((bytes) => pieces(bytes.byteLength, [bytes]))(toBinary(method.input, request));
    return this.#single(`/${method.parent.typeName}/${method.name}`, message, method.output, context, {});
  }

  async compute(request: ComputeAttentionRequest, context: CallContext): Promise<ComputeAttentionResponse> {
    const chunks = performance.now() < this.#noStreamsUntil ? undefined : KeyChunks.of(request);
    if (chunks) {
      try {
        return await this.#stream(chunks, context);
      } catch (error) {
        if (!(error instanceof AttentionError) || !wantsOneMessage(error) || !chunks.fitsOneMessage)
          throw error;
        if (error.code === "UNIMPLEMENTED") this.#noStreamsUntil = performance.now() + FORGET_NO_STREAMS_MS;
      }
    }
    const message = written(writeCompute(request));
    return this.#single(
      COMPUTE_PATH,
      message,
      ComputeAttentionResponseSchema,
      context,
      this.#sizes(message.size),
    );
  }

  /** What the server may know beforehand. */
  #sizes(size: number): Record<string, string> {
    const headers: Record<string, string> = { "attention-request-bytes": String(size) };
    if (this.#maxReceiveBytes !== Infinity)
      headers["attention-max-response-bytes"] = String(this.#maxReceiveBytes);
    return headers;
  }

  async #stream(chunks: KeyChunks, context: CallContext): Promise<ComputeAttentionResponse> {
    const header = written(chunks.header());
    const call = new Call(this.#connection, this.#maxReceiveBytes);
    await call.open(STREAM_PATH, context, this.#sizes(header.size));
    await call.write(header.list, header.size);
    return runStream(call, chunks, context, this.#maxReceiveBytes);
  }

  async #single<O extends DescMessage>(
    path: string,
    message: { readonly size: number; readonly list: readonly Uint8Array[] },
    output: O,
    context: CallContext,
    headers: Readonly<Record<string, string>>,
  ): Promise<MessageShape<O>> {
    const call = new Call(this.#connection, this.#maxReceiveBytes);
    await call.open(path, context, headers);
    const answer = call.next();
    // It is heard below; the call may end while its message is still on its way.
    answer.catch(() => undefined);
    await call.write(message.list, message.size, true);
    const bytes = await answer;
    if (!bytes) throw malformed("got none");
    if ((await call.next()) !== undefined) {
      call.cancel();
      throw malformed("got several");
    }
    try {
      return fromBinary(output, bytes);
    } catch (error) {
      throw malformed(String(error));
    }
  }

  close(): Promise<void> {
    this.#steps.close();
    this.#connection.close();
    return Promise.resolve();
  }

  step(request: StepRequest, context: CallContext): Promise<StepResponse> {
    return this.#steps.step(request, context);
  }
}
