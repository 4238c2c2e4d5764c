/** The HTTP/2 connection to a server: made when it is needed, probed while calls are open, made anew. */

import type {
  ClientHttp2Session,
  ClientHttp2Stream,
  OutgoingHttpHeaders,
  SecureClientSessionOptions,
} from "node:http2";
import { connect } from "node:http2";

/** How long the connection may be silent while calls are open; servers bear pings every 10 s. */
const PING_INTERVAL_MS = 30_000;
const PING_TIMEOUT_MS = 20_000;
const CONNECT_TIMEOUT_MS = 20_000;
/** How much of all calls together may be on its way before this client has read it. */
const WINDOW_BYTES = 64 * 2 ** 20;

/** One connection, until it is closed. */
class Session {
  readonly http2: ClientHttp2Session;
  /** Undefined once it is closed, and in the end why. */
  failure: unknown;
  /** Whether the server has begun to speak HTTP/2. */
  greeted = false;
  #streams = 0;
  #busy = 0;
  #heard = performance.now();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #probing = false;

  constructor(authority: string, options: SecureClientSessionOptions, closed: () => void) {
    this.http2 = connect(authority, options);
    // Streams that fail have listeners of their own, and the number of them is the callers'.
    this.http2.setMaxListeners(0);
    // For as long as it lives: an error that nobody hears would end the process.
    this.http2.on("error", (error) => {
      this.failure ??= error;
    });
    this.http2.once("remoteSettings", () => {
      this.greeted = true;
    });
    this.http2.once("close", () => {
      clearTimeout(this.#timer);
      closed();
    });
  }

  get usable(): boolean {
    return !this.http2.closed && !this.http2.destroyed;
  }

  /** Resolves when it is there. */
  ready(): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.destroy(new Error(`no connection within ${String(CONNECT_TIMEOUT_MS / 1000)} s`));
      }, CONNECT_TIMEOUT_MS);
      timer.unref();
      this.http2.once("connect", () => {
        clearTimeout(timer);
        this.http2.setLocalWindowSize(WINDOW_BYTES);
        if (this.#busy === 0) this.http2.unref();
        this.#heard = performance.now();
        resolve();
      });
      this.http2.once("close", () => {
        clearTimeout(timer);
        const { failure } = this;
        reject(failure instanceof Error ? failure : new Error("the server closed the connection"));
      });
    });
  }

  request(headers: OutgoingHttpHeaders): ClientHttp2Stream {
    const stream = this.http2.request(headers);
    this.#streams += 1;
    stream.once("close", () => {
      this.#streams -= 1;
      if (this.#streams === 0) clearTimeout(this.#timer);
    });
    // After a long silence the network may have forgotten the connection: the first call finds out.
    if (this.#streams === 1) this.#watch();
    return stream;
  }

  hear(): void {
    this.#heard = performance.now();
  }

  #watch(): void {
    clearTimeout(this.#timer);
    const left = this.#heard + PING_INTERVAL_MS - performance.now();
    if (left <= 0) {
      this.#probe();
      return;
    }
    this.#timer = setTimeout(() => {
      this.#watch();
    }, left);
    this.#timer.unref();
  }

  #probe(): void {
    if (this.#probing || !this.usable) return;
    this.#probing = true;
    const timer = setTimeout(() => {
      this.destroy(new Error(`no answer to a ping within ${String(PING_TIMEOUT_MS / 1000)} s`));
    }, PING_TIMEOUT_MS);
    timer.unref();
    this.http2.ping((error) => {
      clearTimeout(timer);
      this.#probing = false;
      if (error) return;
      this.hear();
      if (this.#streams > 0) this.#watch();
    });
  }

  /** Something waits: the process stays alive. */
  busy(more: 1 | -1): void {
    this.#busy += more;
    if (this.http2.destroyed) return;
    if (this.#busy > 0) this.http2.ref();
    else this.http2.unref();
  }

  destroy(error?: Error): void {
    this.failure ??= error;
    this.http2.destroy(error);
  }
}

export type { Session as LinkSession };

/** A stream, and the connection that it is on. @internal */
export interface Opened {
  readonly stream: ClientHttp2Stream;
  readonly session: Session;
}

/** Shares one connection among all calls. One that the server bids farewell to ends with its last call. @internal */
export class Link {
  readonly #authority: string;
  readonly #options: SecureClientSessionOptions;
  readonly #all = new Set<Session>();
  #current: { readonly session: Session; readonly ready: Promise<void> } | undefined;
  #closed = false;

  constructor(authority: string, options: SecureClientSessionOptions) {
    this.#authority = authority;
    this.#options = options;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Opens a stream, on a new connection if there is none. Rejects with what the connection failed by. */
  async request(headers: OutgoingHttpHeaders): Promise<Opened> {
    for (;;) {
      if (this.#closed) throw new Error("the client is closed");
      const current = this.#current?.session.usable ? this.#current : this.#connect();
      await current.ready;
      // It may have ended since.
      if (!current.session.usable) continue;
      return { stream: current.session.request(headers), session: current.session };
    }
  }

  #connect(): { readonly session: Session; readonly ready: Promise<void> } {
    const session = new Session(this.#authority, this.#options, () => {
      this.#all.delete(session);
      if (this.#current?.session === session) this.#current = undefined;
    });
    this.#all.add(session);
    const ready = session.ready();
    // Whoever waits hears of it; there may be nobody any more.
    ready.catch(() => undefined);
    this.#current = { session, ready };
    return this.#current;
  }

  close(): void {
    this.#closed = true;
    for (const session of this.#all) session.destroy();
  }
}
