/** What a Session object knows of its session. */

import type { Session as SessionMessage } from "../gen/attention/v1/session_pb.js";
import { AttentionError } from "./errors.js";
import type { Tensor } from "./tensor.js";

/** An append in several calls, of which not all were done. @internal */
export interface UnfinishedAppend {
  readonly digest: string;
  readonly tokens: number;
  /** The first so many of them are in the layer, at its end. */
  readonly done: number;
}

interface Layer {
  length: number;
  appending: boolean;
  /** Request ids used up. */
  appends: number;
  unfinished: UnfinishedAppend | undefined;
}

/** A random number of 128 bits, in hexadecimal. @internal */
export function randomId(): string {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Tells tokens from others, without keeping them. @internal */
export function digestOf(...tensors: readonly (Tensor | undefined)[]): string {
  let a = 0x9e3779b9;
  let b = 0x85ebca6b;
  const mix = (word: number): void => {
    a = Math.imul(a ^ word, 0xcc9e2d51);
    a = (a << 15) | (a >>> 17);
    b = Math.imul(b + word, 0x1b873593) ^ a;
  };
  for (const tensor of tensors) {
    if (tensor === undefined) {
      mix(1);
      continue;
    }
    for (const letter of `${tensor.dataType}:${tensor.shape.join(",")}`) mix(letter.codePointAt(0) ?? 0);
    const { bytes } = tensor;
    const words = bytes.byteLength >>> 2;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i < words; ++i) mix(view.getInt32(4 * i, true));
    for (let i = 4 * words; i < bytes.byteLength; ++i) mix(bytes[i] as number);
  }
  return `${String(a)}:${String(b)}`;
}

function conflict(layer: number, length: number): AttentionError {
  return new AttentionError(
    "ABORTED",
    `layer ${String(layer)}: another append to it is under way in this client`,
    { reason: "LENGTH_CONFLICT", metadata: { length: String(length) } },
  );
}

/**
 * Invariants: at most one append per layer is under way. A layer's request id stays the same until an
 * append with it was answered well, or the layer's length is told anew. Once the session is gone it stays
 * so. @internal
 */
export class SessionState {
  readonly id: string;
  readonly incarnation: bigint;
  readonly leaseMs: number;
  /** By performance.now(): when the last call that was answered well began. */
  lastUsed = performance.now();
  /** When to look at the lease again. */
  renewAt = 0;
  readonly #nonce = randomId();
  readonly #layers: Layer[];
  #gone: AttentionError | undefined;

  constructor(session: SessionMessage) {
    this.id = session.id;
    this.incarnation = session.incarnation;
    const lease = session.config?.lease;
    // A server tells it always.
    const leaseMs = lease ? Number(lease.seconds) * 1000 + lease.nanos / 1e6 : 0;
    this.leaseMs = leaseMs > 0 ? leaseMs : 60_000;
    this.#layers = session.lengths.map((length) => ({
      length: Number(length),
      appending: false,
      appends: 0,
      unfinished: undefined,
    }));
  }

  get gone(): AttentionError | undefined {
    return this.#gone;
  }

  get lengths(): number[] {
    return this.#layers.map(({ length }) => length);
  }

  /** Undefined: there is no such layer. */
  length(layer: number): number | undefined {
    return this.#layers[layer]?.length;
  }

  /** Throws NOT_FOUND once the session is gone. */
  check(): void {
    if (this.#gone) throw this.#gone;
  }

  /** Makes a call that names the session, and learns from how it ends. */
  async use<Result>(call: () => Promise<Result>): Promise<Result> {
    this.check();
    const begun = performance.now();
    try {
      const result = await call();
      this.used(begun);
      return result;
    } catch (error) {
      this.failed(error);
      throw error;
    }
  }

  used(begun: number): void {
    this.lastUsed = Math.max(this.lastUsed, begun);
  }

  failed(error: unknown): void {
    if (error instanceof AttentionError && error.reason === "SESSION_UNKNOWN") this.#gone ??= error;
  }

  deleted(): void {
    this.#gone ??= new AttentionError("NOT_FOUND", `session '${this.id}': it was deleted`, {
      reason: "SESSION_UNKNOWN",
    });
  }

  /** Takes over the server's lengths. */
  tell(lengths: readonly bigint[]): void {
    for (const [i, layer] of this.#layers.entries()) {
      const length = lengths[i];
      // What is under way will say itself how it ended.
      if (length === undefined || layer.appending) continue;
      layer.length = Number(length);
      layer.appends += 1;
      layer.unfinished = undefined;
    }
  }

  /** Claims a layer for an append. A layer that there is not is not claimed: the server will say so. */
  claim(number: number): LayerClaim {
    this.check();
    const layer = this.#layers[number];
    if (layer?.appending) throw conflict(number, layer.length);
    if (layer) layer.appending = true;
    return new LayerClaim(layer, `${this.#nonce}-${String(number)}-`);
  }
}

/** An append to a layer while it is under way. @internal */
export class LayerClaim {
  readonly #layer: Layer | undefined;
  readonly #prefix: string;

  constructor(layer: Layer | undefined, prefix: string) {
    this.#layer = layer;
    this.#prefix = prefix;
  }

  get expectedLength(): bigint | undefined {
    return this.#layer && BigInt(this.#layer.length);
  }

  get requestId(): string {
    return this.#layer ? this.#prefix + String(this.#layer.appends) : "";
  }

  get unfinished(): UnfinishedAppend | undefined {
    return this.#layer?.unfinished;
  }

  set unfinished(append: UnfinishedAppend | undefined) {
    if (this.#layer) this.#layer.unfinished = append;
  }

  /** The tokens are there; the next append has another request id. */
  appended(length: number): void {
    if (!this.#layer) return;
    this.#layer.length = length;
    this.#layer.appends += 1;
    this.#layer.unfinished = undefined;
  }

  release(): void {
    if (this.#layer) this.#layer.appending = false;
  }
}
