/** StreamAttention: keys and values go in chunks while rows of the output come back. */

import { create, fromBinary } from "@bufbuild/protobuf";
import type { ComputeAttentionResponse, Tensor as TensorMessage } from "../gen/attention/v1/attention_pb.js";
import {
  ComputeAttentionResponseSchema,
  Layout,
  StreamAttentionResponseSchema,
} from "../gen/attention/v1/attention_pb.js";
import { outputShape } from "../core/compute.js";
import { AttentionError } from "../core/errors.js";
import { elementSize, elementsOf, malformed, typeName } from "../core/tensor.js";
import type { CallContext } from "../core/transport.js";
import type { Call } from "./call.js";
import type { KeyChunks } from "./key_chunks.js";

/** Rows that come part by part, joined along one axis. */
class RowJoiner {
  #whole: TensorMessage | undefined;
  #next = 0;

  constructor(
    private readonly name: string,
    private readonly shape: readonly number[],
    private readonly axis: number,
  ) {}

  add(part: TensorMessage): void {
    const type = typeName(part.dataType);
    const shape = part.shape.map(Number);
    const rows = shape[this.axis] ?? 0;
    const fits =
      type &&
      type !== "bits" &&
      shape.length === this.shape.length &&
      shape.every((length, i) => i === this.axis || length === this.shape[i]) &&
      this.#next + rows <= (this.shape[this.axis] as number) &&
      part.data.byteLength === elementsOf(shape) * elementSize(type) &&
      (this.#whole === undefined || this.#whole.dataType === part.dataType);
    if (!fits) throw malformed(`${this.name}: got rows (${shape.join(", ")}) of (${this.shape.join(", ")})`);
    if (rows === this.shape[this.axis]) this.#whole = part;
    else this.#copy(part, rows, elementsOf(shape.slice(this.axis + 1)) * elementSize(type));
    this.#next += rows;
  }

  #copy(part: TensorMessage, rows: number, inner: number): void {
    const all = this.shape[this.axis] as number;
    const outer = elementsOf(this.shape.slice(0, this.axis));
    this.#whole ??= { ...part, shape: this.shape.map(BigInt), data: new Uint8Array(outer * all * inner) };
    for (let o = 0; o < outer; ++o) {
      const from = part.data.subarray(o * rows * inner, (o + 1) * rows * inner);
      this.#whole.data.set(from, (o * all + this.#next) * inner);
    }
  }

  finish(): TensorMessage | undefined {
    if (this.#next !== this.shape[this.axis]) {
      throw malformed(`${this.name}: got ${String(this.#next)} rows of ${String(this.shape[this.axis])}`);
    }
    return this.#whole;
  }
}

/** Elements are counted within a chunk: their numbers would mislead. */
function renamed(text: string): string {
  if (text.startsWith("chunk.")) return text.slice(6).replace(/ at element \d+/, "");
  return text.replace(/^header\./, "");
}

/** An error of a stream, with the fields named as in the request. */
function namedAsInRequest(error: AttentionError): AttentionError {
  if (error.fieldViolations.length === 0) return error;
  return error.with(renamed(error.text), ({ field, description }) => ({
    field: renamed(field),
    description: field.startsWith("chunk.") ? description.replace(/ at element \d+/, "") : description,
  }));
}

/** Whether the request is to be sent as one message in place of a stream that was refused so. @internal */
export function wantsOneMessage(error: AttentionError): boolean {
  if (error.code === "UNIMPLEMENTED") return error.reason !== "INVALID_FIELD";
  const tooLarge = error.reason === "REQUEST_TOO_LARGE" || error.reason === "MEMORY_TOO_LARGE";
  return error.code === "RESOURCE_EXHAUSTED" && tooLarge;
}

async function send(call: Call, chunks: KeyChunks, context: CallContext): Promise<void> {
  let sent = 0;
  for (const message of chunks.chunks()) {
    await call.write(message.finish(), message.size);
    sent = Math.min(sent + message.size, chunks.totalBytes);
    context.onProgress?.(sent, chunks.totalBytes);
  }
  call.end();
}

async function receive(
  call: Call,
  chunks: KeyChunks,
  maxReceiveBytes: number,
): Promise<ComputeAttentionResponse> {
  const shape = outputShape(chunks.request);
  const withSum = chunks.request.options?.returnLogSumExp ?? false;
  const output = new RowJoiner("output", shape, chunks.axis);
  const sumShape = logSumShape(chunks);
  const sum = new RowJoiner("log_sum_exp", sumShape, sumShape.length - 1);
  const response = create(ComputeAttentionResponseSchema);
  let received = 0;
  for (let bytes = await call.next(); bytes; bytes = await call.next()) {
    received += bytes.byteLength;
    if (received > maxReceiveBytes) {
      throw new AttentionError(
        "RESOURCE_EXHAUSTED",
        `the answer is above maxReceiveBytes, ${String(maxReceiveBytes)}`,
        {
          reason: "CLIENT_LIMIT",
        },
      );
    }
    const part = parse(bytes);
    if (part.output) output.add(part.output);
    if (part.logSumExp && withSum) sum.add(part.logSumExp);
    if (part.timing) response.timing = part.timing;
  }
  const whole = output.finish();
  if (whole) response.output = whole;
  const wholeSum = withSum ? sum.finish() : undefined;
  if (wholeSum) response.logSumExp = wholeSum;
  if (!whole && elementsOf(shape) === 0 && chunks.request.query) {
    response.output = { ...chunks.request.query, shape: shape.map(BigInt), data: new Uint8Array() };
  }
  return response;
}

function parse(bytes: Buffer): ReturnType<typeof fromBinary<typeof StreamAttentionResponseSchema>> {
  try {
    return fromBinary(StreamAttentionResponseSchema, bytes);
  } catch (error) {
    throw malformed(String(error));
  }
}

/** (B, Hq, S), or (S). */
function logSumShape(chunks: KeyChunks): number[] {
  const query = chunks.request.query?.shape.map(Number) ?? [];
  const [first = 0, second = 0, third = 0] = query;
  switch (chunks.layout) {
    case Layout.MATRIX:
      return [first];
    case Layout.PACKED:
      return [first, Number(chunks.request.options?.queryHeads ?? 0n), second];
    case Layout.BSHD:
      return [first, third, second];
    default:
      return [first, second, third];
  }
}

/** Sends and receives at the same time: a client that only writes may wait for ever. @internal */
export async function runStream(
  call: Call,
  chunks: KeyChunks,
  context: CallContext,
  maxReceiveBytes: number,
): Promise<ComputeAttentionResponse> {
  try {
    const [response] = await Promise.all([
      receive(call, chunks, maxReceiveBytes),
      send(call, chunks, context),
    ]);
    return response;
  } catch (error) {
    call.cancel();
    throw error instanceof AttentionError ? namedAsInRequest(error) : error;
  }
}
