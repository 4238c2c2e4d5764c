/** Tensors, and the types that JavaScript lacks. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  bfloat16,
  bfloat16ToFloat32,
  bits,
  bool,
  float16,
  float16ToFloat32,
  float32ToBfloat16,
  float32ToFloat16,
  Tensor,
  tensor,
} from "@attention-service/client";

const everyBits = Uint16Array.from({ length: 65536 }, (_, i) => i);

describe("float16 and bfloat16", () => {
  const types = [
    ["float16", float16ToFloat32, float32ToFloat16],
    ["bfloat16", bfloat16ToFloat32, float32ToBfloat16],
  ] as const;
  for (const [name, widen, round] of types) {
    it(`${name}: every number comes back`, () => {
      const numbers = widen(everyBits);
      const back = round(numbers);
      for (const [i, bits] of back.entries()) {
        if (Number.isNaN(numbers[i])) assert.ok(Number.isNaN(widen(Uint16Array.of(bits))[0]));
        else assert.equal(bits, i);
      }
    });

    it(`${name}: rounds to nearest, ties to even`, () => {
      const positive = widen(everyBits).subarray(0, 32768);
      for (let i = 0; i + 1 < positive.length; ++i) {
        const [low, high] = [positive[i] as number, positive[i + 1] as number];
        if (!Number.isFinite(high)) break;
        const middle = (low + high) / 2;
        const nudge = (high - low) / 2 ** 20;
        const bits = Array.from(round([middle - nudge, middle, middle + nudge, -middle]));
        assert.deepEqual(bits, [i, i % 2 === 0 ? i : i + 1, i + 1, 0x8000 + (i % 2 === 0 ? i : i + 1)]);
      }
    });
  }

  it("float16: what is too large is infinite", () => {
    assert.deepEqual(
      Array.from(float32ToFloat16([65519.99, 65520, -1e30, Infinity])),
      [0x7bff, 0x7c00, 0xfc00, 0x7c00],
    );
  });
});

describe("tensor()", () => {
  it("uses the memory of a typed array", () => {
    const data = new Float32Array([1, 2, 3, 4]);
    const made = tensor(data, [2, 2]);
    data[3] = 7;
    assert.deepEqual(made.toArray(), [
      [1, 2],
      [3, 7],
    ]);
    assert.equal(made.data.buffer, data.buffer);
  });

  it("sees a part of a buffer", () => {
    const data = new Float64Array([0, 1, 2, 3]).subarray(1, 3);
    assert.deepEqual(tensor(data, [2]).toArray(), [1, 2]);
  });

  it("copies memory that threads share", () => {
    const data = new Float32Array(new SharedArrayBuffer(8));
    assert.notEqual(tensor(data, [2]).data.buffer, data.buffer);
  });

  it("takes lists", () => {
    assert.deepEqual(tensor([[1.5], [2]]).shape, [2, 1]);
    assert.equal(tensor([[true, false]]).dataType, "bool");
    assert.deepEqual(tensor([]).shape, [0]);
  });

  it("keeps types, and widens those that the wire lacks", () => {
    const types = [
      [new Float32Array(1), "float32"],
      [new Float64Array(1), "float64"],
      [new Int8Array(1), "int8"],
      [new Int32Array(1), "int32"],
      [new BigInt64Array(1), "int64"],
      [Uint8Array.of(255), "int32"],
      [Int16Array.of(-5), "int32"],
      [Uint32Array.of(2 ** 32 - 1), "int64"],
    ] as const;
    for (const [data, type] of types) {
      const made = tensor(data, [1]);
      assert.equal(made.dataType, type);
      assert.equal(Number(made.data[0]), Number(data[0]));
    }
  });

  it("says what is wrong", () => {
    assert.throws(() => tensor(new Float32Array(3), [2, 2]), /got 3 elements, wanted 4 for shape \(2, 2\)/);
    assert.throws(() => tensor(new Float32Array(0), [-1]), /shape: got -1/);
    assert.throws(() => tensor(new Float32Array(0), [0.5]), /shape: got 0.5/);
    assert.throws(() => tensor(new Float32Array(1), [2 ** 40, 2 ** 40]), RangeError);
    assert.throws(() => tensor(new Uint16Array(1), [1]), /float16\(\) or bfloat16\(\)/);
    assert.throws(() => tensor([[1, 2], [3]]), /different lengths/);
    assert.throws(() => tensor([1, true] as number[]), /one kind/);
    assert.throws(() => new Tensor("float8" as "int8", [1], new Uint8Array(1)), /wanted one of float32/);
  });

  it("shows numbers of every type", () => {
    assert.deepEqual(Array.from(float16([0.5, -2], [2]).toFloat32Array()), [0.5, -2]);
    assert.deepEqual(Array.from(bfloat16([0.5, -2], [2]).toFloat64Array()), [0.5, -2]);
    assert.deepEqual(bool([true, false], [2]).toArray(), [1, 0]);
    assert.deepEqual(tensor(BigInt64Array.of(-3n), [1]).toArray(), [-3]);
  });

  it("packs bits, the first one into the least significant", () => {
    const truths = Array.from({ length: 15 }, (_, i) => i % 3 === 0);
    const packed = bits(truths, [3, 5]);
    assert.deepEqual(Array.from(packed.bytes), [0b01001001, 0b10010]);
    assert.deepEqual([packed.dataType, packed.size, packed.data], ["bits", 15, packed.bytes]);
    assert.deepEqual(packed.toArray(), bool(truths, [3, 5]).toArray());
    assert.deepEqual(Array.from(packed.toFloat32Array()), truths.map(Number));
    const bytes = new Uint8Array(2);
    assert.equal(bits(bytes, [15]).data.buffer, bytes.buffer);
    assert.equal(bits([], [0, 3]).bytes.byteLength, 0);
    assert.throws(() => bits(bytes, [17]), /got 2 bytes of bits, wanted 3 for shape \(17\)/);
    assert.throws(() => bits(bytes, [8]), RangeError);
    assert.throws(() => bits(truths, [16]), /got 15 elements, wanted 16/);
  });

  it("gives aligned views of bytes that are not", () => {
    const bytes = new Uint8Array(9);
    new DataView(bytes.buffer).setFloat32(1, 1.5, true);
    const made = new Tensor("float32", [2], bytes.subarray(1));
    assert.deepEqual(Array.from(made.toFloat32Array()), [1.5, 0]);
    const node = new Tensor("float32", [2], Buffer.from(bytes.buffer, 1, 8));
    assert.deepEqual(Array.from(node.toFloat32Array()), [1.5, 0]);
  });
});
