/** What to compute: the options of attention.proto in JavaScript's terms. */

import { create } from "@bufbuild/protobuf";
import type { AttentionOptions as OptionsMessage } from "../gen/attention/v1/attention_pb.js";
import {
  AttentionOptionsSchema,
  Causal,
  Layout,
  MathMode,
  Scores,
  WindowSchema,
} from "../gen/attention/v1/attention_pb.js";
import type { DataType } from "./tensor.js";
import { wireType } from "./tensor.js";

const LAYOUTS = {
  matrix: Layout.MATRIX,
  packed: Layout.PACKED,
  bhsd: Layout.BHSD,
  bshd: Layout.BSHD,
  ragged: Layout.RAGGED,
} as const;
const CAUSALS = { top_left: Causal.TOP_LEFT, bottom_right: Causal.BOTTOM_RIGHT } as const;
const SCORES = {
  raw: Scores.RAW,
  capped: Scores.CAPPED,
  biased: Scores.BIASED,
  weights: Scores.WEIGHTS,
} as const;
const MATH_MODES = { reproducible: MathMode.REPRODUCIBLE, fast: MathMode.FAST } as const;

/** Options that a computation and an attend over a session share. */
export interface ScoringOptions {
  /** Factor of the dot products. Default: 1 / sqrt(head size). */
  readonly scale?: number | undefined;
  /** Soft cap of the scores; 0, the default, is none. */
  readonly softcap?: number | undefined;
  /**
   * Which keys a query sees: `top_left` is PyTorch's is_causal, `bottom_right` FlashAttention's, where
   * the last query sees the last key. Default: all; over a session `bottom_right`.
   */
  readonly causal?: "top_left" | "bottom_right" | undefined;
  /** Keys before and after a query's own position; -1 or left out is unbounded. */
  readonly window?: { readonly left?: number | undefined; readonly right?: number | undefined } | undefined;
  /** Chunked local attention: a query sees the keys of its own chunk alone. 0, the default, is none. */
  readonly chunkSize?: number | undefined;
  /** ALiBi: a slope for each query head. */
  readonly alibiSlopes?: readonly number[] | Float32Array | Float64Array | undefined;
  /** Attention sinks: an extra logit for each query head. `rowSinks`, in place of these, has one for each row. */
  readonly sinks?: readonly number[] | Float32Array | Float64Array | undefined;
  /** `fast` may give other bits on other CPUs. Default: `reproducible`. */
  readonly mathMode?: "reproducible" | "fast" | undefined;
  /** The least precision of scores, softmax and sums. */
  readonly softmaxPrecision?: Extract<DataType, `float${string}` | "bfloat16"> | undefined;
  /** Whether to return the log of the softmax's denominator. */
  readonly returnLogSumExp?: boolean | undefined;
  /** Which stage to return as scores. Default: none. */
  readonly returnScores?: "raw" | "capped" | "biased" | "weights" | undefined;
}

/** What to compute. attention.proto specifies each option. */
export interface AttentionOptions extends ScoringOptions {
  /** The axes of the tensors. Default: by the rank of the query; 2 is matrix, 3 packed, 4 bhsd. */
  readonly layout?: "matrix" | "packed" | "bhsd" | "bshd" | "ragged" | undefined;
  /** Query heads: needed with `packed`. */
  readonly queryHeads?: number | undefined;
  /** Heads of keys and values: needed with `packed`. */
  readonly kvHeads?: number | undefined;
  /** Whether to return past and new keys and values joined. */
  readonly returnPresent?: boolean | undefined;
}

/** The names of {@link ScoringOptions}. @internal */
export const SCORING_NAMES: Readonly<Record<keyof ScoringOptions, true>> = {
  scale: true,
  softcap: true,
  causal: true,
  window: true,
  chunkSize: true,
  alibiSlopes: true,
  sinks: true,
  mathMode: true,
  softmaxPrecision: true,
  returnLogSumExp: true,
  returnScores: true,
};

/** Refuses a name that is not known, such as `isCausal`: without it the answer would be another one. @internal */
export function checkNames(given: object, names: Readonly<Record<string, true>>): void {
  for (const [name, value] of Object.entries(given)) {
    if (value !== undefined && !Object.hasOwn(names, name)) {
      throw new TypeError(`${name}: unknown, wanted one of ${Object.keys(names).join(", ")}`);
    }
  }
}

/** A whole number for an int64 field; errors name it. @internal */
export function integer(name: string, value: number): bigint {
  if (!Number.isSafeInteger(value)) {
    throw new RangeError(`${name}: got ${String(value)}, wanted a whole number`);
  }
  return BigInt(value);
}

function real(name: string, value: unknown): number {
  if (typeof value !== "number") throw new TypeError(`${name}: got ${typeof value}, wanted a number`);
  return value;
}

function reals(name: string, values: Iterable<number>): number[] {
  return Array.from(values, (value) => real(name, value));
}

function choice<Value>(name: string, choices: Readonly<Record<string, Value>>, value: string): Value {
  if (!Object.hasOwn(choices, value)) {
    throw new RangeError(`${name}: got ${value}, wanted one of ${Object.keys(choices).join(", ")}`);
  }
  return choices[value] as Value;
}

/** Nothing where every option has its default. @internal */
export function optionsMessage(options: AttentionOptions): OptionsMessage | undefined {
  let made: OptionsMessage | undefined;
  const message = (): OptionsMessage => (made ??= create(AttentionOptionsSchema));
  const { window, softmaxPrecision: precision } = options;
  if (options.layout !== undefined) message().layout = choice("layout", LAYOUTS, options.layout);
  if (options.queryHeads !== undefined) message().queryHeads = integer("queryHeads", options.queryHeads);
  if (options.kvHeads !== undefined) message().kvHeads = integer("kvHeads", options.kvHeads);
  if (options.scale !== undefined) message().scale = real("scale", options.scale);
  if (options.softcap !== undefined) message().softcap = real("softcap", options.softcap);
  if (options.causal !== undefined) message().causal = choice("causal", CAUSALS, options.causal);
  if (window !== undefined) {
    const made = create(WindowSchema);
    if (window.left !== undefined) made.left = integer("window.left", window.left);
    if (window.right !== undefined) made.right = integer("window.right", window.right);
    message().window = made;
  }
  if (options.chunkSize !== undefined) message().chunkSize = integer("chunkSize", options.chunkSize);
  if (options.alibiSlopes !== undefined) message().alibiSlopes = reals("alibiSlopes", options.alibiSlopes);
  if (options.sinks !== undefined) message().sinks = reals("sinks", options.sinks);
  if (options.mathMode !== undefined) message().mathMode = choice("mathMode", MATH_MODES, options.mathMode);
  if (precision !== undefined) {
    message().softmaxPrecision = wireType(precision);
  }
  if (options.returnLogSumExp !== undefined) message().returnLogSumExp = options.returnLogSumExp;
  if (options.returnScores !== undefined) {
    message().returnScores = choice("returnScores", SCORES, options.returnScores);
  }
  if (options.returnPresent !== undefined) message().returnPresent = options.returnPresent;
  return made;
}
