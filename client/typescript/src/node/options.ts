/** How Node's client connects. */

import type { CommonOptions } from "../core/client.js";

/** PEM: the contents of a file, not its name. */
export interface TlsOptions {
  /** The authorities to trust, in place of those that Node trusts by default. */
  readonly ca?: string | Uint8Array | undefined;
  /** The client's own certificate, with its chain, for servers that ask for one. */
  readonly cert?: string | Uint8Array | undefined;
  /** Its key. */
  readonly key?: string | Uint8Array | undefined;
  /** The name that the server's certificate has to have. Default: that of the address. */
  readonly serverName?: string | undefined;
}

/** How a client connects, and what it shows there. */
export interface ClientOptions extends CommonOptions {
  /** `true` encrypts and trusts the authorities that Node trusts. Default: plain text. */
  readonly tls?: boolean | TlsOptions | undefined;
  /**
   * Who calls: sent with each call as "authorization: Bearer TOKEN". Without TLS it goes to loopback
   * addresses and Unix sockets only, wherever a name leads. No error holds it.
   */
  readonly token?: string | undefined;
  /** A file with the token on one line, read again at most once a second, so that it may be replaced. */
  readonly tokenFile?: string | undefined;
}
