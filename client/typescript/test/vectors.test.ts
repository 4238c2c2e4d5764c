/** The answers and behaviour that clients in every language have: tests/vectors. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { describe, it } from "node:test";
import type {
  AttentionOptions,
  CallOptions,
  ComputeRequest,
  Session,
  SessionConfig,
  StepItem,
  StepResult,
} from "@attention-service/client";
import { AttentionClient, AttentionError, Tensor, tensor } from "@attention-service/client";
import { digest, fill, filled, MISBEHAVING, MISBEHAVING_HTTP, SERVER, vectors, VECTORS } from "./support.js";

const server = SERVER.skip || VECTORS.skip;
const misbehaving = MISBEHAVING.skip || MISBEHAVING_HTTP.skip || VECTORS.skip;

type Json = Record<string, unknown>;

/** A tensor in protobuf's JSON. */
interface JsonTensor {
  data_type?: string;
  shape: (number | string)[];
  float_values?: (number | string)[];
  data?: string;
}

function fromJson(message: JsonTensor): Tensor {
  const shape = message.shape.map(Number);
  if (message.data === undefined) return tensor(Float32Array.from(message.float_values ?? [], Number), shape);
  const type = (message.data_type ?? "").replace("DATA_TYPE_", "").toLowerCase();
  return new Tensor(type as Tensor["dataType"], shape, new Uint8Array(Buffer.from(message.data, "base64")));
}

const TENSORS: Record<string, string> = {
  query: "query",
  key: "key",
  value: "value",
  mask: "mask",
  past_key: "pastKey",
  past_value: "pastValue",
  indices: "indices",
  // Those of heads are among the options.
  sinks: "rowSinks",
};
const camel = (name: string): string => name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());
/** DATA_TYPE_FLOAT16, CAUSAL_TOP_LEFT and their like, by this client's names. */
const choice = (value: string): string =>
  value.replace(/^(LAYOUT|CAUSAL|SCORES|MATH_MODE|DATA_TYPE)_/, "").toLowerCase();

/** A request of the vectors, as this client takes it. */
function requestOf(message: Json, read: (value: never) => Tensor): unknown {
  const request: Json = {};
  const { options, ...others } = message;
  for (const [name, value] of [...Object.entries(others), ...Object.entries(options ?? {})]) {
    if (name in TENSORS && !Array.isArray(value)) request[TENSORS[name] as string] = read(value as never);
    else if (name === "window") {
      const sides = Object.entries(value as Json).map(([side, keys]) => [side, Number(keys)]);
      request["window"] = Object.fromEntries(sides);
    } else if (Array.isArray(value)) request[camel(name)] = value.map(Number);
    else if (typeof value === "string" && /^[A-Z]/.test(value)) request[camel(name)] = choice(value);
    else request[camel(name)] = typeof value === "string" ? Number(value) : value;
  }
  return request;
}

function told(error: unknown): Json {
  assert.ok(error instanceof AttentionError, String(error));
  return {
    code: error.code,
    ...(error.reason === undefined ? {} : { reason: error.reason }),
    ...(error.fieldViolations[0] ? { field: error.fieldViolations[0].field } : {}),
    ...(error.length === undefined ? {} : { length: error.length }),
  };
}

/** What two numbers of a type may differ by: tests/vectors/README.md. */
function tolerance(type: Tensor["dataType"], expected: number): number {
  const size = Math.abs(expected);
  if (type === "float64") return 1e-14 + 1e-13 * size;
  if (type === "float32") return 1e-6 + 1e-5 * size;
  const [digits, least] = type === "float16" ? [10, -14] : [7, -126];
  const exponent = Math.max(size === 0 ? least : Math.floor(Math.log2(size)), least);
  return 1e-6 + 2 * 2 ** (exponent - digits);
}

function assertClose(name: string, got: Tensor | undefined, wanted: Tensor): void {
  assert.ok(got, name);
  assert.deepEqual(got.shape, wanted.shape, name);
  const expected = wanted.toFloat64Array();
  for (const [i, value] of got.toFloat64Array().entries()) {
    const number = expected[i] as number;
    if (!Number.isFinite(number))
      assert.ok(Object.is(value, number), `${name}[${String(i)}]: ${String(value)}`);
    else {
      const bound = tolerance(wanted.dataType, number);
      assert.ok(
        Math.abs(value - number) <= bound,
        `${name}[${String(i)}]: ${String(value)}, not ${String(number)}`,
      );
    }
  }
}

describe("attention.json", { skip: server }, () => {
  interface Case {
    name: string;
    request: Json;
    response?: Record<string, JsonTensor>;
    error?: { code: string; field: string };
  }
  for (const { name, request, response, error } of vectors<Case>("attention")) {
    it(name, async () => {
      await using client = new AttentionClient(SERVER.value);
      const call = client.compute(requestOf(request, fromJson) as ComputeRequest);
      if (error) {
        await assert.rejects(call, (failure) => {
          const { code, field } = told(failure);
          assert.deepEqual({ code, field }, error);
          return true;
        });
        return;
      }
      const result = await call;
      const { output, log_sum_exp, scores, present_key, present_value } = response ?? {};
      assertClose("output", result.output, fromJson(output as JsonTensor));
      if (log_sum_exp) assertClose("log_sum_exp", result.logSumExp, fromJson(log_sum_exp));
      if (scores) assertClose("scores", result.scores, fromJson(scores));
      if (present_key) assertClose("present_key", result.presentKey, fromJson(present_key));
      if (present_value) assertClose("present_value", result.presentValue, fromJson(present_value));
    });
  }
});

describe("digests.json", { skip: server }, () => {
  interface Case {
    name: string;
    request: Json;
    output_sha256?: string;
    error?: Json;
  }
  for (const { name, request, output_sha256, error } of vectors<Case>("digests")) {
    it(name, async () => {
      await using client = new AttentionClient(SERVER.value);
      const call = client.compute(requestOf(request, fill) as ComputeRequest);
      if (error) await assert.rejects(call, (failure) => (assert.deepEqual(told(failure), error), true));
      else assert.equal(digest((await call).output), output_sha256);
    });
  }
});

describe("sessions.json", { skip: server }, () => {
  interface Step extends Json {
    do: string;
    session: string;
    target?: string;
    layer?: number;
    length?: number;
    items?: Step[];
    error?: Json;
    output_sha256?: string;
    length_then?: number;
    lengths_then?: number[];
  }
  interface Case {
    name: string;
    config: Json;
    steps: Step[];
  }

  const configOf = (config: Json): SessionConfig => {
    const { lease, ...rest } = config;
    const { numLayers, ...others } = requestOf(rest, fill) as Json;
    return {
      ...others,
      ...(lease === undefined ? {} : { leaseMs: Number.parseFloat(lease as string) * 1000 }),
      layers: Number(numLayers ?? 1),
    } as unknown as SessionConfig;
  };
  const itemOf = (step: Step): Omit<StepItem, "session"> => {
    const { key, value, query, mask, options, not_causal, any_length } = step;
    const message = Object.fromEntries(
      Object.entries({ key, value, query, mask, options, not_causal, any_length }).filter(
        ([, part]) => part !== undefined,
      ),
    );
    return { ...(requestOf(message, fill) as AttentionOptions), layer: step.layer ?? 0 };
  };
  const answerOf = (step: Step, result: StepResult | AttentionError | number): Json => {
    if (result instanceof AttentionError) return { error: told(result) };
    if (typeof result === "number") return { length_then: result };
    if (step.output_sha256 === undefined && step.do === "append") return { length_then: result.length };
    return { output_sha256: digest(result.output as Tensor) };
  };
  const expected = ({ error, output_sha256, length_then, lengths_then }: Step): Json => {
    if (error) return { error };
    if (output_sha256 !== undefined) return { output_sha256 };
    return length_then === undefined ? { lengths_then } : { length_then };
  };

  async function play(client: AttentionClient, sessions: Map<string, Session>, step: Step): Promise<void> {
    const find = (name: string): Session => sessions.get(name) as Session;
    if (step.do === "batch") {
      const items = step.items ?? [];
      const results = await client.step(
        items.map((item) => ({ session: find(item.session), ...itemOf(item) })),
      );
      assert.deepEqual(
        results.map((result, i) => answerOf(items[i] as Step, result)),
        items.map(expected),
      );
      return;
    }
    const session = find(step.session);
    const item = itemOf(step) as never;
    let answer: Json;
    try {
      switch (step.do) {
        case "append":
          answer = answerOf(step, await session.append(item));
          break;
        case "attend":
          answer = answerOf(step, await session.attend(item));
          break;
        case "step":
          answer = answerOf(step, await session.step(item));
          break;
        case "fork":
        case "open": {
          const made = step.do === "fork" ? await session.fork() : await client.openSession(session.id);
          sessions.set(step.target as string, made);
          answer = { lengths_then: made.lengths };
          break;
        }
        case "truncate":
          await session.truncate(step.length as number);
          answer = { lengths_then: session.lengths };
          break;
        case "refresh":
          await session.refresh();
          answer = { lengths_then: session.lengths };
          break;
        case "delete":
          await session.delete();
          answer = { lengths_then: undefined };
          break;
        default:
          throw new Error(step.do);
      }
    } catch (error) {
      answer = { error: told(error) };
    }
    assert.deepEqual(answer, expected(step), JSON.stringify(step));
  }

  for (const { name, config, steps } of vectors<Case>("sessions")) {
    it(name, async () => {
      await using client = new AttentionClient(SERVER.value);
      const sessions = new Map([["a", await client.createSession(configOf(config))]]);
      try {
        for (const step of steps) await play(client, sessions, step);
      } finally {
        for (const session of sessions.values()) await session.delete();
      }
    });
  }
});

describe("retries.json", { skip: misbehaving, concurrency: true }, () => {
  interface Case {
    name: string;
    call: string;
    method: string;
    attempts: number;
    result: string;
    reason?: string;
    length?: number;
    least_gaps_ms?: number[];
    same_request_id?: boolean;
    timeout_ms?: number;
    most_ms?: number;
    second?: string;
    length_then?: number;
  }
  interface Attempt {
    method: string;
    ms: number;
    request_id: string;
  }

  const row = filled([1, 4], 1);
  const token = filled([1, 1, 4], 1);
  async function make(client: AttentionClient, wanted: Case): Promise<unknown> {
    const options = { timeoutMs: wanted.timeout_ms ?? 10_000 };
    const kind = wanted.call;
    if (kind === "compute") return client.compute({ query: row, key: row, value: row }, options);
    if (kind === "capabilities") return client.capabilities(options);
    if (kind === "health") return client.health("", options);
    const config = { kvHeads: 1, headSize: 4 };
    if (kind === "create") return client.createSession(config, options);
    const session = await client.createSession(config);
    try {
      return await makeOf(client, session, wanted, options);
    } finally {
      if (wanted.length_then !== undefined) assert.equal(session.length(), wanted.length_then);
    }
  }

  async function makeOf(
    client: AttentionClient,
    session: Session,
    wanted: Case,
    options: CallOptions,
  ): Promise<unknown> {
    const step = { query: token, key: token, value: token };
    switch (wanted.call) {
      case "fork":
        return session.fork("", options);
      case "truncate":
        return session.truncate(0, options);
      case "delete":
        return session.delete(options);
      case "append":
        return session.append({ key: token, value: token }, options);
      case "step_again":
        await session.step(step);
        return session.step(step, options);
      case "step":
        return session.step(step, options);
      case "batch": {
        const other = await client.createSession({ kvHeads: 1, headSize: 4 });
        const items = [session, other].map((of) => ({ session: of, ...step }));
        const [first, second] = await client.step(items, options);
        assert.equal((second as AttentionError).code, wanted.second);
        if (first instanceof AttentionError) throw first;
        return first;
      }
      default:
        throw new Error(wanted.call);
    }
  }

  for (const wanted of vectors<Case>("retries")) {
    it(wanted.name, async () => {
      const nonce = `${wanted.name}.${randomBytes(8).toString("hex")}`;
      await using client = new AttentionClient(MISBEHAVING.value, { token: nonce });
      const begun = performance.now();
      let result: Json = { code: "OK" };
      try {
        await make(client, wanted);
      } catch (error) {
        result = told(error);
      }
      const took = performance.now() - begun;
      const answer = await fetch(`http://${MISBEHAVING_HTTP.value}/attempts?token=${nonce}`);
      const all = (await answer.json()) as Attempt[];
      const attempts = all.filter(({ method }) => method === wanted.method);
      assert.equal(result["code"], wanted.result);
      if (wanted.reason !== undefined) assert.equal(result["reason"], wanted.reason);
      if (wanted.length !== undefined) assert.equal(result["length"], wanted.length);
      assert.equal(attempts.length, wanted.attempts, JSON.stringify(all));
      for (const [i, gap] of (wanted.least_gaps_ms ?? []).entries()) {
        const passed = (attempts[i + 1] as Attempt).ms - (attempts[i] as Attempt).ms;
        assert.ok(passed >= gap, `gap ${String(i)}: ${String(passed)} ms, wanted ${String(gap)}`);
      }
      if (wanted.same_request_id) {
        assert.equal(new Set(attempts.map(({ request_id }) => request_id)).size, 1);
        assert.notEqual(attempts[0]?.request_id, "");
      }
      if (wanted.most_ms !== undefined) assert.ok(took <= wanted.most_ms, `${String(took)} ms`);
    });
  }
});
