/**
 * Attention over the network, from Node.
 *
 * ```ts
 * import { AttentionClient } from "@attention-service/client";
 *
 * const client = new AttentionClient("127.0.0.1:50051");
 * const eye = [[1, 0], [0, 1]];
 * const { output } = await client.compute({ query: eye, key: eye, value: eye });
 * console.log(output.toArray());
 * await client.close();
 * ```
 *
 * @packageDocumentation
 */

import { ClientBase } from "../core/client.js";
import { Connection } from "./connection.js";
import type { ClientOptions } from "./options.js";
import { NodeTransport } from "./transport.js";

export * from "../core/index.js";
export type { ClientOptions, TlsOptions } from "./options.js";

/**
 * A client of one server, over gRPC. Keep it: it makes its connection with the first call, makes it anew
 * after it was lost, and any number of calls may be under way at once. `close()` or `await using` ends it.
 */
export class AttentionClient extends ClientBase {
  /**
   * Does not wait for the network: a server that cannot be reached is what calls report.
   *
   * @param address "HOST:PORT", "[IPv6]:PORT" or "unix:/PATH".
   */
  constructor(address: string, options: ClientOptions = {}) {
    const { maxReceiveBytes } = options;
    if (maxReceiveBytes !== undefined && !(maxReceiveBytes >= 0)) {
      throw new RangeError(`maxReceiveBytes: got ${String(maxReceiveBytes)}, wanted a number from 0`);
    }
    super(new NodeTransport(new Connection(address, options), maxReceiveBytes ?? Infinity), options);
  }
}
