/** The token of Node's client: given, or in a file that may be replaced. */

import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { checkToken } from "../core/token.js";

/** How often the file is read at most. */
const LEAST_AGE_MS = 1000;

/** @internal */
export class TokenSource {
  readonly #file: string | undefined;
  #token: string;
  #read = performance.now();

  constructor(token: string | undefined, file: string | undefined) {
    if (token !== undefined && file !== undefined) {
      throw new TypeError("token, tokenFile: got both, wanted one");
    }
    this.#file = file;
    this.#token =
      file === undefined
        ? checkToken("token", token ?? "")
        : checkToken("tokenFile", readFileSync(file, "utf8").trim());
  }

  /** The token now. A file that cannot be read, or holds none, leaves the last one in use. */
  async token(): Promise<string> {
    if (this.#file !== undefined && performance.now() - this.#read >= LEAST_AGE_MS) {
      this.#read = performance.now();
      try {
        this.#token = checkToken("tokenFile", (await readFile(this.#file, "utf8")).trim());
      } catch {
        // As above.
      }
    }
    return this.#token;
  }
}
