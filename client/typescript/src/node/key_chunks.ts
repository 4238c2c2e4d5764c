/** A request cut along its keys, for StreamAttention. */

import { create } from "@bufbuild/protobuf";
import type { ComputeAttentionRequest, Tensor as TensorMessage } from "../gen/attention/v1/attention_pb.js";
import { ComputeAttentionRequestSchema, Layout, Scores } from "../gen/attention/v1/attention_pb.js";
import { layoutOf } from "../core/compute.js";
import { elementSize, elementsOf, typeName } from "../core/tensor.js";
import { MessageWriter, writeCompute, writeTensor } from "../core/wire.js";

/** Bytes of keys, values and mask per chunk, about. */
const CHUNK_BYTES = 2 * 2 ** 20;
/** Requests with no more go as one message. */
const LEAST_STREAM_BYTES = 4 * 2 ** 20;
/** Of one token of all sequences: servers take no larger chunk by default. */
const MOST_TOKEN_BYTES = 8 * 2 ** 20 - 4096;
/** The most that a message holds, but for its small fields. */
const MOST_MESSAGE_BYTES = 2 ** 31 - 2 ** 20;
/** Tokens of a block of the server's. */
const BLOCK = 256;
/** Shorter runs are copied into one piece. */
const LEAST_LENT_RUN = 8 * 1024;

/** Where tokens lie in a layout. */
const AXES: Readonly<Partial<Record<Layout, { readonly rank: number; readonly axis: number }>>> = {
  [Layout.MATRIX]: { rank: 2, axis: 0 },
  [Layout.PACKED]: { rank: 3, axis: 1 },
  [Layout.BHSD]: { rank: 4, axis: 2 },
  [Layout.BSHD]: { rank: 4, axis: 1 },
};

/** A tensor as [outer, length, inner] around one of its axes. */
class AxisView {
  private constructor(
    readonly tensor: TensorMessage,
    readonly axis: number,
    readonly outer: number,
    readonly length: number,
    readonly innerBytes: number,
  ) {}

  /** Undefined where the bytes are not those of the shape, or there are none, or bits, which no stream takes. */
  static of(tensor: TensorMessage | undefined, rank: number, axis: number): AxisView | undefined {
    const shape = tensor?.shape.map(Number);
    const type = tensor && typeName(tensor.dataType);
    if (!tensor || !shape || !type || shape.length !== rank || tensor.data.byteLength === 0) return undefined;
    if (type === "bits") return undefined;
    const innerBytes = elementsOf(shape.slice(axis + 1)) * elementSize(type);
    return new AxisView(tensor, axis, elementsOf(shape.slice(0, axis)), shape[axis] as number, innerBytes);
  }

  get tokenBytes(): number {
    return this.outer * this.innerBytes;
  }

  run(outer: number, begin: number, end: number): Uint8Array {
    const at = outer * this.length;
    return this.tensor.data.subarray((at + begin) * this.innerBytes, (at + end) * this.innerBytes);
  }

  /** Tokens [begin, end): lent where runs are long. */
  data(begin: number, end: number): Uint8Array[] {
    const run = (end - begin) * this.innerBytes;
    if (run >= LEAST_LENT_RUN || this.outer === 1) {
      return Array.from({ length: this.outer }, (_, o) => this.run(o, begin, end));
    }
    const copy = new Uint8Array(run * this.outer);
    for (let o = 0; o < this.outer; ++o) copy.set(this.run(o, begin, end), o * run);
    return [copy];
  }

  write(begin: number, end: number, data: Uint8Array[] = this.data(begin, end)): MessageWriter {
    const shape = [...this.tensor.shape];
    shape[this.axis] = BigInt(end - begin);
    return writeTensor({ ...this.tensor, shape }, data);
  }
}

/** Past tokens, (B, Hkv, P, D) in every layout, in the order of a layout with heads after tokens. */
function tokensFirst(past: AxisView, heads: number, begin: number, end: number): Uint8Array[] {
  const row = past.innerBytes;
  const copy = new Uint8Array(past.outer * (end - begin) * row);
  let to = 0;
  for (let b = 0; b < past.outer / heads; ++b) {
    for (let token = begin; token < end; ++token) {
      for (let h = 0; h < heads; ++h, to += row) copy.set(past.run(b * heads + h, token, token + 1), to);
    }
  }
  return [copy];
}

/**
 * About what the server keeps for the query's rows: for each row and head Dv + 2 numbers, times the levels of the
 * tree over blocks of keys that are open at once.
 */
function stateBytes(request: ComputeAttentionRequest, layout: Layout, keys: number): number {
  const { query, value, options } = request;
  const type = query && typeName(query.dataType);
  if (!type || !value) return Infinity;
  const packed = layout === Layout.PACKED;
  const heads = packed ? Number(options?.queryHeads ?? 0n) : 1;
  const kvHeads = packed ? Number(options?.kvHeads ?? 0n) : 1;
  const headSize = Number(query.shape.at(-1)) / heads;
  const valueSize = Number(value.shape.at(-1)) / kvHeads;
  if (!(headSize >= 1) || !(valueSize >= 0) || !Number.isFinite(valueSize)) return Infinity;
  const elements = query.data.byteLength / elementSize(type);
  const levels = 2 + Math.log2(1 + keys / BLOCK);
  return Math.max(4, elementSize(type)) * elements * (1 + (levels * (valueSize + 2)) / headSize);
}

/** Past tensors of no keys are as none. */
function isEmptyPast(tensor: TensorMessage | undefined): boolean {
  return tensor === undefined || (tensor.shape.length === 4 && tensor.shape[2] === 0n);
}

function tensorBytes({
  query,
  key,
  value,
  mask,
  pastKey,
  pastValue,
  indices,
  sinks,
}: ComputeAttentionRequest): number {
  const all = [query, key, value, mask, pastKey, pastValue, indices, sinks];
  return all.reduce((sum, tensor) => sum + (tensor?.data.byteLength ?? 0), 0);
}

/** @internal */
export class KeyChunks {
  /** Bytes of keys, values and mask. */
  readonly totalBytes: number;
  /** Whether the request can go as one message, too. */
  readonly fitsOneMessage: boolean;
  readonly #past: { readonly key: AxisView; readonly value: AxisView } | undefined;
  readonly #tokensPerChunk: number;
  readonly #keys: number;
  readonly #pastLength: number;

  private constructor(
    readonly request: ComputeAttentionRequest,
    readonly layout: Layout,
    /** The axis that keys and rows lie along. */
    readonly axis: number,
    private readonly key: AxisView,
    private readonly value: AxisView,
    private readonly mask: AxisView | undefined,
    past: { readonly key: AxisView; readonly value: AxisView } | undefined,
  ) {
    this.#past = past;
    this.#pastLength = past?.key.length ?? 0;
    this.#keys = this.#pastLength + key.length;
    const maskBytes = mask?.tensor.data.byteLength ?? 0;
    const tokenBytes = key.tokenBytes + value.tokenBytes;
    this.totalBytes = this.#keys * tokenBytes + maskBytes;
    this.fitsOneMessage = tensorBytes(request) <= MOST_MESSAGE_BYTES;
    const tokens = Math.max(1, Math.floor(CHUNK_BYTES / (tokenBytes + (mask?.tokenBytes ?? 0))));
    this.#tokensPerChunk = tokens > BLOCK ? tokens - (tokens % BLOCK) : tokens;
  }

  /**
   * Undefined where the request is better sent as one message, cannot be streamed, or is not well-formed:
   * the server then tells what is wrong with it.
   */
  static of(request: ComputeAttentionRequest): KeyChunks | undefined {
    const { options, key, value, mask, pastKey, pastValue } = request;
    if (options && (options.returnScores !== Scores.UNSPECIFIED || options.returnPresent)) return undefined;
    const bytes = [key, value, mask, pastKey, pastValue].reduce(
      (sum, t) => sum + (t?.data.byteLength ?? 0),
      0,
    );
    if (bytes <= LEAST_STREAM_BYTES) return undefined;
    const layout = layoutOf(request);
    const axes = AXES[layout];
    if (!axes || request.query?.shape.length !== axes.rank) return undefined;
    const keys = AxisView.of(key, axes.rank, axes.axis);
    const values = AxisView.of(value, axes.rank, axes.axis);
    if (keys?.length === undefined || keys.length !== values?.length) return undefined;
    let past: { key: AxisView; value: AxisView } | undefined;
    if (!isEmptyPast(pastKey) || !isEmptyPast(pastValue)) {
      const pastKeys = AxisView.of(pastKey, 4, 2);
      const pastValues = AxisView.of(pastValue, 4, 2);
      if (!pastKeys || !pastValues) return undefined;
      const fits =
        pastKeys.length === pastValues.length &&
        pastKeys.tokenBytes === keys.tokenBytes &&
        pastValues.tokenBytes === values.tokenBytes &&
        pastKey?.dataType === key?.dataType &&
        pastValue?.dataType === value?.dataType &&
        pastKey?.shape[1] === pastValue?.shape[1] &&
        (layout !== Layout.BHSD || (pastKeys.outer === keys.outer && pastValues.outer === values.outer));
      if (!fits) return undefined;
      past = { key: pastKeys, value: pastValues };
    }
    let columns: AxisView | undefined;
    if (mask) {
      const rank = mask.shape.length;
      columns = rank === 0 ? undefined : AxisView.of(mask, rank, rank - 1);
      if (!columns || columns.length > keys.length + (past?.key.length ?? 0)) return undefined;
    }
    if (keys.tokenBytes + values.tokenBytes + (columns?.tokenBytes ?? 0) > MOST_TOKEN_BYTES) return undefined;
    const chunks = new KeyChunks(request, layout, axes.axis, keys, values, columns, past);
    const state = stateBytes(request, layout, chunks.#keys);
    return chunks.fitsOneMessage && state > tensorBytes(request) ? undefined : chunks;
  }

  /** The first message: what to compute, with the elements of query, indices and sinks alone. */
  header(): MessageWriter {
    const bare = (tensor: TensorMessage): TensorMessage => ({ ...tensor, data: new Uint8Array() });
    const { query, key, value, mask, pastKey, pastValue, options, indices, sinks } = this.request;
    const header = create(ComputeAttentionRequestSchema);
    header.validLengths = this.request.validLengths;
    if (query) header.query = query;
    if (key) header.key = bare(key);
    if (value) header.value = bare(value);
    if (mask) header.mask = bare(mask);
    if (pastKey) header.pastKey = bare(pastKey);
    if (pastValue) header.pastValue = bare(pastValue);
    if (options) header.options = options;
    if (indices) header.indices = indices;
    if (sinks) header.sinks = sinks;
    const message = new MessageWriter();
    message.message(1, writeCompute(header));
    return message;
  }

  /** The other messages, one after the other. */
  *chunks(): Generator<MessageWriter> {
    for (let begin = 0; begin < this.#keys;) {
      // No chunk has past and new keys: they lie in different tensors.
      const past = begin < this.#pastLength;
      const end = Math.min(begin + this.#tokensPerChunk, past ? this.#pastLength : this.#keys);
      const chunk = new MessageWriter();
      if (past) this.#writePast(chunk, begin, end);
      else {
        chunk.message(1, this.key.write(begin - this.#pastLength, end - this.#pastLength));
        chunk.message(2, this.value.write(begin - this.#pastLength, end - this.#pastLength));
      }
      if (this.mask && begin < this.mask.length) {
        chunk.message(3, this.mask.write(begin, Math.min(end, this.mask.length)));
      }
      const message = new MessageWriter();
      message.message(2, chunk);
      yield message;
      begin = end;
    }
  }

  #writePast(chunk: MessageWriter, begin: number, end: number): void {
    const past = this.#past as { key: AxisView; value: AxisView };
    const heads = Number(past.key.tensor.shape[1]);
    const reordered = this.layout === Layout.BSHD || this.layout === Layout.PACKED;
    const data = (view: AxisView): Uint8Array[] =>
      reordered ? tokensFirst(view, heads, begin, end) : view.data(begin, end);
    chunk.message(1, this.key.write(begin, end, data(past.key)));
    chunk.message(2, this.value.write(begin, end, data(past.value)));
  }
}
