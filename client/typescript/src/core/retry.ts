/** When a call is tried again: docs/retries.md has the table. */

import type { AttentionError } from "./errors.js";
import { AttentionError as CallError, cancelled } from "./errors.js";

/** What a call allows. @internal */
export interface RetryPolicy {
  /** Tries in all, the first one counted. */
  readonly maxAttempts: number;
  /** By performance.now(). */
  readonly deadline: number;
  readonly signal?: AbortSignal | undefined;
  /** Whether it may be done twice. */
  readonly repeatable: boolean;
  /** Whether it appends with a request id. */
  readonly append: boolean;
}

type Kind = "counted" | "waiting" | "never";

function kindOf(error: AttentionError, policy: RetryPolicy): Kind {
  if (error.neverAgain) return "never";
  if (error.code === "RESOURCE_EXHAUSTED") {
    return error.retryDelayMs === undefined ? "never" : "counted";
  }
  if (error.code !== "UNAVAILABLE") return "never";
  if (error.reason === "DRAINING") return "counted";
  if (error.reason === "APPEND_UNDER_WAY") return policy.append ? "waiting" : "never";
  return error.reason === undefined && policy.repeatable ? "counted" : "never";
}

/** Counts the tries of one call and says how long to wait before the next. @internal */
export class Retries {
  #attempts = 1;
  #waits = 0;

  constructor(private readonly policy: RetryPolicy) {}

  /** Milliseconds until the next try; undefined: there is none. */
  pauseAfter(error: AttentionError): number | undefined {
    const kind = kindOf(error, this.policy);
    if (kind === "never") return undefined;
    let pause: number;
    if (kind === "waiting") {
      pause = error.retryDelayMs ?? Math.min(10 * 2 ** this.#waits, 500);
      this.#waits += 1;
    } else {
      if (this.#attempts >= this.policy.maxAttempts) return undefined;
      pause = error.retryDelayMs ?? Math.min(100 * 2 ** (this.#attempts - 1), 5000);
      this.#attempts += 1;
    }
    pause *= 1 + 0.2 * Math.random();
    return performance.now() + pause < this.policy.deadline ? pause : undefined;
  }
}

/** Waits; a cancelled call ends the wait with CANCELLED. @internal */
export function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    // A timer may go off a millisecond early, and a told delay is never undercut.
    const until = performance.now() + ms;
    let timer: ReturnType<typeof setTimeout>;
    const abort = (): void => {
      clearTimeout(timer);
      reject(cancelled(signal));
    };
    const look = (): void => {
      const left = until - performance.now();
      if (left > 0) {
        timer = setTimeout(look, Math.min(Math.ceil(left), 0x7fffffff));
        return;
      }
      signal?.removeEventListener("abort", abort);
      resolve();
    };
    if (signal?.aborted) {
      reject(cancelled(signal));
      return;
    }
    timer = setTimeout(look, Math.min(Math.ceil(ms), 0x7fffffff));
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/** Makes a call, and makes it again as the table says. @internal */
export async function retrying<Result>(policy: RetryPolicy, attempt: () => Promise<Result>): Promise<Result> {
  const retries = new Retries(policy);
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      const pause = retries.pauseAfter(error);
      if (pause === undefined) throw error;
      await sleep(pause, policy.signal);
    }
  }
}
