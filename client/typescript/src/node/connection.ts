/** The connection to a server: HTTP/2, with or without TLS, made when it is first needed. */

import dns from "node:dns";
import type { SecureClientSessionOptions } from "node:http2";
import type { LookupFunction } from "node:net";
import { connect as connectTcp, isIP } from "node:net";
import { connect as connectTls } from "node:tls";
import { AttentionError } from "../core/errors.js";
import { isLoopbackAddress } from "../core/token.js";
import type { Opened } from "./link.js";
import { Link } from "./link.js";
import type { ClientOptions, TlsOptions } from "./options.js";
import { TokenSource } from "./token.js";

/** How much of a call may be on its way before this client has read it. */
const WINDOW_BYTES = 8 * 2 ** 20;
const HEADER_BYTES = 64 * 1024;

interface Target {
  /** For HTTP: "HOST:PORT". */
  readonly authority: string;
  /** A Unix socket. */
  readonly path: string | undefined;
  readonly host: string;
  readonly port: number;
}

function parseTarget(target: string): Target {
  const unix = /^unix:(?:\/\/(?=\/))?(.+)$/.exec(target);
  if (unix) return { authority: "localhost", path: unix[1], host: "", port: 0 };
  const parts = /^(?:dns:(?:\/\/[^/]*\/)?|ipv[46]:)?(?:\[([0-9a-fA-F:.%]+)\]|([^:/[\]]+)):(\d{1,5})$/.exec(
    target,
  );
  const host = parts?.[1] ?? parts?.[2];
  const port = Number(parts?.[3]);
  if (host === undefined || port < 1 || port > 65535) {
    throw new TypeError(`address: got '${target}', wanted HOST:PORT, [IPv6]:PORT or unix:/PATH`);
  }
  return {
    authority: `${isIP(host) === 6 ? `[${host}]` : host}:${String(port)}`,
    path: undefined,
    host,
    port,
  };
}

/** Why no connection could be made, in a line. */
function failureText(cause: unknown): string {
  const errors = cause instanceof AggregateError ? (cause.errors as unknown[]) : [cause];
  const error = errors[0];
  if (!(error instanceof Error)) return String(error);
  const { code } = error as NodeJS.ErrnoException;
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID")
    return `the server's certificate is not for this address: ${error.message}`;
  if (code !== undefined && /CERT|SIGNATURE|ISSUER/.test(code) && !code.startsWith("ERR_SSL")) {
    return `the server's certificate was refused: ${error.message}`;
  }
  if (code === "ERR_SSL_WRONG_VERSION_NUMBER" || code === "ERR_SSL_PACKET_LENGTH_TOO_LONG") {
    return "the server does not speak TLS on this port: leave TLS out, or find the right port";
  }
  return error.message;
}

/** Follows causes to the first that is no wrapper. */
function rootCause(error: unknown): unknown {
  let root = error;
  for (let depth = 0; depth < 8 && root instanceof Error && root.cause !== undefined; ++depth)
    root = root.cause;
  return root;
}

/** @internal */
export class Connection {
  readonly server: string;
  readonly #target: Target;
  readonly #token: TokenSource | undefined;
  readonly #link: Link;
  readonly #tls: boolean;

  constructor(address: string, options: ClientOptions) {
    this.server = address;
    this.#target = parseTarget(address);
    this.#tls = options.tls !== undefined && options.tls !== false;
    if (options.token !== undefined || options.tokenFile !== undefined) {
      this.#token = new TokenSource(options.token, options.tokenFile);
    }
    const guarded = this.#token !== undefined && !this.#tls && !options.allowPlaintextToken;
    if (guarded && isIP(this.#target.host) !== 0 && !isLoopbackAddress(this.#target.host)) {
      throw new AttentionError(
        "INVALID_ARGUMENT",
        "the token would travel in plain text: give `tls`, or `allowPlaintextToken`",
        {
          server: address,
        },
      );
    }
    const tls = typeof options.tls === "object" ? options.tls : {};
    if ((tls.cert === undefined) !== (tls.key === undefined)) {
      throw new TypeError("tls: got one of cert and key, wanted both or neither");
    }
    this.#link = new Link(
      `${this.#tls ? "https" : "http"}://${this.#target.authority}`,
      this.#sessionOptions(tls, guarded),
    );
  }

  #sessionOptions(tls: TlsOptions, guarded: boolean): SecureClientSessionOptions {
    const { path, host, port } = this.#target;
    const secure = {
      ...(tls.ca === undefined ? {} : { ca: tls.ca as Buffer }),
      ...(tls.cert === undefined ? {} : { cert: tls.cert as Buffer }),
      ...(tls.key === undefined ? {} : { key: tls.key as Buffer }),
    };
    const name = tls.serverName ?? (path === undefined ? host : "localhost");
    return {
      settings: { enablePush: false, initialWindowSize: WINDOW_BYTES, maxHeaderListSize: HEADER_BYTES },
      // What waits to be sent is the callers' memory, and not bounded here.
      maxSessionMemory: 1 << 20,
      createConnection: () => {
        const where = path === undefined ? { host, port } : { path };
        if (this.#tls) {
          return connectTls({
            ...where,
            ...secure,
            ALPNProtocols: ["h2"],
            ...(isIP(name) === 0 ? { servername: name } : {}),
          });
        }
        return connectTcp({
          ...where,
          noDelay: true,
          ...(guarded && path === undefined ? { lookup: this.#lookUpLoopback } : {}),
        });
      },
    };
  }

  /** Finds the addresses of a name that lead to this machine alone; a token goes nowhere else. */
  readonly #lookUpLoopback: LookupFunction = (name, options, done) => {
    dns.lookup(name, { ...options, all: true }, (error, all) => {
      if (error) {
        done(error, []);
        return;
      }
      const [first, ...others] = all.filter(({ address }) => isLoopbackAddress(address));
      if (!first) {
        const refusal = new AttentionError(
          "FAILED_PRECONDITION",
          "the token would travel in plain text, and was not sent: give `tls`, or `allowPlaintextToken`",
          { server: this.server },
        );
        done(refusal, []);
      } else if (options.all) done(null, [first, ...others]);
      else done(null, first.address, first.family);
    });
  };

  /** What each call carries. */
  async headers(): Promise<Record<string, string>> {
    return this.#token === undefined ? {} : { authorization: `Bearer ${await this.#token.token()}` };
  }

  /** Opens a stream, on a new connection if there is none. */
  async request(path: string, headers: Readonly<Record<string, string>>): Promise<Opened> {
    try {
      return await this.#link.request({ ...headers, ":method": "POST", ":path": path });
    } catch (error) {
      throw this.closed ? this.closedError() : this.unreachable(error);
    }
  }

  unreachable(cause: unknown): AttentionError {
    const root = rootCause(cause);
    if (root instanceof AttentionError) return root;
    return new AttentionError("UNAVAILABLE", `the server cannot be reached: ${failureText(root)}`, {
      server: this.server,
      cause: root,
    });
  }

  /** Why a connection was lost on which the server never spoke HTTP/2. */
  noGreeting(text: string): string {
    if (text.endsWith("Protocol error")) return "the server does not speak gRPC on this port";
    return this.#tls
      ? "the server closed the connection after the TLS handshake: it may want a certificate of the client"
      : "the server closed the connection at once: it may want TLS";
  }

  get closed(): boolean {
    return this.#link.closed;
  }

  closedError(): AttentionError {
    return new AttentionError("CANCELLED", "the client is closed", { server: this.server });
  }

  close(): void {
    this.#link.close();
  }
}
