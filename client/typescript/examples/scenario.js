// @ts-check
// Prints the lines of tests/polyglot/README.md, as every client does.
//
//   node examples/scenario.js --server HOST:PORT --misbehaving HOST:PORT --misbehaving-http HOST:PORT
import { randomBytes } from "node:crypto";
import { parseArgs } from "node:util";
import { AttentionClient, AttentionError } from "@attention-service/client";
import { digest, filled, filledBfloat16 } from "./pattern.js";

const option = /** @type {const} */ ({ type: "string", default: "" });
const { values: flags } = parseArgs({
  options: { server: option, misbehaving: option, "misbehaving-http": option },
});

/** @param {Promise<unknown>} call */
async function failure(call) {
  try {
    await call;
  } catch (error) {
    if (error instanceof AttentionError) return error;
    throw error;
  }
  throw new Error("the call was answered");
}

/** @param {AttentionClient} client */
async function compute(client) {
  const { output } = await client.compute({
    query: filled([2, 8, 33, 64], 1),
    key: filled([2, 2, 57, 64], 2),
    value: filled([2, 2, 57, 64], 3),
    causal: "bottom_right",
    window: { left: 40 },
  });
  console.log("compute f32", digest(output));
  const [query, key, value] = [4, 5, 6].map((seed) => filledBfloat16([1, 4, 16, 32], seed));
  if (!query || !key || !value) throw new Error("no tensors");
  console.log("compute bf16", digest((await client.compute({ query, key, value })).output));
}

/** @param {AttentionClient} client */
async function refused(client) {
  const error = await failure(
    client.compute({ query: filled([2, 2], 1), key: filled([3, 4], 2), value: filled([2, 2], 3) }),
  );
  console.log("refused", error.code, error.reason, error.fieldViolations[0]?.field);
}

/**
 * A client for a block of code. (With TypeScript, or Node 24, that is `await using`.)
 *
 * @param {ConstructorParameters<typeof AttentionClient>} options
 * @param {(client: AttentionClient) => Promise<void>} use
 */
async function withClient(options, use) {
  const client = new AttentionClient(...options);
  try {
    await use(client);
  } finally {
    await client.close();
  }
}

async function busy() {
  const token = `busy_then_ok.${randomBytes(8).toString("hex")}`;
  const row = filled([1, 4], 1);
  await withClient([flags.misbehaving, { token }], async (client) => {
    await client.compute({ query: row, key: row, value: row });
  });
  const answer = await fetch(`http://${flags["misbehaving-http"]}/attempts?token=${token}`);
  console.log("busy OK", (await answer.json()).length);
}

/** @param {AttentionClient} client */
async function session(client) {
  const first = await client.createSession({ kvHeads: 2, headSize: 16 });
  /** @param {number} seed */
  const token = (seed) => ({ key: filled([2, 1, 16], seed), value: filled([2, 1, 16], seed + 1) });
  /** @param {number} seed */
  const query = (seed) => ({ query: filled([4, 1, 16], seed) });
  const prompt = { key: filled([2, 7, 16], 7), value: filled([2, 7, 16], 8) };
  console.log("session append", await first.append(prompt));
  const step = await first.step({ ...token(9), ...query(11) });
  console.log("session step", first.length(), digest(step.output));
  const fork = await first.fork();
  const before = fork.length();
  await fork.truncate(5);
  const branch = await fork.attend(query(12));
  console.log(`session fork ${before} truncate ${fork.length()}`, digest(branch.output));
  await fork.delete();
  const second = await client.openSession(first.id);
  await second.append(token(13));
  const error = await failure(first.append(token(15)));
  console.log("session conflict", error.code, error.reason, error.length);
  await first.refresh();
  console.log("session parent", first.length(), digest((await first.attend(query(12))).output));
  await first.delete();
}

async function cancel() {
  const row = filled([1, 4], 1);
  const token = `hang.${randomBytes(8).toString("hex")}`;
  await withClient([flags.misbehaving, { token }], async (client) => {
    const call = client.compute({ query: row, key: row, value: row }, { signal: AbortSignal.timeout(100) });
    console.log("cancel", (await failure(call)).code);
  });
}

await withClient([flags.server], async (client) => {
  await compute(client);
  await refused(client);
  await busy();
  await session(client);
});
await cancel();
