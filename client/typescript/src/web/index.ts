/**
 * Attention over the network, from a browser, by gRPC-Web: through a proxy such as Envoy, which the
 * repository's docker/envoy.yaml configures.
 *
 * ```ts
 * import { AttentionClient } from "@attention-service/client/web";
 *
 * const client = new AttentionClient("https://attention.example");
 * const eye = [[1, 0], [0, 1]];
 * const { output } = await client.compute({ query: eye, key: eye, value: eye });
 * ```
 *
 * The same calls as from Node, with two differences, since browsers send no streams: a large request goes
 * as one message, and a step is an append and an attend, one after the other, instead of both or neither.
 *
 * @packageDocumentation
 */

import type { CommonOptions } from "../core/client.js";
import { ClientBase } from "../core/client.js";
import { AttentionError } from "../core/errors.js";
import { checkToken, isLoopbackAddress } from "../core/token.js";
import { WebTransport } from "./transport.js";

export * from "../core/index.js";

/** How a browser's client calls. */
export interface ClientOptions extends CommonOptions {
  /**
   * Who calls: sent with each call as "authorization: Bearer TOKEN"; or a function that gives the token of
   * now. Over http: it goes to loopback addresses only. No error holds it.
   */
  readonly token?: string | (() => string | Promise<string>) | undefined;
  /** Makes the requests in place of the browser's own. */
  readonly fetch?: typeof globalThis.fetch | undefined;
}

/** A client of one server, over gRPC-Web. */
export class AttentionClient extends ClientBase {
  /**
   * Does not wait for the network: a server that cannot be reached is what calls report.
   *
   * @param baseUrl where the proxy is: "https://attention.example".
   */
  constructor(baseUrl: string | URL, options: ClientOptions = {}) {
    const { token, maxReceiveBytes, allowPlaintextToken } = options;
    let url: URL;
    try {
      url = new URL(baseUrl);
    } catch {
      throw new TypeError(
        `baseUrl: got '${String(baseUrl)}', wanted a URL, such as https://attention.example`,
      );
    }
    if (maxReceiveBytes !== undefined && !(maxReceiveBytes >= 0)) {
      throw new RangeError(`maxReceiveBytes: got ${String(maxReceiveBytes)}, wanted a number from 0`);
    }
    // Browsers ask no name server for localhost.
    const local = url.hostname === "localhost" || isLoopbackAddress(url.hostname);
    if (token !== undefined && url.protocol !== "https:" && !local && !allowPlaintextToken) {
      throw new AttentionError(
        "INVALID_ARGUMENT",
        "the token would travel in plain text: use https:, or `allowPlaintextToken`",
        {
          server: url.host,
        },
      );
    }
    if (typeof token === "string") checkToken("token", token);
    const source =
      token === undefined
        ? undefined
        : async () => checkToken("token", typeof token === "string" ? token : await token());
    super(new WebTransport(url, options.fetch, source, maxReceiveBytes ?? Infinity), options);
  }
}
