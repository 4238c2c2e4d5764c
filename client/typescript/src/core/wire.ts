/**
 * Messages that carry tensors, written without a copy of the tensors' bytes: a list of pieces, which lie
 * one after another on the wire. The same bytes as protobuf's, but for the order of fields.
 */

import { toBinary } from "@bufbuild/protobuf";
import type { ComputeAttentionRequest, Tensor } from "../gen/attention/v1/attention_pb.js";
import { AttentionOptionsSchema } from "../gen/attention/v1/attention_pb.js";
import type { AppendKeyValuesRequest, StepItem, StepRequest } from "../gen/attention/v1/session_pb.js";

/** Writes one message. @internal */
export class MessageWriter {
  readonly pieces: Uint8Array[] = [];
  size = 0;
  #open: number[] = [];

  #varint(value: number): void {
    let rest = value;
    while (rest > 127) {
      this.#open.push((rest % 128) | 128);
      rest = Math.floor(rest / 128);
    }
    this.#open.push(rest);
  }

  #flush(): void {
    if (this.#open.length === 0) return;
    this.pieces.push(Uint8Array.from(this.#open));
    this.size += this.#open.length;
    this.#open = [];
  }

  /** An int64, uint64, enum or bool; 0 is left out. Negative ones take ten bytes. */
  integer(field: number, value: number | bigint | boolean): void {
    if (!value) return;
    this.#varint(field * 8);
    this.#long(value);
  }

  #long(value: number | bigint | boolean): void {
    if (typeof value !== "bigint" || (value >= 0n && value <= 0xffffffffn)) {
      this.#varint(Number(value));
      return;
    }
    let rest = BigInt.asUintN(64, value);
    while (rest > 127n) {
      this.#open.push(Number(rest & 127n) | 128);
      rest >>= 7n;
    }
    this.#open.push(Number(rest));
  }

  /** An optional int64: 0 is written. */
  optional(field: number, value: bigint | undefined): void {
    if (value === undefined) return;
    this.#varint(field * 8);
    this.#long(value);
  }

  packed(field: number, values: readonly bigint[]): void {
    if (values.length === 0) return;
    const list = new MessageWriter();
    for (const value of values) list.#long(value);
    this.message(field, list);
  }

  text(field: number, value: string): void {
    if (value !== "") this.bytes(field, [new TextEncoder().encode(value)]);
  }

  /** A bytes field, or a message that is encoded; its pieces are lent. */
  bytes(field: number, pieces: readonly Uint8Array[]): void {
    let size = 0;
    for (const piece of pieces) size += piece.byteLength;
    this.#varint(field * 8 + 2);
    this.#varint(size);
    this.#flush();
    this.pieces.push(...pieces);
    this.size += size;
  }

  message(field: number, message: MessageWriter): void {
    message.#flush();
    this.bytes(field, message.pieces);
  }

  /** All pieces of the message. */
  finish(): readonly Uint8Array[] {
    this.#flush();
    return this.pieces;
  }
}

/** A tensor's type and shape, then its elements, which may be in several pieces. @internal */
export function writeTensor(tensor: Tensor, data: readonly Uint8Array[] = [tensor.data]): MessageWriter {
  const writer = new MessageWriter();
  writer.integer(1, tensor.dataType);
  writer.packed(2, tensor.shape);
  if (data.some((piece) => piece.byteLength > 0)) writer.bytes(3, data);
  return writer;
}

function optionalTensor(writer: MessageWriter, field: number, tensor: Tensor | undefined): void {
  if (tensor) writer.message(field, writeTensor(tensor));
}

/** @internal */
export function writeCompute(request: ComputeAttentionRequest): MessageWriter {
  const writer = new MessageWriter();
  optionalTensor(writer, 1, request.query);
  optionalTensor(writer, 2, request.key);
  optionalTensor(writer, 3, request.value);
  optionalTensor(writer, 4, request.mask);
  optionalTensor(writer, 5, request.pastKey);
  optionalTensor(writer, 6, request.pastValue);
  writer.packed(7, request.validLengths);
  writer.packed(8, request.queryStarts);
  writer.packed(9, request.keyStarts);
  if (request.options) writer.bytes(10, [toBinary(AttentionOptionsSchema, request.options)]);
  optionalTensor(writer, 12, request.indices);
  optionalTensor(writer, 13, request.sinks);
  return writer;
}

/** @internal */
export function writeAppend(request: AppendKeyValuesRequest): MessageWriter {
  const writer = new MessageWriter();
  writer.text(1, request.id);
  writer.integer(2, request.layer);
  writer.optional(3, request.expectedLength);
  writer.text(4, request.requestId);
  optionalTensor(writer, 5, request.key);
  optionalTensor(writer, 6, request.value);
  writer.integer(12, request.incarnation);
  return writer;
}

function writeItem(item: StepItem): MessageWriter {
  const writer = new MessageWriter();
  writer.text(1, item.id);
  writer.integer(2, item.layer);
  writer.optional(3, item.expectedLength);
  writer.text(4, item.requestId);
  optionalTensor(writer, 5, item.key);
  optionalTensor(writer, 6, item.value);
  optionalTensor(writer, 7, item.query);
  optionalTensor(writer, 8, item.mask);
  if (item.options) writer.bytes(9, [toBinary(AttentionOptionsSchema, item.options)]);
  writer.integer(10, item.notCausal);
  writer.integer(11, item.maskBegin);
  writer.integer(12, item.incarnation);
  optionalTensor(writer, 13, item.indices);
  optionalTensor(writer, 14, item.sinks);
  return writer;
}

/** @internal */
export function writeStep(request: StepRequest): MessageWriter {
  const writer = new MessageWriter();
  for (const item of request.items) writer.message(1, writeItem(item));
  return writer;
}
