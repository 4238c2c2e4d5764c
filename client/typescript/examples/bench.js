// @ts-check
// How long calls take: of this client, and of a stub as @grpc/grpc-js and @grpc/proto-loader make it of the
// .proto file. Both take turns, on the same data. One line of JSON for each case and way.
//
//   node examples/bench.js --server HOST:PORT --seconds 5
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { AttentionClient, tensor } from "@attention-service/client";
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";

const { values: flags } = parseArgs({
  options: {
    server: { type: "string", default: "127.0.0.1:50051" },
    seconds: { type: "string", default: "5" },
  },
});

/** Batch 1, layout bhsd, float32. */
const CASES = {
  tiny: { queries: 16, keys: 16, heads: 1, kvHeads: 1, size: 64 },
  128: { queries: 128, keys: 128, heads: 8, kvHeads: 8, size: 64 },
  decode: { queries: 1, keys: 8192, heads: 32, kvHeads: 8, size: 128 },
};

/** @param {number[]} shape */
function random(shape) {
  const count = shape.reduce((product, length) => product * length, 1);
  return { data: Float32Array.from({ length: count }, () => Math.random() - 0.5), shape };
}

/** @typedef {ReturnType<typeof random>} Values */

const client = new AttentionClient(flags.server);
const definition = loader.loadSync("attention/v1/attention.proto", {
  includeDirs: [fileURLToPath(new URL("../../../proto", import.meta.url))],
  longs: Number,
  enums: String,
});
const Stub = /** @type {any} */ (grpc.loadPackageDefinition(definition)).attention.v1.AttentionService;
const stub = new Stub(flags.server, grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": -1,
});

/** @param {Values} values */
const message = ({ data, shape }) => ({
  dataType: "DATA_TYPE_FLOAT32",
  shape,
  data: Buffer.from(data.buffer, data.byteOffset, data.byteLength),
});

const WAYS = {
  /** @param {Values} query @param {Values} key @param {Values} value */
  client: async (query, key, value) => {
    const { output } = await client.compute({
      query: tensor(query.data, query.shape),
      key: tensor(key.data, key.shape),
      value: tensor(value.data, value.shape),
    });
    return /** @type {Float32Array} */ (output.data);
  },
  /** @param {Values} query @param {Values} key @param {Values} value */
  stub: async (query, key, value) => {
    const request = { query: message(query), key: message(key), value: message(value) };
    const answer = await new Promise((resolve, reject) => {
      stub.computeAttention(request, (/** @type {unknown} */ error, /** @type {any} */ response) => {
        if (error) reject(error);
        else resolve(response);
      });
    });
    /** @type {Buffer} */
    const bytes = answer.output.data;
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  },
};

/** @param {Float32Array} a @param {Float32Array} b */
function sameBits(a, b) {
  const bytes = (/** @type {Float32Array} */ f) => Buffer.from(f.buffer, f.byteOffset, f.byteLength);
  return bytes(a).equals(bytes(b));
}

for (const [name, { queries, keys, heads, kvHeads, size }] of Object.entries(CASES)) {
  const query = random([1, heads, queries, size]);
  const key = random([1, kvHeads, keys, size]);
  const value = random([1, kvHeads, keys, size]);
  const wanted = await WAYS.client(query, key, value);
  /** @type {Record<string, number[]>} */
  const times = { client: [], stub: [] };
  const end = performance.now() + Number(flags.seconds) * 1000;
  for (let round = 0; round < 3 || performance.now() < end; ++round) {
    for (const [way, call] of Object.entries(WAYS)) {
      const begun = performance.now();
      const output = await call(query, key, value);
      const took = performance.now() - begun;
      if (!sameBits(output, wanted)) throw new Error(`${name}: ${way} has other bits`);
      // The first round is for warming up.
      if (round > 0) times[way]?.push(took);
    }
  }
  for (const [way, list] of Object.entries(times)) {
    list.sort((a, b) => a - b);
    const p50 = list[list.length >> 1] ?? 0;
    console.log(JSON.stringify({ case: name, way, p50_ms: Number(p50.toFixed(3)), calls: list.length }));
  }
}
await client.close();
stub.close();
