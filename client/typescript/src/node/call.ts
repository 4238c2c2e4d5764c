/** One gRPC call over HTTP/2. */

import type { ClientHttp2Stream, IncomingHttpHeaders } from "node:http2";
import { constants } from "node:http2";
import type { Code } from "../core/errors.js";
import { AttentionError, cancelled, codeName, deadlineExceeded, detailsOf } from "../core/errors.js";
import type { CallContext } from "../core/transport.js";
import type { Connection } from "./connection.js";
import type { LinkSession, Opened } from "./link.js";

/** Smaller pieces are joined: a write for each would cost more than the copy. */
const LEAST_LENT_BYTES = 16 * 1024;
/** Larger ones are cut, so that what is sent frees its place soon. */
const MOST_WRITE_BYTES = 2 ** 20;
/** The longest message there is in protobuf. */
const MOST_MESSAGE_BYTES = 2 ** 31 - 1;
const PREFIX_BYTES = 5;

const HTTP_CODES: Readonly<Record<number, Code>> = {
  400: "INTERNAL",
  401: "UNAUTHENTICATED",
  403: "PERMISSION_DENIED",
  404: "UNIMPLEMENTED",
  429: "UNAVAILABLE",
  502: "UNAVAILABLE",
  503: "UNAVAILABLE",
  504: "UNAVAILABLE",
};

const RESET_CODES: Readonly<Record<number, Code>> = {
  [constants.NGHTTP2_REFUSED_STREAM]: "UNAVAILABLE",
  [constants.NGHTTP2_CANCEL]: "CANCELLED",
  [constants.NGHTTP2_ENHANCE_YOUR_CALM]: "RESOURCE_EXHAUSTED",
  [constants.NGHTTP2_INADEQUATE_SECURITY]: "PERMISSION_DENIED",
};

/** Milliseconds as the header grpc-timeout: at most eight digits. */
function grpcTimeout(ms: number): string {
  const whole = Math.max(1, Math.ceil(ms));
  return whole < 1e8 ? `${String(whole)}m` : `${String(Math.min(Math.ceil(whole / 1000), 99_999_999))}S`;
}

function one(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

function decodeText(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Joins small pieces, the message's prefix among them, and cuts large ones. */
function writesOf(pieces: readonly Uint8Array[], size: number): Uint8Array[] {
  const prefix = Buffer.alloc(PREFIX_BYTES);
  prefix.writeUInt32BE(size, 1);
  const writes: Uint8Array[] = [];
  let small: Uint8Array[] = [prefix];
  const flush = (): void => {
    if (small.length > 0) writes.push(small.length === 1 ? (small[0] as Uint8Array) : Buffer.concat(small));
    small = [];
  };
  for (const piece of pieces) {
    if (piece.byteLength < LEAST_LENT_BYTES) {
      small.push(piece);
      continue;
    }
    flush();
    for (let at = 0; at < piece.byteLength; at += MOST_WRITE_BYTES) {
      writes.push(piece.subarray(at, at + MOST_WRITE_BYTES));
    }
  }
  flush();
  return writes;
}

/** Whoever waits for something of the call. */
interface Waiter<Value> {
  readonly resolve: (value: Value) => void;
  readonly reject: (error: AttentionError) => void;
}

/**
 * Messages go by write(), and come by next(). It ends by an answer's status, by its deadline, by its
 * signal, by cancel() or with its connection, after which everything fails with the same error. @internal
 */
export class Call {
  readonly #connection: Connection;
  readonly #maxReceiveBytes: number;
  #stream: ClientHttp2Stream | undefined;
  #session: LinkSession | undefined;
  #busy = false;
  /** How it ended; null is OK. */
  #status: AttentionError | null | undefined;
  /** Bytes of the message that is coming. */
  #chunks: Buffer[] = [];
  #received = 0;
  #messages: Buffer[] = [];
  #reader: Waiter<Buffer | undefined> | undefined;
  #writers = new Set<Waiter<undefined>>();
  #httpStatus = 0;
  #trailers: IncomingHttpHeaders | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #signal: AbortSignal | undefined;
  readonly #abort = (): void => {
    this.fail(cancelled(this.#signal, this.#connection.server));
  };

  constructor(connection: Connection, maxReceiveBytes: number) {
    this.#connection = connection;
    this.#maxReceiveBytes = maxReceiveBytes;
  }

  /** How it ended, if it did by an error. */
  get error(): AttentionError | undefined {
    return this.#status ?? undefined;
  }

  /** Throws what it ended by. */
  check(): void {
    if (this.#status) throw this.#status;
  }

  get ended(): boolean {
    return this.#status !== undefined;
  }

  /** Opens the stream. The deadline that the server is told is that of the whole call. */
  async open(
    path: string,
    context: CallContext,
    extra: Readonly<Record<string, string>>,
    limit = true,
  ): Promise<void> {
    if (limit) this.limit(context);
    this.check();
    try {
      const headers: Record<string, string> = {
        ...context.headers,
        ...extra,
        ...(await this.#connection.headers()),
        "content-type": "application/grpc",
        te: "trailers",
        "user-agent": "attention-typescript/0.1.0",
      };
      const left = context.deadline - performance.now();
      if (left !== Infinity) headers["grpc-timeout"] = grpcTimeout(left);
      this.check();
      // A call does not outlast its time because its connection does.
      const opened = this.#connection.request(path, headers).then((one) => {
        this.#attach(one);
      });
      await Promise.race([opened, this.#failure()]);
    } catch (error) {
      this.fail(error instanceof AttentionError ? error : this.#connection.unreachable(error));
    }
    this.check();
  }

  /** Rejects when the call fails. */
  #failure(): Promise<undefined> {
    return new Promise((resolve, reject) => {
      this.#writers.add({ resolve, reject });
    });
  }

  /** From now on the call fails when the deadline passes or the signal says so. */
  limit(context: CallContext): void {
    this.unlimit();
    this.#signal = context.signal;
    if (context.signal?.aborted) {
      this.#abort();
      return;
    }
    context.signal?.addEventListener("abort", this.#abort, { once: true });
    const look = (): void => {
      const left = context.deadline - performance.now();
      if (left > 0) this.#timer = setTimeout(look, Math.min(Math.ceil(left), 0x7fffffff));
      else this.fail(deadlineExceeded(context.timeoutMs, this.#connection.server));
    };
    if (context.deadline !== Infinity) look();
  }

  unlimit(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#signal = undefined;
  }

  /** A call that waits for something keeps the process alive, one that is idle does not. */
  busy(busy: boolean): void {
    if (this.#busy === busy || !this.#session) return;
    this.#busy = busy;
    this.#session.busy(busy ? 1 : -1);
  }

  #attach({ stream, session }: Opened): void {
    this.#stream = stream;
    this.#session = session;
    stream.on("error", (error: Error) => {
      this.#lost(error);
    });
    if (this.#status !== undefined) {
      stream.close(constants.NGHTTP2_CANCEL);
      return;
    }
    this.busy(true);
    stream.on("response", (headers) => {
      session.hear();
      this.#httpStatus = headers[":status"] ?? 0;
      // A status without messages.
      if (headers["grpc-status"] !== undefined) this.#trailers = headers;
      // What follows is no gRPC.
      else if (this.#httpStatus !== 200) this.#finish();
    });
    stream.on("trailers", (headers: IncomingHttpHeaders) => {
      this.#trailers = headers;
    });
    stream.on("data", (chunk: Buffer) => {
      session.hear();
      this.#take(chunk);
    });
    stream.on("end", () => {
      this.#finish();
    });
    stream.on("close", () => {
      this.#finish();
      this.#lost(undefined);
    });
  }

  #take(chunk: Buffer): void {
    if (this.#status !== undefined) return;
    this.#chunks.push(chunk);
    this.#received += chunk.byteLength;
    while (this.#received >= PREFIX_BYTES) {
      if ((this.#chunks[0] as Buffer).byteLength < PREFIX_BYTES) this.#chunks = [Buffer.concat(this.#chunks)];
      const head = this.#chunks[0] as Buffer;
      const size = head.readUInt32BE(1);
      if (head[0] !== 0) {
        this.fail(this.#error("INTERNAL", "the answer is compressed, which was not asked for"));
        return;
      }
      if (size > this.#maxReceiveBytes) {
        this.fail(
          new AttentionError(
            "RESOURCE_EXHAUSTED",
            `the answer of ${String(size)} bytes is above maxReceiveBytes, ${String(this.#maxReceiveBytes)}`,
            { reason: "CLIENT_LIMIT", server: this.#connection.server },
          ),
        );
        return;
      }
      if (this.#received < PREFIX_BYTES + size) return;
      const all = this.#chunks.length === 1 ? head : Buffer.concat(this.#chunks);
      const rest = all.subarray(PREFIX_BYTES + size);
      this.#chunks = rest.byteLength > 0 ? [rest] : [];
      this.#received = rest.byteLength;
      this.#deliver(all.subarray(PREFIX_BYTES, PREFIX_BYTES + size));
    }
  }

  #deliver(message: Buffer): void {
    const reader = this.#reader;
    this.#reader = undefined;
    if (reader) reader.resolve(message);
    else this.#messages.push(message);
  }

  #error(code: Code, text: string): AttentionError {
    return new AttentionError(code, text, { server: this.#connection.server });
  }

  /** The server's status, if it has come. */
  #finish(): void {
    if (this.#status !== undefined) return;
    const trailers = this.#trailers;
    if (!trailers) {
      if (this.#httpStatus !== 0 && this.#httpStatus !== 200) {
        const code = HTTP_CODES[this.#httpStatus] ?? "UNKNOWN";
        this.fail(
          this.#error(code, `got HTTP status ${String(this.#httpStatus)}: no gRPC server, or a proxy`),
        );
      }
      return;
    }
    const code = Number(one(trailers, "grpc-status"));
    if (code === 0) {
      if (this.#received > 0)
        this.#settle(this.#error("INTERNAL", "the answer ends in the middle of a message"));
      else this.#settle(null);
      return;
    }
    const details = one(trailers, "grpc-status-details-bin");
    this.#settle(
      new AttentionError(
        Number.isInteger(code) ? codeName(code) : "UNKNOWN",
        decodeText(one(trailers, "grpc-message") ?? ""),
        {
          details: details === undefined ? [] : detailsOf(Buffer.from(details, "base64")),
          pushback: one(trailers, "grpc-retry-pushback-ms"),
          server: this.#connection.server,
        },
      ),
    );
  }

  /** The stream is gone without a status. */
  #lost(cause: Error | undefined): void {
    this.#finish();
    if (this.#status !== undefined) return;
    if (this.#connection.closed) {
      this.fail(this.#connection.closedError());
      return;
    }
    const stream = this.#stream;
    const reset = stream?.rstCode ?? 0;
    const session = this.#session;
    // A connection that ends resets its streams on this side.
    const gone = !session?.usable;
    const code = gone ? "UNAVAILABLE" : RESET_CODES[reset];
    if (code === undefined || gone) {
      let text = cause ? `the connection was lost: ${cause.message}` : "the connection was lost";
      if (session?.greeted === false) text = this.#connection.noGreeting(text);
      const internal = !gone && reset !== 0;
      this.fail(
        internal
          ? this.#error("INTERNAL", `the server reset the call with HTTP/2 code ${String(reset)}`)
          : new AttentionError("UNAVAILABLE", text, { server: this.#connection.server, cause }),
      );
      return;
    }
    this.fail(this.#error(code, `the server reset the call with HTTP/2 code ${String(reset)}`));
  }

  /** Ends the call, at the server too. */
  fail(error: AttentionError): void {
    if (this.#status !== undefined) return;
    this.#settle(error);
  }

  cancel(): void {
    this.fail(this.#error("CANCELLED", "the call was given up"));
  }

  #settle(status: AttentionError | null): void {
    this.#status = status;
    this.unlimit();
    this.busy(false);
    const stream = this.#stream;
    if (stream && !stream.destroyed) {
      // Where it has ended by itself there is nothing to cancel, but perhaps something that it does not read.
      if (status !== null || !stream.writableEnded) stream.close(constants.NGHTTP2_CANCEL);
      stream.resume();
    }
    this.#chunks = [];
    this.#received = 0;
    const reader = this.#reader;
    this.#reader = undefined;
    if (status === null) reader?.resolve(undefined);
    else reader?.reject(status);
    for (const writer of this.#writers) {
      if (status === null) writer.resolve(undefined);
      else writer.reject(status);
    }
    this.#writers.clear();
  }

  /** Sends a message; resolves when it is on its way, and also where the call has ended well before. */
  async write(pieces: readonly Uint8Array[], size: number, last = false): Promise<void> {
    if (size > MOST_MESSAGE_BYTES) {
      const error = new AttentionError(
        "INVALID_ARGUMENT",
        `the message has ${String(size)} bytes, wanted at most ${String(MOST_MESSAGE_BYTES)}`,
        { reason: "CLIENT_LIMIT", server: this.#connection.server },
      );
      this.fail(error);
      throw error;
    }
    const writes = writesOf(pieces, size);
    for (const [i, chunk] of writes.entries()) {
      if (this.#status) throw this.#status;
      if (this.#status === null) return;
      const end = last && i === writes.length - 1;
      const stream = this.#stream as ClientHttp2Stream;
      if (end) stream.end(chunk);
      else if (!stream.write(chunk)) await this.#drained(stream);
    }
  }

  #drained(stream: ClientHttp2Stream): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        stream.off("drain", done);
        this.#writers.delete(waiter);
        resolve();
      };
      const waiter: Waiter<undefined> = {
        resolve: done,
        reject: (error) => {
          stream.off("drain", done);
          reject(error);
        },
      };
      this.#writers.add(waiter);
      stream.once("drain", done);
    });
  }

  /** No more messages. */
  end(): void {
    if (this.#status === undefined) this.#stream?.end();
  }

  /** The next message; undefined after the last one of a call that ended well. */
  next(): Promise<Buffer | undefined> {
    const message = this.#messages.shift();
    if (message) return Promise.resolve(message);
    if (this.#status === null) return Promise.resolve(undefined);
    if (this.#status) return Promise.reject(this.#status);
    return new Promise((resolve, reject) => {
      this.#reader = { resolve, reject };
    });
  }
}
