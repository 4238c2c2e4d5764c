/** Against the real server: streams, TLS, tokens, servers that end, and many calls at once. */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import dns from "node:dns";
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it, mock } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Code, ComputeRequest } from "@attention-service/client";
import { AttentionClient, AttentionError, bits, bool, tensor } from "@attention-service/client";
import { BINARY, digest, fill, filled, SERVER, startServer } from "./support.js";

const eye = [
  [1, 0],
  [0, 1],
];
const request: ComputeRequest = { query: eye, key: eye, value: eye };
const large = filled([1, 8, 4096, 64], 1);
/** Takes the server seconds. */
const slow: ComputeRequest = { query: large, key: large, value: large };

async function failure(call: Promise<unknown>): Promise<AttentionError> {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof AttentionError, String(error));
    return error;
  }
  assert.fail("the call was answered");
}

async function assertFails(call: Promise<unknown>, code: Code, text?: RegExp): Promise<AttentionError> {
  const error = await failure(call);
  assert.equal(error.code, code, error.message);
  if (text) assert.match(error.message, text);
  return error;
}

describe("calls", { skip: SERVER.skip }, () => {
  it("tell what the server is", async () => {
    await using client = new AttentionClient(SERVER.value);
    assert.equal(await client.health(), "serving");
    assert.equal(await client.health("attention.v1.AttentionService"), "serving");
    await assertFails(client.health("nobody"), "NOT_FOUND");
    const capabilities = await client.capabilities();
    assert.ok(capabilities.dataTypes.includes("bfloat16"));
    assert.ok(capabilities.maxRequestBytes > 2 ** 20);
    assert.equal(capabilities.keyBlock, 256);
  });

  it("answer large requests in pieces, with the bits of one message", async () => {
    await using client = new AttentionClient(SERVER.value);
    const half = (seed: number, tokens: number): ReturnType<typeof fill> =>
      fill({ data_type: "DATA_TYPE_BFLOAT16", shape: [2, 4, tokens, 64], seed });
    const cases: Record<string, ComputeRequest> = {
      bhsd: {
        query: half(1, 3),
        key: half(2, 9000),
        value: half(3, 9000),
        causal: "bottom_right",
        returnLogSumExp: true,
      },
      past: {
        query: filled([1, 5, 4, 64], 1),
        key: filled([1, 3000, 2, 64], 2),
        value: filled([1, 3000, 2, 64], 3),
        pastKey: filled([1, 2, 3000, 64], 4),
        pastValue: filled([1, 2, 3000, 64], 5),
        layout: "bshd",
        causal: "top_left",
        returnLogSumExp: true,
      },
      mask: {
        query: filled([1, 7, 256], 1),
        key: filled([1, 9001, 128], 2),
        value: filled([1, 9001, 128], 3),
        layout: "packed",
        queryHeads: 4,
        kvHeads: 2,
        mask: fill({ data_type: "DATA_TYPE_BOOL", shape: [7, 8000], seed: 4 }),
      },
      matrix: {
        query: filled([9, 256], 1),
        key: filled([5000, 256], 2),
        value: filled([5000, 300], 3),
        returnLogSumExp: true,
      },
      indices: {
        query: filled([1, 4, 3, 64], 1),
        key: filled([1, 4, 9000, 64], 2),
        value: filled([1, 4, 9000, 64], 3),
        indices: [
          [0, 8999, 4000],
          [17, -1, 17],
          [-1, -1, -1],
        ],
        rowSinks: filled([1, 4, 3], 4),
        returnLogSumExp: true,
      },
    };
    for (const [name, one] of Object.entries(cases)) {
      const sent: number[] = [];
      const streamed = await client.compute(one, { onProgress: (bytes, total) => sent.push(bytes / total) });
      assert.equal(sent.at(-1), 1, `${name} was streamed`);
      // With the raw scores it goes as one message.
      const whole = await client.compute({ ...one, returnScores: "raw" });
      assert.equal(digest(streamed.output), digest(whole.output), name);
      if (one.returnLogSumExp) {
        assert.ok(streamed.logSumExp && whole.logSumExp);
        assert.deepEqual(streamed.logSumExp.shape, whole.logSumExp.shape);
        assert.equal(digest(streamed.logSumExp), digest(whole.logSumExp), name);
      }
    }
  });

  it("send a mask of bits in one message, with the answer of one of bools", async () => {
    await using client = new AttentionClient(SERVER.value);
    const truths = Array.from({ length: 2 * 9001 }, (_, i) => i % 3 === 0);
    const one = {
      query: filled([1, 2, 2, 64], 1),
      key: filled([1, 2, 9001, 64], 2),
      value: filled([1, 2, 9001, 64], 3),
    };
    const packed = bits(truths, [2, 9001]);
    const result = await client.compute({ ...one, mask: packed });
    const plain = await client.compute({ ...one, mask: bool(truths, [2, 9001]) });
    assert.equal(digest(result.output), digest(plain.output));
    const open = await client.compute(one);
    assert.notEqual(digest(result.output), digest(open.output));
  });

  it("name fields of a stream as in the request", async () => {
    await using client = new AttentionClient(SERVER.value);
    const key = filled([1, 2, 9000, 64], 2);
    const bad = { query: filled([1, 3, 1, 64], 1), key, value: key };
    const streamed = await assertFails(client.compute(bad), "INVALID_ARGUMENT");
    const whole = await assertFails(client.compute({ ...bad, returnScores: "raw" }), "INVALID_ARGUMENT");
    assert.deepEqual(streamed.fieldViolations, whole.fieldViolations);
    assert.equal(streamed.message, whole.message);
    const bytes = new Uint8Array(9000).fill(1);
    bytes[8999] = 2;
    const mask =
      tensor([[true]]).dataType === "bool"
        ? (await import("@attention-service/client")).bool(bytes, [9000])
        : [];
    const chunk = await assertFails(
      client.compute({ ...bad, query: filled([1, 2, 1, 64], 1), mask }),
      "INVALID_ARGUMENT",
    );
    assert.match(chunk.fieldViolations[0]?.field ?? "", /^mask/);
    assert.match(chunk.message, /^INVALID_ARGUMENT: mask/);
  });

  it("end when their time is over", async () => {
    await using client = new AttentionClient(SERVER.value);
    const begun = performance.now();
    await assertFails(client.compute(slow, { timeoutMs: 1 }), "DEADLINE_EXCEEDED");
    assert.ok(performance.now() - begun < 5000);
    assert.deepEqual((await client.compute(request)).output.shape, [2, 2]);
  });

  it("are cancelled, at once and beforehand", async () => {
    await using client = new AttentionClient(SERVER.value);
    const reason = new Error("enough");
    const stop = new AbortController();
    const call = failure(client.compute(slow, { signal: stop.signal }));
    await sleep(20);
    stop.abort(reason);
    const error = await call;
    assert.equal(error.code, "CANCELLED");
    assert.equal(error.cause, reason);
    await assertFails(client.compute(request, { signal: stop.signal }), "CANCELLED");
    assert.deepEqual((await client.compute(request)).output.shape, [2, 2]);
  });

  it("leave no listeners and no streams behind", async () => {
    await using client = new AttentionClient(SERVER.value);
    const stop = new AbortController();
    // Node warns of more than ten listeners of one signal.
    const warned: Error[] = [];
    const warn = (warning: Error): void => void warned.push(warning);
    process.on("warning", warn);
    const session = await client.createSession({ kvHeads: 1, headSize: 2 });
    const token = tensor([[[1, 0]]]);
    for (let i = 0; i < 50; ++i) {
      await client.compute(request, { signal: stop.signal });
      await session.step({ key: token, value: token, query: token }, { signal: stop.signal });
    }
    await session.delete();
    await sleep(10);
    process.off("warning", warn);
    assert.deepEqual(warned, []);
  });

  it("may be thousands at once", async () => {
    await using client = new AttentionClient(SERVER.value);
    const results = await Promise.all(Array.from({ length: 3000 }, () => client.compute(request)));
    assert.equal(new Set(results.map(({ output }) => digest(output))).size, 1);
  });

  it("take no memory for good", async () => {
    await using client = new AttentionClient(SERVER.value);
    const query = filled([1, 8, 512, 64], 1);
    const memory = async (): Promise<number> => {
      for (let i = 0; i < 40; ++i) await client.compute({ query, key: query, value: query });
      for (let i = 0; i < 3; ++i) {
        global.gc?.();
        await sleep(5);
      }
      const { arrayBuffers, heapUsed } = process.memoryUsage();
      return arrayBuffers + heapUsed;
    };
    const before = await memory();
    const afterwards = await memory();
    // Forty answers that stay would be 40 MiB.
    assert.ok(afterwards - before < 8 * 2 ** 20, `${String(before)}, then ${String(afterwards)}`);
  });

  it("refuse answers that are larger than wanted", async () => {
    await using client = new AttentionClient(SERVER.value, { maxReceiveBytes: 1000 });
    await assertFails(client.compute(slow), "RESOURCE_EXHAUSTED");
    assert.deepEqual((await client.compute(request)).output.shape, [2, 2]);
  });

  it("name arguments that cannot be sent", async () => {
    await using client = new AttentionClient(SERVER.value);
    const reject = (bad: object, text: RegExp): Promise<void> =>
      assert.rejects(client.compute({ ...request, ...bad }), (error) => {
        assert.ok(error instanceof TypeError || error instanceof RangeError);
        assert.match(error.message, text);
        return true;
      });
    await reject({ query: undefined }, /^query: got undefined/);
    await reject({ key: new Float32Array(4) }, /^key: got object, wanted a Tensor/);
    await reject({ value: [[1], [1, 2]] }, /^value: data: got lists of different lengths/);
    await reject({ causal: "yes" }, /^causal: got yes, wanted one of top_left/);
    await reject({ causal: "constructor" }, /^causal: got constructor/);
    await reject({ isCausal: true }, /^isCausal: unknown, wanted one of query, key, value, .*causal/);
    await reject({ validLengths: [1.5] }, /^validLengths: got 1.5/);
    await reject({ scale: "1" }, /^scale: got string/);
    await assert.rejects(client.compute(request, { timeoutMs: 0 }), /^RangeError: timeoutMs: got 0/);
    await assert.rejects(client.compute(request, { maxAttempts: 0.5 }), /maxAttempts: got 0.5/);
    for (const name of ["two words", "connection", "Content-Type", ":path", "grpc-timeout"]) {
      await assert.rejects(
        client.compute(request, { headers: { [name]: "x" } }),
        /^TypeError: headers: got the name/,
      );
    }
    for (const value of ["a\nb", "ü", 5]) {
      const headers = { "x-mine": value } as Record<string, string>;
      await assert.rejects(client.health("", { headers }), /^TypeError: headers: got a value of x-mine/);
    }
    await using other = new AttentionClient(SERVER.value);
    const source = await other.createSession({ kvHeads: 1, headSize: 2 });
    await assert.rejects(client.forkSessions([{ source }]), /^TypeError: source: got a session of another/);
    await source.delete();
    assert.throws(() => new AttentionClient("somewhere"), /wanted HOST:PORT/);
    assert.throws(() => new AttentionClient("a:b:1"), /wanted HOST:PORT/);
  });

  it("fail once the client is closed", async () => {
    const client = new AttentionClient(SERVER.value);
    const call = failure(client.compute(slow));
    await sleep(20);
    await client.close();
    assert.equal((await call).code, "CANCELLED");
    await assertFails(client.compute(request), "CANCELLED", /closed/);
    await client.close();
  });

  it("keep no process alive", () => {
    const script = `
      import { AttentionClient, tensor } from "@attention-service/client";
      const client = new AttentionClient("${SERVER.value}");
      const session = await client.createSession({ kvHeads: 1, headSize: 2 });
      const token = tensor([[[1, 0]]]);
      await session.step({ key: token, value: token, query: token });
      await session.step({ key: token, value: token, query: token });
      console.log("done");`;
    const { stdout, status, signal } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
      timeout: 10_000,
      encoding: "utf8",
    });
    assert.deepEqual([stdout, status, signal], ["done\n", 0, null]);
  });
});

describe("sessions", { skip: SERVER.skip }, () => {
  it("append once what is appended again, in pieces too", async () => {
    await using client = new AttentionClient(SERVER.value);
    await using session = await client.createSession({ kvHeads: 2, headSize: 64, dataType: "float16" });
    // 4 pieces.
    const key = filled([2, 30_000, 64], 1);
    const stop = new AbortController();
    const call = session.append(
      { key, value: key },
      {
        signal: stop.signal,
        onProgress: (bytes, total) => {
          if (bytes > total / 3) stop.abort();
        },
      },
    );
    const error = await assertFails(call, "CANCELLED", /the first \d+ of 30000 tokens were appended/);
    assert.equal(error.name, "AttentionError");
    assert.ok(session.length() > 0 && session.length() < 30_000);
    assert.equal(await session.append({ key, value: key }), 30_000);
    await session.refresh();
    assert.equal(session.length(), 30_000);
    const { output } = await session.attend({
      query: fill({ data_type: "DATA_TYPE_FLOAT16", shape: [2, 1, 64], seed: 9 }),
    });
    const whole = fill({ data_type: "DATA_TYPE_FLOAT16", shape: [1, 2, 30_000, 64], seed: 1 });
    const query = fill({ data_type: "DATA_TYPE_FLOAT16", shape: [1, 2, 1, 64], seed: 9 });
    assert.equal(digest(output), digest((await client.compute({ query, key: whole, value: whole })).output));
  });

  it("attend to the tokens that indices name, with a sink for each row", async () => {
    await using client = new AttentionClient(SERVER.value);
    await using session = await client.createSession({ kvHeads: 2, headSize: 16 });
    await session.append({ key: filled([2, 7, 16], 1), value: filled([2, 7, 16], 2) });
    const query = filled([4, 2, 16], 3);
    const rowSinks = tensor(Float32Array.of(0, 1, 2, 3, -Infinity, 0.5, -1, 4), [4, 2]);
    // As a mask says it.
    const seen = (...lists: number[][]): boolean[] =>
      lists.flatMap((list) => Array.from({ length: 7 }, (_, token) => list.includes(token)));
    const lists = [
      [6, 0, 6],
      [3, -1, -1],
    ];
    const mask = bool(seen(...lists), [2, 7]);
    const notCausal = true;
    const listed = await session.attend({ query, indices: lists, rowSinks, notCausal });
    const masked = await session.attend({ query, mask, rowSinks, notCausal });
    assert.equal(digest(listed.output), digest(masked.output));
    const withoutSinks = await session.attend({ query, indices: lists, notCausal });
    assert.notEqual(digest(listed.output), digest(withoutSinks.output));
    const { output } = await session.attend({ query, mask: bits(seen(...lists), [2, 7]), notCausal });
    assert.equal(digest(output), digest(withoutSinks.output));

    // In a step, with lists for each head: the new token is one of those counted.
    const token = { key: filled([2, 1, 16], 4), value: filled([2, 1, 16], 5), query: filled([4, 1, 16], 6) };
    const heads = tensor(BigInt64Array.of(7n, 0n, 7n, 1n, 7n, 2n, -1n, 3n), [4, 1, 2]);
    const step = await session.step({ ...token, indices: heads, rowSinks: [[0], [1], [2], [3]] });
    const same = await session.attend({
      query: token.query,
      mask: bool(
        [0, 1, 2, 3].flatMap((h) =>
          Array.from({ length: 8 }, (_, token) => token === h || (token === 7 && h < 3)),
        ),
        [4, 1, 8],
      ),
      sinks: [0, 1, 2, 3],
    });
    assert.equal(digest(step.output), digest(same.output));
    const wrong = await assertFails(
      session.attend({ query: token.query, indices: [[8]] }),
      "INVALID_ARGUMENT",
    );
    assert.match(wrong.fieldViolations[0]?.field ?? "", /^indices/);
    const both = session.attend({ query: token.query, sinks: [0, 0, 0, 0], rowSinks: [[0], [0], [0], [0]] });
    await assertFails(both, "INVALID_ARGUMENT", /sinks/);
  });

  it("append one at a time to a layer", async () => {
    await using client = new AttentionClient(SERVER.value);
    await using session = await client.createSession({ kvHeads: 1, headSize: 2, layers: 2 });
    const token = { key: tensor([[[1, 0]]]), value: tensor([[[1, 0]]]) };
    const first = session.append(token);
    const other = session.append({ ...token, layer: 1 });
    const error = await assertFails(session.append(token), "ABORTED", /under way in this client/);
    assert.deepEqual([error.reason, error.length], ["LENGTH_CONFLICT", 0]);
    assert.deepEqual(await Promise.all([first, other]), [1, 1]);
    // A wrong argument leaves nothing claimed.
    await assert.rejects(session.append({ key: [[1], []] as number[][] }), RangeError);
    await assert.rejects(session.step({ ...token, query: [[1], []] as number[][] }), RangeError);
    assert.equal(await session.append(token), 2);
  });

  it("tell one failure of many apart", async () => {
    await using client = new AttentionClient(SERVER.value);
    await using good = await client.createSession({ kvHeads: 1, headSize: 2 });
    const gone = await client.createSession({ kvHeads: 1, headSize: 2 });
    await client.deleteSession(gone.id);
    const token = tensor([[[1, 0]]]);
    const all = { key: token, value: token, query: token };
    const [first, second, third] = await client.step([
      { session: good, ...all },
      { session: gone, ...all },
      { session: good, layer: 0, ...all },
    ]);
    assert.ok(first && !(first instanceof AttentionError));
    assert.deepEqual(first.output?.shape, [1, 1, 2]);
    assert.ok(second instanceof AttentionError);
    assert.equal(second.reason, "SESSION_UNKNOWN");
    assert.ok(third instanceof AttentionError);
    assert.equal(third.reason, "LENGTH_CONFLICT");
    // Known from now on, without asking.
    await assertFails(gone.attend({ query: token }), "NOT_FOUND");
    await gone.delete();
    assert.deepEqual(await client.step([]), []);
  });

  it("are kept while something refers to them", async () => {
    await using client = new AttentionClient(SERVER.value);
    const session = await client.createSession({ kvHeads: 1, headSize: 2, leaseMs: 1000 });
    await sleep(2600);
    assert.ok((await client.listSessions()).some(({ id }) => id === session.id));
    await session.delete();
  });

  it("step at the same time", async () => {
    await using client = new AttentionClient(SERVER.value);
    const sessions = await Promise.all(
      Array.from({ length: 40 }, () => client.createSession({ kvHeads: 1, headSize: 2 })),
    );
    const token = tensor([[[1, 0]]]);
    for (let round = 1; round <= 3; ++round) {
      const results = await Promise.all(
        sessions.map((session) => session.step({ key: token, value: token, query: token })),
      );
      assert.ok(results.every(({ length }) => length === round));
    }
    await Promise.all(sessions.map((session) => session.delete()));
  });

  it("cut a step short without losing the session", async () => {
    await using client = new AttentionClient(SERVER.value);
    await using session = await client.createSession({ kvHeads: 1, headSize: 2 });
    const token = tensor([[[1, 0]]]);
    const all = { key: token, value: token, query: token };
    await session.step(all);
    for (const timeoutMs of [0.01, 0.3, 0.6, 1, 1.5]) {
      // It may be done or not; the same again is there once.
      await session.step(all, { timeoutMs }).catch((error: unknown) => {
        assert.ok(error instanceof AttentionError);
        assert.equal(error.code, "DEADLINE_EXCEEDED");
      });
      const before = session.length();
      await session.step(all);
      assert.equal(session.length(), before + 1);
    }
    const known = session.length();
    await session.refresh();
    assert.equal(session.length(), known);
  });
});

describe("servers of the test's own", { skip: BINARY.skip }, () => {
  const folder = mkdtempSync(join(tmpdir(), "attention-"));
  after(() => {
    rmSync(folder, { recursive: true });
  });
  const file = (name: string): string => join(folder, name);
  const sign = (name: string, subject: string, ...more: string[]): void => {
    const arguments_ = [
      "req",
      "-x509",
      "-newkey",
      "ec",
      "-pkeyopt",
      "ec_paramgen_curve:prime256v1",
      "-nodes",
      "-days",
      "2",
    ];
    const out = ["-keyout", file(`${name}.key`), "-out", file(`${name}.pem`), "-subj", subject];
    execFileSync("openssl", [...arguments_, ...out, ...more], { stdio: "ignore" });
  };

  it("speak TLS, and want a certificate", async () => {
    sign("server", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost");
    sign("client", "/CN=client");
    const server = await startServer(
      `--tls-cert=${file("server.pem")}`,
      `--tls-key=${file("server.key")}`,
      `--tls-client-ca=${file("client.pem")}`,
    );
    try {
      const ca = readFileSync(file("server.pem"));
      const mine = { cert: readFileSync(file("client.pem")), key: readFileSync(file("client.key")) };
      const ask = async (
        options: ConstructorParameters<typeof AttentionClient>[1],
        address = server.address,
      ) => {
        await using client = new AttentionClient(address, { maxAttempts: 1, ...options });
        return (await client.compute(request)).output.shape;
      };
      assert.deepEqual(await ask({ tls: { ca, ...mine } }), [2, 2]);
      assert.deepEqual(
        await ask({ tls: { ca, ...mine } }, server.address.replace("127.0.0.1", "localhost")),
        [2, 2],
      );
      await assertFails(ask({ tls: { ca } }), "UNAVAILABLE", /may want a certificate of the client/);
      await assertFails(ask({ tls: true }), "UNAVAILABLE", /certificate was refused: self-signed/);
      await assertFails(ask({ tls: { ca: mine.cert } }), "UNAVAILABLE", /certificate was refused/);
      await assertFails(ask({}), "UNAVAILABLE", /closed the connection at once: it may want TLS/);
      await assertFails(
        ask({ tls: { ca, ...mine, serverName: "elsewhere" } }),
        "UNAVAILABLE",
        /not for this address/,
      );
      assert.throws(
        () => new AttentionClient(server.address, { tls: { ca, cert: mine.cert } }),
        /one of cert and key/,
      );
    } finally {
      await server.kill("SIGKILL");
    }
    if (!SERVER.skip) {
      await using client = new AttentionClient(SERVER.value, { tls: true, maxAttempts: 1 });
      await assertFails(client.compute(request), "UNAVAILABLE", /does not speak TLS|cannot be reached/);
    }
  });

  it("know tokens, and new ones", async () => {
    const hash = (token: string): string => createHash("sha256").update(token).digest("hex");
    writeFileSync(file("tokens"), `${hash("first.secret")} tenant\n${hash("second.secret")} tenant\n`);
    writeFileSync(file("token"), "first.secret\n");
    const server = await startServer(`--tokens=${file("tokens")}`);
    try {
      await using none = new AttentionClient(server.address);
      const missing = await assertFails(none.compute(request), "UNAUTHENTICATED");
      assert.equal(missing.reason, "TOKEN_MISSING");
      await using wrong = new AttentionClient(server.address, { token: "wrong.secret" });
      const unknown = await assertFails(wrong.compute(request), "UNAUTHENTICATED");
      assert.equal(unknown.reason, "TOKEN_UNKNOWN");
      const { inspect } = await import("node:util");
      const shown =
        inspect([unknown, wrong], { depth: 20, showHidden: true }) +
        String(unknown.stack) +
        JSON.stringify([unknown, wrong]);
      assert.doesNotMatch(shown, /wrong\.secret/);

      await using client = new AttentionClient(server.address, { tokenFile: file("token") });
      assert.deepEqual((await client.compute(request)).output.shape, [2, 2]);
      writeFileSync(file("token.new"), "nobody.secret\n");
      renameSync(file("token.new"), file("token"));
      await sleep(1050);
      await assertFails(client.compute(request), "UNAUTHENTICATED");
      // A file without a token leaves the last one in use, as does one that is not there.
      writeFileSync(file("token.new"), "second.secret\n");
      renameSync(file("token.new"), file("token"));
      await sleep(1050);
      await client.compute(request);
      rmSync(file("token"));
      await sleep(1050);
      await client.compute(request);
    } finally {
      await server.kill("SIGKILL");
    }
    assert.throws(
      () => new AttentionClient("127.0.0.1:1", { token: "a b" }),
      (error) => {
        assert.ok(error instanceof TypeError);
        assert.doesNotMatch(error.message, /a b/);
        return true;
      },
    );
    assert.throws(() => new AttentionClient("127.0.0.1:1", { tokenFile: file("nowhere") }), /ENOENT/);
    assert.throws(() => new AttentionClient("127.0.0.1:1", { token: "a", tokenFile: "b" }), /wanted one/);
  });

  const outside = Object.values(networkInterfaces())
    .flat()
    .find((one) => one && !one.internal && one.family === "IPv4");
  it(
    "get no token in plain text beyond loopback",
    { skip: outside ? false : "no address beyond loopback" },
    async () => {
      const address = (outside as { address: string }).address;
      assert.throws(
        () => new AttentionClient(`${address}:1`, { token: "secret" }),
        (error) => error instanceof AttentionError && error.code === "INVALID_ARGUMENT",
      );
      const server = await startServer(`--listen=${address}:0`, "--allow-plaintext");
      try {
        await using open = new AttentionClient(server.address, {
          token: "secret",
          allowPlaintextToken: true,
        });
        assert.deepEqual((await open.compute(request)).output.shape, [2, 2]);
        await using without = new AttentionClient(server.address);
        assert.deepEqual((await without.compute(request)).output.shape, [2, 2]);
        // A name tells where it leads only once there is a connection.
        const lookup = mock.method(
          dns,
          "lookup",
          (_: string, options: { all?: boolean }, done: (...found: unknown[]) => void) => {
            if (options.all) done(null, [{ address, family: 4 }]);
            else done(null, address, 4);
          },
        );
        await using named = new AttentionClient(server.address.replace(address, "attention.example"), {
          token: "secret",
        });
        await assertFails(named.compute(request, { maxAttempts: 1 }), "FAILED_PRECONDITION", /was not sent/);
        await assertFails(named.compute(request, { maxAttempts: 1 }), "FAILED_PRECONDITION", /was not sent/);
        assert.ok(lookup.mock.callCount() > 0);
        lookup.mock.restore();
      } finally {
        await server.kill("SIGKILL");
      }
    },
  );

  it("listen on Unix sockets", async () => {
    const server = await startServer(`--listen=unix:${file("socket")}`);
    try {
      assert.ok(existsSync(file("socket")));
      await using client = new AttentionClient(`unix:${file("socket")}`, { token: "secret" });
      assert.deepEqual((await client.compute(request)).output.shape, [2, 2]);
    } finally {
      await server.kill("SIGKILL");
    }
  });

  it("are reached past any proxy", async () => {
    const server = await startServer();
    const variables = ["http_proxy", "https_proxy", "grpc_proxy"] as const;
    const before = variables.map((name) => process.env[name]);
    for (const name of variables) process.env[name] = "http://127.0.0.1:1";
    try {
      await using client = new AttentionClient(server.address);
      assert.deepEqual((await client.compute(request)).output.shape, [2, 2]);
    } finally {
      for (const [i, name] of variables.entries()) {
        if (before[i] === undefined) Reflect.deleteProperty(process.env, name);
        else process.env[name] = before[i];
      }
      await server.kill("SIGKILL");
    }
  });

  it("may be killed in the middle, and come back", async () => {
    const server = await startServer();
    await using client = new AttentionClient(server.address, { maxAttempts: 1 });
    await client.compute(request);
    const calls = [
      failure(client.compute(slow)),
      failure(client.compute({ ...slow, query: filled([1, 8, 1, 64], 1) })),
    ];
    await sleep(10);
    await server.kill("SIGKILL");
    assert.equal((await calls[0])?.code, "UNAVAILABLE");
    // This one may have been answered; then there is no failure to look at.
    await Promise.allSettled(calls);
    const refused = await assertFails(client.compute(request), "UNAVAILABLE", /cannot be reached/);
    assert.equal(refused.reason, undefined);
    const again = await startServer(`--listen=${server.address}`);
    try {
      assert.deepEqual((await client.compute(request)).output.shape, [2, 2]);
      await using patient = new AttentionClient(server.address);
      const session = await patient.createSession({ kvHeads: 1, headSize: 2 });
      const token = tensor([[[1, 0]]]);
      await session.step({ key: token, value: token, query: token });
      await again.kill("SIGKILL");
      const third = await startServer(`--listen=${server.address}`);
      // The stream that was kept is gone, and so is the session.
      const error = await failure(session.step({ key: token, value: token, query: token }));
      assert.equal(error.reason, "SESSION_UNKNOWN", error.message);
      await third.kill("SIGKILL");
    } finally {
      await again.kill("SIGKILL");
    }
  });

  it("drain, and calls go on where there is another", async () => {
    const server = await startServer("--shutdown-grace=5s");
    await using client = new AttentionClient(server.address, { maxAttempts: 1 });
    const query = filled([1, 8, 1024, 64], 1);
    const running = client.compute({ query, key: query, value: query });
    await sleep(5);
    const ended = server.kill("SIGTERM");
    // What was accepted is finished; what comes later is told so, or finds nobody.
    await running.catch((error: unknown) => {
      assert.ok(error instanceof AttentionError && error.code === "UNAVAILABLE");
    });
    await ended;
    const next = await startServer(`--listen=${server.address}`);
    try {
      assert.deepEqual((await client.compute(request)).output.shape, [2, 2]);
    } finally {
      await next.kill("SIGKILL");
    }
  });

  it("close idle streams, and steps go on", async () => {
    const server = await startServer("--default-deadline=1s", "--max-connection-age=2s");
    try {
      await using client = new AttentionClient(server.address, { maxAttempts: 1 });
      await using session = await client.createSession({ kvHeads: 1, headSize: 2 });
      const token = tensor([[[1, 0]]]);
      for (let i = 1; i <= 3; ++i) {
        assert.equal((await session.step({ key: token, value: token, query: token })).length, i);
        await sleep(1300);
      }
    } finally {
      await server.kill("SIGKILL");
    }
  });
});
