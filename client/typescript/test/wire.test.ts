/** The messages that are written without copies, against protobuf. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { create, equals, fromBinary, toBinary } from "@bufbuild/protobuf";
import { computeMessage } from "../src/core/compute.js";
import type { ComputeRequest } from "../src/core/compute.js";
import { configMessage, sessionInfo } from "../src/core/session.js";
import { Tensor, bits, bool, tensor } from "../src/core/tensor.js";
import type { MessageWriter } from "../src/core/wire.js";
import { writeAppend, writeCompute, writeStep } from "../src/core/wire.js";
import type { KeyValueChunk } from "../src/gen/attention/v1/attention_pb.js";
import {
  ComputeAttentionRequestSchema,
  DataType,
  StreamAttentionRequestSchema,
  TensorSchema,
} from "../src/gen/attention/v1/attention_pb.js";
import {
  AppendKeyValuesRequestSchema,
  SessionSchema,
  StepRequestSchema,
} from "../src/gen/attention/v1/session_pb.js";
import { KeyChunks } from "../src/node/key_chunks.js";

function bytesOf(writer: MessageWriter): Buffer {
  const pieces = writer.finish();
  const bytes = Buffer.concat(pieces);
  assert.equal(writer.size, bytes.byteLength);
  return bytes;
}

/** Protobuf reads what was written as the message, in as many bytes as it takes itself. */
function assertSame<Desc extends DescMessage>(
  schema: Desc,
  writer: MessageWriter,
  message: MessageShape<Desc>,
): void {
  const bytes = bytesOf(writer);
  assert.ok(equals(schema, fromBinary(schema, bytes), message));
  assert.equal(bytes.byteLength, toBinary(schema, message).byteLength);
}

let state = 1;
function random(most: number): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state % most;
}

function floats(shape: readonly number[]): ReturnType<typeof tensor> {
  const count = shape.reduce((product, length) => product * length, 1);
  return tensor(
    Float32Array.from({ length: count }, () => random(1000) / 8),
    shape,
  );
}

describe("writers", () => {
  it("write a computation", () => {
    assertSame(
      ComputeAttentionRequestSchema,
      writeCompute(create(ComputeAttentionRequestSchema)),
      create(ComputeAttentionRequestSchema),
    );
    const message = computeMessage({
      query: floats([2, 3, 4]),
      key: floats([2, 5, 4]),
      value: tensor(new Float32Array(0), [2, 0, 4]),
      mask: bool([true, false], [1, 2]),
      pastKey: floats([1, 1, 300, 2]),
      pastValue: floats([1, 1, 300, 2]),
      indices: [[[0, -1]]],
      rowSinks: floats([1, 2, 3]),
      validLengths: [0, 127, 128, 2 ** 31, 2 ** 40, -1],
      queryStarts: [0, 2],
      keyStarts: [0, 2 ** 53 - 1],
      layout: "packed",
      queryHeads: 2,
      kvHeads: 1,
      scale: 0,
      softcap: 2.5,
      causal: "top_left",
      window: { left: -1, right: 3 },
      chunkSize: 8,
      alibiSlopes: [1, 2],
      sinks: Float32Array.of(-Infinity, 0.5),
      mathMode: "fast",
      softmaxPrecision: "float64",
      returnLogSumExp: true,
      returnScores: "biased",
      returnPresent: true,
    });
    assertSame(ComputeAttentionRequestSchema, writeCompute(message), message);
  });

  it("write appends and steps", () => {
    const { query, key, value, indices, sinks } = computeMessage({
      query: floats([1, 300]),
      key: floats([3, 3]),
      value: floats([1]),
      indices: [[2 ** 40, 0]],
      rowSinks: floats([1, 1]),
    });
    assert.ok(query && key && value && indices && sinks);
    const common = {
      id: "é-session",
      incarnation: 2n ** 64n - 1n,
      expectedLength: 0n,
      requestId: "r",
      key,
      value,
    };
    const append = create(AppendKeyValuesRequestSchema, { ...common, layer: 3n });
    assertSame(AppendKeyValuesRequestSchema, writeAppend(append), append);
    const step = create(StepRequestSchema, {
      items: [
        { ...common, layer: 1000n, query, notCausal: true, maskBegin: 256n, options: { softcap: 1 } },
        { id: "b", query, mask: key, indices, sinks },
        {},
      ],
    });
    assertSame(StepRequestSchema, writeStep(step), step);
  });

  it("write lists of indices as whole numbers", () => {
    const eye = floats([2, 2]);
    const indicesOf = (indices: ComputeRequest["indices"]): unknown => {
      const { dataType, shape, data } =
        computeMessage({ query: eye, key: eye, value: eye, indices }).indices ?? {};
      return [dataType, shape, data?.byteLength];
    };
    assert.deepEqual(indicesOf([[0], [-1]]), [DataType.INT32, [2n, 1n], 8]);
    assert.deepEqual(indicesOf([[0], [2 ** 31]]), [DataType.INT64, [2n, 1n], 16]);
    assert.deepEqual(indicesOf([[], []]), [DataType.INT32, [2n, 0n], 0]);
    assert.deepEqual(indicesOf(tensor(BigInt64Array.of(1n), [1, 1])), [DataType.INT64, [1n, 1n], 8]);
    for (const wrong of [[[0.5]], [[NaN]], [[true]], [[2 ** 53]]]) {
      assert.throws(() => indicesOf(wrong), {
        name: "RangeError",
        message: /^indices: data: got .* whole numbers/,
      });
    }
  });

  it("write half a lease and every window", () => {
    const config = configMessage({
      kvHeads: 1,
      headSize: 2,
      leaseMs: 1500,
      retainWindow: 8,
      rollbackTokens: 0,
    });
    assert.deepEqual([config.lease?.seconds, config.lease?.nanos], [1n, 500_000_000]);
    const info = sessionInfo(create(SessionSchema, { config }));
    assert.deepEqual(
      [info.config.leaseMs, info.config.retainWindow, info.config.rollbackTokens],
      [1500, [8], 0],
    );
  });
});

describe("chunks of keys", () => {
  const BATCH = 2;
  const HEADS = 4;
  const SIZE = 64;
  const PAST = 700;
  const KEYS = 3000;
  const shapes = {
    matrix: (n: number) => [n, 1024],
    packed: (n: number) => [BATCH, n, HEADS * SIZE],
    bhsd: (n: number) => [BATCH, HEADS, n, SIZE],
    bshd: (n: number) => [BATCH, n, HEADS, SIZE],
  };
  const pastShape = (layout: string): number[] =>
    layout === "matrix" ? [1, 1, PAST, 1024] : [BATCH, HEADS, PAST, SIZE];

  /** Element [b][h][token][d] of a tensor in a layout. */
  function at(layout: string, length: number, b: number, h: number, token: number, d: number): number {
    if (layout === "matrix") return token * 1024 + d;
    if (layout === "bhsd") return ((b * HEADS + h) * length + token) * SIZE + d;
    return ((b * length + token) * HEADS + h) * SIZE + d;
  }

  /** One key of 4 bytes and one value of 4 * `valueSize` for each token; untouched memory takes no room. */
  const wide = (rows: number, tokens: number, valueSize: number): ReturnType<typeof computeMessage> =>
    computeMessage({
      query: floats([rows, 1]),
      key: floats([tokens, 1]),
      value: new Tensor("float32", [tokens, valueSize], new Uint8Array(4 * tokens * valueSize)),
    });

  it("are made where they take less memory than one message, and where none can hold the request", () => {
    const MANY = 2 ** 19;
    assert.equal(KeyChunks.of(wide(1, 64, MANY))?.fitsOneMessage, true);
    assert.equal(KeyChunks.of(wide(1024, 64, MANY)), undefined);
    assert.equal(KeyChunks.of(wide(1024, 1024, MANY))?.fitsOneMessage, false);
    // A token that no chunk can hold.
    assert.equal(KeyChunks.of(wide(1, 64, 2 ** 21)), undefined);
  });

  for (const layout of ["matrix", "packed", "bhsd", "bshd"] as const) {
    it(`${layout}: hold every token once, past ones first`, () => {
      const matrix = layout === "matrix";
      const request: ComputeRequest = {
        layout,
        ...(layout === "packed" ? { queryHeads: HEADS, kvHeads: HEADS } : {}),
        query: floats(shapes[layout](1)),
        key: floats(shapes[layout](KEYS)),
        value: floats(shapes[layout](KEYS)),
        pastKey: floats(pastShape(layout)),
        pastValue: floats(pastShape(layout)),
        mask: bool(
          Uint8Array.from({ length: 3500 }, () => random(2)),
          [1, 3500],
        ),
        indices: [[[0, KEYS]]],
        rowSinks: [[[0.5]]],
      };
      const message = computeMessage(request);
      const chunks = KeyChunks.of(message);
      assert.ok(chunks);
      const header = fromBinary(StreamAttentionRequestSchema, bytesOf(chunks.header()));
      assert.equal(header.message.case, "header");
      const { indices, sinks, key } = header.message.value;
      assert.ok(indices && sinks && message.indices && message.sinks);
      assert.ok(equals(TensorSchema, indices, message.indices));
      assert.ok(equals(TensorSchema, sinks, message.sinks));
      assert.equal(key?.data.byteLength, 0);
      let next = 0;
      const keys = request.key as ReturnType<typeof floats>;
      const past = request.pastKey as ReturnType<typeof floats>;
      const mask = request.mask as ReturnType<typeof bool>;
      for (const written of chunks.chunks()) {
        const bytes = bytesOf(written);
        assert.ok(bytes.byteLength <= 2.1 * 2 ** 20);
        const chunk = fromBinary(StreamAttentionRequestSchema, bytes).message.value as KeyValueChunk;
        const axis = matrix ? 0 : layout === "bhsd" ? 2 : 1;
        const tokens = Number(chunk.key?.shape[axis]);
        const got = new Float32Array(Uint8Array.from(chunk.key?.data ?? []).buffer);
        for (let n = 0; n < 2000; ++n) {
          const [b, h] = matrix ? [0, 0] : [random(BATCH), random(HEADS)];
          const [token, d] = [random(tokens), random(matrix ? 1024 : SIZE)];
          const whole = next + token;
          const wanted =
            whole < PAST
              ? past.data[at(matrix ? "matrix" : "bhsd", PAST, b, h, whole, d)]
              : keys.data[at(layout, KEYS, b, h, whole - PAST, d)];
          assert.equal(got[at(layout, tokens, b, h, token, d)], wanted);
        }
        const columns = Math.max(0, Math.min(3500, next + tokens) - next);
        assert.deepEqual(
          Array.from(chunk.mask?.data ?? []),
          Array.from(mask.bytes.subarray(next, next + columns)),
        );
        next += tokens;
      }
      assert.equal(next, PAST + KEYS);
    });
  }

  it("are not made of what is better sent whole", () => {
    const large = {
      query: floats([1, 4, 1, 64]),
      key: floats([1, 4, 9000, 64]),
      value: floats([1, 4, 9000, 64]),
    };
    assert.ok(KeyChunks.of(computeMessage(large)));
    const others: ComputeRequest[] = [
      { ...large, key: floats([1, 4, 900, 64]), value: floats([1, 4, 900, 64]) },
      { ...large, returnScores: "raw" },
      { ...large, returnPresent: true },
      { ...large, value: floats([1, 4, 8999, 64]) },
      { ...large, query: floats([1, 4, 9000, 64]) },
      { ...large, layout: "ragged" },
      { ...large, layout: "matrix" },
      { ...large, pastKey: floats([1, 4, 5, 64]) },
      { ...large, mask: floats([9001]) },
      { ...large, mask: bits(new Uint8Array(1125), [9000]) },
    ];
    for (const [i, request] of others.entries()) {
      assert.equal(KeyChunks.of(computeMessage(request)), undefined, String(i));
    }
  });
});
