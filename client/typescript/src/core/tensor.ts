/** Tensors: a type, a shape and the bytes of the elements, which stay where they are. */

import type { Tensor as TensorMessage } from "../gen/attention/v1/attention_pb.js";
import { DataType as WireType } from "../gen/attention/v1/attention_pb.js";
import { bfloat16ToFloat32, float16ToFloat32, float32ToBfloat16, float32ToFloat16 } from "./float16.js";
import { AttentionError } from "./errors.js";

/**
 * The types of elements. `bool` and integers are for masks, int32 and int64 for indices too. `bits` is for
 * masks alone: one bit for each element.
 */
export type DataType =
  "float32" | "float16" | "bfloat16" | "float64" | "bool" | "int8" | "int32" | "int64" | "bits";

/** What {@link Tensor.data} is: float16 and bfloat16 are shown as their bits, `bits` as packed bytes. */
export type TensorData =
  Float32Array | Float64Array | Uint16Array | Uint8Array | Int8Array | Int32Array | BigInt64Array;

/** Numbers in lists, as deep as the tensor has axes; or truth values, for a mask. */
export type NestedArray = readonly (number | NestedArray)[] | readonly (boolean | NestedArray)[];

/** Whatever a call takes as a tensor: lists of numbers become float32, of truth values bool. */
export type TensorLike = Tensor | NestedArray;

interface TypeInfo {
  readonly wire: WireType;
  /** Bytes of an element; of `bits`, of eight of them. */
  readonly size: number;
  readonly view: (buffer: ArrayBufferLike, offset: number, length: number) => TensorData;
}

const TYPES: Record<DataType, TypeInfo> = {
  float32: { wire: WireType.FLOAT32, size: 4, view: (b, o, n) => new Float32Array(b, o, n) },
  float16: { wire: WireType.FLOAT16, size: 2, view: (b, o, n) => new Uint16Array(b, o, n) },
  bfloat16: { wire: WireType.BFLOAT16, size: 2, view: (b, o, n) => new Uint16Array(b, o, n) },
  float64: { wire: WireType.FLOAT64, size: 8, view: (b, o, n) => new Float64Array(b, o, n) },
  bool: { wire: WireType.BOOL, size: 1, view: (b, o, n) => new Uint8Array(b, o, n) },
  int8: { wire: WireType.INT8, size: 1, view: (b, o, n) => new Int8Array(b, o, n) },
  int32: { wire: WireType.INT32, size: 4, view: (b, o, n) => new Int32Array(b, o, n) },
  int64: { wire: WireType.INT64, size: 8, view: (b, o, n) => new BigInt64Array(b, o, n) },
  bits: { wire: WireType.BITS, size: 1, view: (b, o, n) => new Uint8Array(b, o, n) },
};

const NAMES = new Map<WireType, DataType>(
  Object.entries(TYPES).map(([name, info]) => [info.wire, name as DataType]),
);

/** The number of a type on the wire. @internal */
export function wireType(type: DataType): WireType {
  return TYPES[type].wire;
}

/** The name of a type on the wire; undefined for those that no tensor has. @internal */
export function typeName(type: WireType): DataType | undefined {
  return NAMES.get(type);
}

/** Bytes of one element; not of `bits`, which have less than one. @internal */
export function elementSize(type: DataType): number {
  return TYPES[type].size;
}

/** Bytes of so many elements. @internal */
export function byteLength(type: DataType, elements: number): number {
  return type === "bits" ? Math.ceil(elements / 8) : elements * TYPES[type].size;
}

/** The number of elements of a shape. @internal */
export function elementsOf(shape: readonly number[]): number {
  let elements = 1;
  for (const length of shape) elements *= length;
  return elements;
}

function checkShape(shape: readonly number[]): void {
  for (const length of shape) {
    if (!Number.isSafeInteger(length) || length < 0) {
      throw new RangeError(`shape: got ${String(length)}, wanted whole numbers from 0`);
    }
  }
}

if (new Uint8Array(Uint16Array.of(1).buffer)[0] !== 1) {
  throw new Error("tensors are little-endian, and this machine is not");
}

/**
 * A dense tensor, row-major. It refers to the memory that it was made of: nothing is copied, and
 * the memory must stay as it is until a call that uses it has ended.
 *
 * `tensor()`, `float16()`, `bfloat16()`, `bool()` and `bits()` make one.
 */
export class Tensor {
  /** The type of the elements. */
  readonly dataType: DataType;
  /** Dimensions, outermost first. */
  readonly shape: readonly number[];
  /**
   * The elements: row-major, little-endian, without padding. Those of `bits` are packed over the whole
   * tensor: element i is bit i % 8, counted from the least significant, of byte i / 8.
   */
  readonly bytes: Uint8Array;

  /**
   * A tensor over bytes that are there.
   *
   * @throws RangeError if the bytes are not as many as type and shape say.
   */
  constructor(dataType: DataType, shape: readonly number[], bytes: Uint8Array) {
    const info = TYPES[dataType] as TypeInfo | undefined;
    if (info === undefined) {
      throw new TypeError(`dataType: got ${dataType}, wanted one of ${Object.keys(TYPES).join(", ")}`);
    }
    checkShape(shape);
    const wanted = byteLength(dataType, elementsOf(shape));
    if (bytes.byteLength !== wanted) {
      const what = dataType === "bits" ? "bytes of bits" : "elements";
      throw new RangeError(
        `data: got ${String(bytes.byteLength / info.size)} ${what}, wanted ` +
          `${String(wanted / info.size)} for shape (${shape.join(", ")})`,
      );
    }
    this.dataType = dataType;
    this.shape = shape;
    this.bytes = bytes;
  }

  /** The number of elements. */
  get size(): number {
    return elementsOf(this.shape);
  }

  /**
   * The elements as a typed array, a view of {@link bytes} where these are aligned, else a copy.
   * Those of float16 and bfloat16 are bits, in a Uint16Array; {@link toFloat32Array} gives numbers. Those of
   * `bits` are packed, eight in a byte.
   */
  get data(): TensorData {
    const { size, view } = TYPES[this.dataType];
    // Not slice(): that of Node's Buffer does not copy.
    const bytes = this.bytes.byteOffset % size === 0 ? this.bytes : new Uint8Array(this.bytes);
    return view(bytes.buffer, bytes.byteOffset, bytes.byteLength / size);
  }

  /** The elements as numbers in float32: a view of a float32 tensor, a new array of any other. */
  toFloat32Array(): Float32Array {
    const data = this.data;
    if (data instanceof Float32Array) return data;
    if (data instanceof BigInt64Array) return Float32Array.from(data, Number);
    if (this.dataType === "float16") return float16ToFloat32(data as Uint16Array);
    if (this.dataType === "bfloat16") return bfloat16ToFloat32(data as Uint16Array);
    return Float32Array.from(this.dataType === "bits" ? unpacked(data as Uint8Array, this.size) : data);
  }

  /** The elements as numbers in double precision, in a new array unless it is a float64 tensor. */
  toFloat64Array(): Float64Array {
    const data = this.data;
    if (data instanceof Float64Array) return data;
    if (data instanceof BigInt64Array) return Float64Array.from(data, Number);
    const converted = data instanceof Uint16Array || this.dataType === "bits";
    return Float64Array.from(converted ? this.toFloat32Array() : data);
  }

  /** Nested lists of numbers, to print and to compare. */
  toArray(): NestedArray | number {
    const numbers = this.toFloat64Array();
    let at = 0;
    const build = (axis: number): NestedArray | number => {
      if (axis === this.shape.length) return numbers[at++] as number;
      return Array.from({ length: this.shape[axis] as number }, () => build(axis + 1));
    };
    return build(0);
  }
}

/** Packed bits, one in each byte. */
function unpacked(packed: Uint8Array, elements: number): Uint8Array {
  return Uint8Array.from({ length: elements }, (_, i) => ((packed[i >> 3] as number) >> (i & 7)) & 1);
}

/** The bytes of a typed array: of the same memory, unless that is shared between threads. */
function bytesOf(data: ArrayBufferView): Uint8Array {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const shared = typeof SharedArrayBuffer !== "undefined" && data.buffer instanceof SharedArrayBuffer;
  return shared ? bytes.slice() : bytes;
}

function flatten(values: NestedArray): { shape: number[]; flat: (number | boolean)[] } {
  const shape: number[] = [];
  for (let level: unknown = values; Array.isArray(level); level = level[0]) shape.push(level.length);
  const flat: (number | boolean)[] = [];
  const walk = (level: unknown, axis: number): void => {
    if (axis === shape.length) {
      if (typeof level !== "number" && typeof level !== "boolean") {
        throw new TypeError(`data: got ${typeof level} in a list, wanted numbers or booleans`);
      }
      flat.push(level);
      return;
    }
    if (!Array.isArray(level) || level.length !== shape[axis]) {
      throw new RangeError("data: got lists of different lengths, wanted the same on each axis");
    }
    for (const part of level) walk(part, axis + 1);
  };
  walk(values, 0);
  return { shape, flat };
}

/**
 * A tensor of a typed array, whose memory it uses, or of nested lists, which give the shape
 * themselves.
 *
 * ```ts
 * tensor(new Float32Array([1, 0, 0, 1]), [2, 2]);
 * tensor([[1, 0], [0, 1]]); // float32
 * tensor([[true, false], [true, true]]); // bool, a mask
 * ```
 *
 * Float32Array, Float64Array, Int8Array, Int32Array and BigInt64Array keep their type, and so does
 * Float16Array where there is one. Uint8Array and Int16Array become int32, Uint32Array int64, with
 * the same values. A Uint16Array may be many things: `float16()` and `bfloat16()` say which.
 */
export function tensor(data: NestedArray): Tensor;
export function tensor(data: ArrayBufferView | readonly number[], shape: readonly number[]): Tensor;
export function tensor(data: ArrayBufferView | NestedArray, shape?: readonly number[]): Tensor {
  if (Array.isArray(data)) {
    const { shape: own, flat } = flatten(data as NestedArray);
    if (flat.length > 0 && typeof flat[0] === "boolean") return bool(flat as boolean[], shape ?? own);
    if (flat.some((value) => typeof value !== "number")) {
      throw new TypeError("data: got numbers and booleans in one list, wanted one kind");
    }
    return new Tensor("float32", shape ?? own, bytesOf(Float32Array.from(flat as number[])));
  }
  if (!ArrayBuffer.isView(data)) {
    throw new TypeError(`data: got ${typeof data}, wanted a typed array or nested lists of numbers`);
  }
  if (shape === undefined) throw new TypeError("shape: got none, wanted one for a typed array");
  if (data instanceof Float32Array) return new Tensor("float32", shape, bytesOf(data));
  if (data instanceof Float64Array) return new Tensor("float64", shape, bytesOf(data));
  if (data instanceof Int8Array) return new Tensor("int8", shape, bytesOf(data));
  if (data instanceof Int32Array) return new Tensor("int32", shape, bytesOf(data));
  if (data instanceof BigInt64Array) return new Tensor("int64", shape, bytesOf(data));
  if (data instanceof Uint8Array || data instanceof Uint8ClampedArray || data instanceof Int16Array) {
    return new Tensor("int32", shape, bytesOf(Int32Array.from(data)));
  }
  if (data instanceof Uint32Array) {
    return new Tensor("int64", shape, bytesOf(BigInt64Array.from(data, BigInt)));
  }
  if (Object.prototype.toString.call(data) === "[object Float16Array]") {
    return new Tensor("float16", shape, bytesOf(data));
  }
  if (data instanceof Uint16Array) {
    throw new TypeError("data: got a Uint16Array: float16() or bfloat16() says which type it holds");
  }
  throw new TypeError(`data: got ${Object.prototype.toString.call(data)}, wanted another typed array`);
}

/** A float16 tensor: of a Uint16Array with the bits, whose memory it uses, or of numbers, rounded. */
export function float16(
  data: Uint16Array | Float32Array | Float64Array | readonly number[],
  shape: readonly number[],
): Tensor {
  return new Tensor("float16", shape, bytesOf(data instanceof Uint16Array ? data : float32ToFloat16(data)));
}

/** A bfloat16 tensor: of a Uint16Array with the bits, whose memory it uses, or of numbers, rounded. */
export function bfloat16(
  data: Uint16Array | Float32Array | Float64Array | readonly number[],
  shape: readonly number[],
): Tensor {
  return new Tensor("bfloat16", shape, bytesOf(data instanceof Uint16Array ? data : float32ToBfloat16(data)));
}

/** A bool tensor, for a mask: of bytes 0 and 1, whose memory it uses, or of truth values. */
export function bool(data: Uint8Array | readonly boolean[], shape: readonly number[]): Tensor {
  const bytes = data instanceof Uint8Array ? bytesOf(data) : Uint8Array.from(data, Number);
  return new Tensor("bool", shape, bytes);
}

/**
 * A mask of one bit for each element, an eighth of what `bool()` takes: of packed bytes, whose memory it uses,
 * or of truth values, which it packs. Element i, counted over the whole tensor, is bit i % 8 of byte i / 8,
 * counted from the least significant. What stands in the bits past the last element does not matter.
 *
 * A request with such a mask goes as one message, whatever its size.
 */
export function bits(data: Uint8Array | readonly boolean[], shape: readonly number[]): Tensor {
  if (data instanceof Uint8Array) return new Tensor("bits", shape, bytesOf(data));
  checkShape(shape);
  if (data.length !== elementsOf(shape)) {
    throw new RangeError(
      `data: got ${String(data.length)} elements, wanted ` +
        `${String(elementsOf(shape))} for shape (${shape.join(", ")})`,
    );
  }
  const packed = new Uint8Array(byteLength("bits", data.length));
  for (const [i, value] of data.entries())
    if (value) packed[i >> 3] = (packed[i >> 3] as number) | (1 << (i & 7));
  return new Tensor("bits", shape, packed);
}

/** Lists of whole numbers: int32 where all of them fit, else int64. */
function integers(data: NestedArray): Tensor {
  const { shape, flat } = flatten(data);
  for (const value of flat) {
    if (!Number.isSafeInteger(value))
      throw new RangeError(`data: got ${String(value)}, wanted whole numbers`);
  }
  const numbers = flat as number[];
  if (numbers.every((value) => value === (value | 0))) return tensor(Int32Array.from(numbers), shape);
  return tensor(BigInt64Array.from(numbers, BigInt), shape);
}

/** As `toTensor`, but that lists hold whole numbers. @internal */
export function toIndices(name: string, value: TensorLike): Tensor {
  return toTensor(name, value, integers);
}

/** What a call was given, as a tensor; errors name the argument. @internal */
export function toTensor(
  name: string,
  value: TensorLike,
  ofLists: (lists: NestedArray) => Tensor = tensor,
): Tensor {
  if (value instanceof Tensor) return value;
  try {
    if (Array.isArray(value)) return ofLists(value as NestedArray);
  } catch (error) {
    if (error instanceof Error) error.message = `${name}: ${error.message}`;
    throw error;
  }
  throw new TypeError(
    `${name}: got ${value === (null as unknown) ? "null" : typeof value}, wanted a Tensor, as of tensor(), or nested lists`,
  );
}

/** @internal */
export function tensorMessage(value: Tensor, data: Uint8Array = value.bytes): TensorMessage {
  return {
    $typeName: "attention.v1.Tensor",
    dataType: wireType(value.dataType),
    shape: value.shape.map(BigInt),
    data,
    floatValues: [],
  };
}

/** A tensor of an answer. @internal */
export function fromMessage(name: string, message: TensorMessage | undefined): Tensor {
  const type = message && typeName(message.dataType);
  if (message === undefined || type === undefined) {
    throw malformed(`${name}: got none, or one of an unknown type`);
  }
  const shape = message.shape.map(Number);
  if (shape.some((length) => length < 0) || byteLength(type, elementsOf(shape)) !== message.data.byteLength) {
    throw malformed(
      `${name}: got ${String(message.data.byteLength)} bytes for ${type} (${shape.join(", ")})`,
    );
  }
  // Where elements begin in a message is chance: what is not aligned is copied once, here.
  const { data } = message;
  const aligned = data.byteOffset % elementSize(type) === 0;
  return new Tensor(
    type,
    shape,
    aligned ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : new Uint8Array(data),
  );
}

/** An answer that does not answer the request. @internal */
export function malformed(what: string): AttentionError {
  return new AttentionError("INTERNAL", `the server's answer is malformed: ${what}`);
}
