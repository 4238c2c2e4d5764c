/** Against servers that answer wrongly, late or not at all. */

import assert from "node:assert/strict";
import type { IncomingHttpHeaders, Http2Server, ServerHttp2Stream } from "node:http2";
import { constants, createServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { createServer as createTcpServer } from "node:net";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import type { CallOptions, Code } from "@attention-service/client";
import { AttentionClient, AttentionError, tensor } from "@attention-service/client";
import { AttentionClient as WebClient } from "@attention-service/client/web";
import {
  ComputeAttentionResponseSchema,
  DataType,
  StreamAttentionResponseSchema,
} from "../src/gen/attention/v1/attention_pb.js";
import { CreateSessionResponseSchema, StepResponseSchema } from "../src/gen/attention/v1/session_pb.js";
import { filled } from "./support.js";

type Answer = (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void;

const eye = tensor([
  [1, 0],
  [0, 1],
]);
const request = { query: eye, key: eye, value: eye };
const output = { dataType: DataType.FLOAT32, shape: [2n, 2n], data: eye.bytes };

/** A server that answers each call so. */
async function withServer(
  answer: Answer,
  use: (client: AttentionClient, server: Http2Server) => Promise<void>,
): Promise<void> {
  const server = createServer();
  server.on("stream", (stream, headers) => {
    stream.on("error", () => undefined);
    answer(stream, headers);
  });
  server.on("session", (session) => session.on("error", () => undefined));
  const sessions = new Set<{ destroy(): void }>();
  server.on("session", (session) => sessions.add(session));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const client = new AttentionClient(`127.0.0.1:${String((server.address() as AddressInfo).port)}`, {
    timeoutMs: 5000,
  });
  try {
    await use(client, server);
  } finally {
    await client.close();
    for (const session of sessions) session.destroy();
    server.close();
  }
}

function frame(bytes: Uint8Array, flags = 0): Buffer {
  const head = Buffer.alloc(5);
  head[0] = flags;
  head.writeUInt32BE(bytes.byteLength, 1);
  return Buffer.concat([head, bytes]);
}

/** Answers with these bytes, then with these trailers. */
function reply(bytes: Uint8Array, trailers: Record<string, string> = { "grpc-status": "0" }): Answer {
  return (stream) => {
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => {
      stream.sendTrailers(trailers);
    });
    stream.end(bytes);
    stream.resume();
  };
}

const computed = (message: object): Buffer =>
  frame(toBinary(ComputeAttentionResponseSchema, create(ComputeAttentionResponseSchema, message)));

async function assertFails(call: Promise<unknown>, code: Code, text: RegExp): Promise<AttentionError> {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof AttentionError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, text);
    return error;
  }
  assert.fail("the call was answered");
}

describe("answers that are wrong", () => {
  const answers: Record<string, readonly [Answer, Code, RegExp]> = {
    "no message": [reply(Buffer.alloc(0)), "INTERNAL", /malformed: got none/],
    "two messages": [
      reply(Buffer.concat([computed({ output }), computed({ output })])),
      "INTERNAL",
      /malformed: got several/,
    ],
    "half a message": [reply(computed({ output }).subarray(0, 20)), "INTERNAL", /in the middle of a message/],
    "half a prefix": [reply(Buffer.alloc(3)), "INTERNAL", /in the middle of a message/],
    "no protobuf": [reply(frame(Buffer.from("\xff\xff\xff"))), "INTERNAL", /malformed/],
    "no output": [reply(computed({})), "INTERNAL", /malformed: output: got none/],
    "another shape": [
      reply(computed({ output: { ...output, shape: [4n, 1n] } })),
      "INTERNAL",
      /malformed: output: got float32 \(4, 1\)/,
    ],
    "too few bytes": [
      reply(computed({ output: { ...output, data: eye.bytes.subarray(4) } })),
      "INTERNAL",
      /got 12 bytes/,
    ],
    "a shape that overflows": [
      reply(computed({ output: { ...output, shape: [2n ** 62n, 2n ** 62n] } })),
      "INTERNAL",
      /malformed/,
    ],
    "a negative shape": [
      reply(computed({ output: { ...output, shape: [-2n, -2n] } })),
      "INTERNAL",
      /malformed/,
    ],
    "another type": [
      reply(computed({ output: { ...output, dataType: 7 } })),
      "INTERNAL",
      /malformed: output: got int32/,
    ],
    "an unknown type": [reply(computed({ output: { ...output, dataType: 99 } })), "INTERNAL", /unknown type/],
    "a compressed message": [reply(Buffer.concat([frame(Buffer.alloc(3), 1)])), "INTERNAL", /compressed/],
    "no status": [reply(computed({ output }), { other: "1" }), "UNKNOWN", /^UNKNOWN/],
    "an unreadable status": [reply(Buffer.alloc(0), { "grpc-status": "x" }), "UNKNOWN", /^UNKNOWN/],
    "a status beyond all codes": [reply(Buffer.alloc(0), { "grpc-status": "99" }), "UNKNOWN", /^UNKNOWN/],
    "unreadable details": [
      reply(Buffer.alloc(0), {
        "grpc-status": "9",
        "grpc-message": "50%",
        "grpc-status-details-bin": "AAA!",
      }),
      "FAILED_PRECONDITION",
      /FAILED_PRECONDITION: 50%/,
    ],
    "an escaped message": [
      reply(Buffer.alloc(0), { "grpc-status": "9", "grpc-message": "%E2%82%AC%20%25" }),
      "FAILED_PRECONDITION",
      /: € %/,
    ],
    "HTTP 404": [
      (stream) => {
        stream.respond({ ":status": 404 });
        stream.end("not here");
      },
      "UNIMPLEMENTED",
      /HTTP status 404/,
    ],
    "a reset": [
      (stream) => {
        stream.close(constants.NGHTTP2_INTERNAL_ERROR);
      },
      "INTERNAL",
      /HTTP\/2 code 2/,
    ],
    "a cancelled call": [
      (stream) => {
        stream.close(constants.NGHTTP2_CANCEL);
      },
      "CANCELLED",
      /HTTP\/2 code 8/,
    ],
  };
  for (const [name, [answer, code, text]] of Object.entries(answers)) {
    it(name, () =>
      withServer(answer, async (client) => {
        await assertFails(client.compute(request, { maxAttempts: 1 }), code, text);
      }),
    );
  }

  it("what was not asked for is left out", () =>
    withServer(reply(computed({ output, scores: output })), async (client) => {
      const result = await client.compute(request);
      assert.deepEqual([result.scores, result.timing.computeUs], [undefined, 0]);
      await assertFails(
        client.compute({ ...request, returnLogSumExp: true }),
        "INTERNAL",
        /log_sum_exp: got none/,
      );
    }));

  it("arrive byte by byte", () =>
    withServer(
      (stream) => {
        stream.respond({ ":status": 200 }, { waitForTrailers: true });
        stream.on("wantTrailers", () => {
          stream.sendTrailers({ "grpc-status": "0" });
        });
        stream.resume();
        void (async () => {
          for (const byte of computed({ output })) {
            await new Promise((resolve) => stream.write(Uint8Array.of(byte), resolve));
            await sleep(1);
          }
          stream.end();
        })();
      },
      async (client) => {
        assert.deepEqual((await client.compute(request)).output.toArray(), eye.toArray());
      },
    ));

  it("rows of a stream that are too many, too few or of another shape", async () => {
    const key = filled([1, 1, 9000, 64], 1);
    const large = { query: filled([1, 1, 2, 64], 1), key, value: key };
    const rows = (n: number, last: number): object => ({
      output: { dataType: 1, shape: [1n, 1n, BigInt(n), BigInt(last)], data: new Uint8Array(n * last * 4) },
    });
    const part = (message: object): Buffer =>
      frame(toBinary(StreamAttentionResponseSchema, create(StreamAttentionResponseSchema, message)));
    for (const [parts, text] of [
      [[rows(1, 64)], /got 1 rows of 2/],
      [[rows(1, 64), rows(2, 64)], /got rows \(1, 1, 2, 64\)/],
      [[rows(2, 63)], /got rows/],
      [[{}], /got 0 rows of 2/],
    ] as const) {
      await withServer(reply(Buffer.concat(parts.map(part))), async (client) => {
        await assertFails(client.compute(large), "INTERNAL", text);
      });
    }
    await withServer(reply(Buffer.concat([rows(1, 64), rows(1, 64), {}].map(part))), async (client) => {
      assert.deepEqual((await client.compute(large)).output.shape, [1, 1, 2, 64]);
    });
  });

  it("sessions that do not know how many layers they have", () =>
    withServer(
      reply(
        frame(
          toBinary(
            CreateSessionResponseSchema,
            create(CreateSessionResponseSchema, {
              session: { id: "a", config: { numLayers: 2n }, lengths: [0n] },
            }),
          ),
        ),
      ),
      async (client) => {
        await assertFails(
          client.createSession({ kvHeads: 1, headSize: 2 }),
          "INTERNAL",
          /2 layers with 1 lengths/,
        );
      },
    ));

  it("results of a step that are not one for each item", () =>
    withServer(
      (stream, headers) => {
        const path = headers[":path"] ?? "";
        if (path.endsWith("CreateSession")) {
          const session = { id: "a", config: { numLayers: 1n }, lengths: [0n], incarnation: 1n };
          reply(
            frame(toBinary(CreateSessionResponseSchema, create(CreateSessionResponseSchema, { session }))),
          )(stream, headers);
        } else
          reply(frame(toBinary(StepResponseSchema, create(StepResponseSchema, { results: [{}, {}] }))))(
            stream,
            headers,
          );
      },
      async (client) => {
        const session = await client.createSession({ kvHeads: 1, headSize: 2 });
        await assertFails(session.attend({ query: [[[1, 0]]] }), "INTERNAL", /2 results of 1 items/);
      },
    ));
});

describe("servers that do not answer", () => {
  const hang: Answer = (stream) => {
    // Reads nothing: what is sent stays on its way.
    stream.pause();
  };
  const key = filled([1, 1, 100_000, 64], 1);
  const large = { query: filled([1, 1, 1, 64], 1), key, value: key };

  for (const [name, call] of Object.entries({
    "a small call": request,
    "a stream that nobody reads": large,
    "a message that nobody reads": { ...large, returnScores: "raw" as const },
  })) {
    it(`${name}: its deadline ends it`, () =>
      withServer(hang, async (client) => {
        const begun = performance.now();
        await assertFails(client.compute(call, { timeoutMs: 150 }), "DEADLINE_EXCEEDED", /within 150 ms/);
        assert.ok(performance.now() - begun < 2000);
      }));

    it(`${name}: to cancel it reaches the server`, async () => {
      let reset: (code: number) => void = () => undefined;
      const code = new Promise<number>((resolve) => {
        reset = resolve;
      });
      await withServer(
        (stream) => {
          stream.pause();
          stream.on("close", () => {
            reset(stream.rstCode);
          });
        },
        async (client) => {
          await assertFails(
            client.compute(call, { signal: AbortSignal.timeout(100) }),
            "CANCELLED",
            /the caller/,
          );
          assert.equal(await code, constants.NGHTTP2_CANCEL);
        },
      );
    });
  }

  it("refuse while the message is still on its way", () =>
    withServer(
      (stream) => {
        stream.respond({ ":status": 200, "grpc-status": "8", "grpc-message": "no" }, { endStream: true });
      },
      async (client) => {
        await assertFails(client.compute({ ...large, returnScores: "raw" }), "RESOURCE_EXHAUSTED", /: no/);
        await assertFails(client.compute(large), "RESOURCE_EXHAUSTED", /: no/);
      },
    ));

  it("fall back to one message where streams are unknown, and remember it", async () => {
    const paths: string[] = [];
    const shape = [1n, 1n, 1n, 64n];
    await withServer(
      (stream, headers) => {
        paths.push(String(headers[":path"]).split("/")[2] ?? "");
        if (paths.at(-1) === "StreamAttention") {
          stream.respond({ ":status": 200, "grpc-status": "12" }, { endStream: true });
        } else
          reply(computed({ output: { dataType: 1, shape, data: new Uint8Array(256) } }))(stream, headers);
      },
      async (client) => {
        await client.compute(large);
        await client.compute(large);
      },
    );
    assert.deepEqual(paths, ["StreamAttention", "ComputeAttention", "ComputeAttention"]);
  });

  it("accept connections and say nothing", async () => {
    const sockets = new Set<{ destroy(): void }>();
    const server = createTcpServer((socket) => sockets.add(socket));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
    const client = new AttentionClient(address);
    await assertFails(client.compute(request, { timeoutMs: 200 }), "DEADLINE_EXCEEDED", /within 200/);
    await client.close();
    // With TLS there is not even a connection.
    const secure = new AttentionClient(address, { tls: true });
    const begun = performance.now();
    await assertFails(secure.compute(request, { timeoutMs: 200 }), "DEADLINE_EXCEEDED", /within 200/);
    await assertFails(
      secure.compute(request, { signal: AbortSignal.timeout(100) }),
      "CANCELLED",
      /the caller/,
    );
    const waiting = assertFails(secure.compute(request), "CANCELLED", /closed/);
    await sleep(20);
    await secure.close();
    await waiting;
    assert.ok(performance.now() - begun < 5000);
    for (const socket of sockets) socket.destroy();
    server.close();
  });

  it("speak no HTTP/2", async () => {
    const server = createTcpServer((socket) => {
      socket.on("error", () => undefined);
      socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const client = new AttentionClient(`127.0.0.1:${String((server.address() as AddressInfo).port)}`, {
      timeoutMs: 3000,
    });
    await assertFails(
      client.compute(request, { maxAttempts: 1 }),
      "UNAVAILABLE",
      /the server does not speak gRPC on this port/,
    );
    await client.close();
    server.close();
  });
});

describe("what fetch() throws in a browser", () => {
  const failing = (waitMs: number): Promise<unknown> => {
    const client = new WebClient("http://127.0.0.1:1", {
      // So busy that no timer goes off.
      fetch: () => {
        for (const end = performance.now() + waitMs; performance.now() < end;);
        return Promise.reject(new TypeError("Failed to fetch"));
      },
    });
    return client.compute(request, { timeoutMs: 20, maxAttempts: 1 });
  };

  it("is a deadline where the time is over, else no connection", async () => {
    await assertFails(failing(40), "DEADLINE_EXCEEDED", /no answer within 20 ms/);
    await assertFails(failing(0), "UNAVAILABLE", /cannot be reached/);
  });
});

describe("what a call sends", () => {
  /** The headers of a call of a client with these options. */
  async function headersOf(options: CallOptions): Promise<IncomingHttpHeaders> {
    let seen: IncomingHttpHeaders = {};
    await withServer(
      (stream, headers) => {
        seen = headers;
        let bytes = 0;
        stream.on("data", (chunk: Buffer) => {
          bytes += chunk.byteLength;
        });
        stream.on("end", () => {
          seen = { ...seen, received: String(bytes) };
          reply(computed({ output }))(stream, headers);
        });
      },
      async (client) => {
        await client.compute(request, options);
      },
    );
    return seen;
  }

  it("its size, its deadline, and what the caller adds", async () => {
    const headers = await headersOf({ timeoutMs: 1500, headers: { "x-request-id": "seven" } });
    // The five bytes before a message are not the message's.
    assert.equal(Number(headers["attention-request-bytes"]), Number(headers["received"]) - 5);
    assert.match(String(headers["grpc-timeout"]), /^1[45]\d\dm$/);
    assert.equal(headers["x-request-id"], "seven");
    assert.equal(headers["te"], "trailers");
    assert.equal(headers["content-type"], "application/grpc");
    assert.equal(headers["attention-max-response-bytes"], undefined);
    assert.equal(headers["authorization"], undefined);
  });

  it("headers of steps, on streams that were opened with the same", async () => {
    const callers: unknown[] = [];
    let streams = 0;
    const answer = frame(
      toBinary(
        StepResponseSchema,
        create(StepResponseSchema, {
          results: [{ output: { ...output, shape: [1n, 1n, 2n], data: new Uint8Array(8) } }],
        }),
      ),
    );
    await withServer(
      (stream, headers) => {
        if (headers[":path"]?.endsWith("CreateSession")) {
          const session = { id: "a", config: { numLayers: 1n }, lengths: [0n], incarnation: 1n };
          const created = create(CreateSessionResponseSchema, { session });
          reply(frame(toBinary(CreateSessionResponseSchema, created)))(stream, headers);
          return;
        }
        streams += 1;
        stream.respond({ ":status": 200, "content-type": "application/grpc" });
        // Each message is small enough for one piece.
        stream.on("data", () => {
          callers.push(headers["authorization"] ?? headers["x-request-id"]);
          stream.write(answer);
        });
      },
      async (client) => {
        const session = await client.createSession({ kvHeads: 1, headSize: 2 });
        const attend = (headers?: Record<string, string>): Promise<unknown> =>
          session.attend({ query: [[[1, 0]]], anyLength: true }, { headers });
        await attend({ authorization: "Bearer anna" });
        await attend({ authorization: "Bearer bert" });
        await attend({ Authorization: "Bearer anna" });
        await attend();
        // More than are kept: the newest must not find the place taken for ever.
        const ids = Array.from({ length: 40 }, (_, i) => String(i));
        for (const id of [...ids, "39"]) await attend({ "x-request-id": id });
        const names = ["Bearer anna", "Bearer bert", "Bearer anna", undefined];
        assert.deepEqual(callers, [...names, ...ids, "39"]);
        assert.equal(streams, 43);
      },
    );
  });

  it("deadlines of any length", async () => {
    assert.equal((await headersOf({ timeoutMs: Infinity }))["grpc-timeout"], undefined);
    assert.match(String((await headersOf({ timeoutMs: 1e12 }))["grpc-timeout"]), /^99999999S$/);
    assert.match(String((await headersOf({ timeoutMs: 2e8 }))["grpc-timeout"]), /^(200000|199999)S$/);
  });
});
