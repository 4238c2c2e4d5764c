/** A computation as a message, and its answer as tensors. */

import { create } from "@bufbuild/protobuf";
import type {
  ComputeAttentionRequest,
  ComputeAttentionResponse,
  Timing as TimingMessage,
} from "../gen/attention/v1/attention_pb.js";
import { ComputeAttentionRequestSchema, Layout, Scores } from "../gen/attention/v1/attention_pb.js";
import type { AttentionOptions } from "./options.js";
import { checkNames, integer, optionsMessage, SCORING_NAMES } from "./options.js";
import type { Tensor, TensorLike } from "./tensor.js";
import { fromMessage, malformed, tensorMessage, toIndices, toTensor } from "./tensor.js";

/**
 * One computation. The letters of attention.proto: B batch, S queries, L keys, P past keys, Hq and Hkv
 * heads, D and Dv head sizes. Shapes here are those of layout `bhsd`.
 */
export interface ComputeRequest extends AttentionOptions {
  /** (B, Hq, S, D), of float32, float16, bfloat16 or float64. */
  readonly query: TensorLike;
  /** (B, Hkv, L, D), of the query's type. */
  readonly key: TensorLike;
  /** (B, Hkv, L, Dv), of any float type. */
  readonly value: TensorLike;
  /**
   * Broadcast to (B, Hq, S, P + L). Of bool or bits: true is seen. Numbers of any type, integers too, are
   * added to the scores: a mask of integers 0 and 1 hides nothing.
   */
  readonly mask?: TensorLike | undefined;
  /** Keys before `key`, (B, Hkv, P, D) in every layout. Together with `pastValue`. */
  readonly pastKey?: TensorLike | undefined;
  /** Values before `value`, (B, Hkv, P, Dv) in every layout. */
  readonly pastValue?: TensorLike | undefined;
  /**
   * Sparse attention: the keys that each query sees, of those that all else lets it see. Only these are read.
   * Of int32 or int64, (B, S, k), or (B, Hq, S, k) for each query head; (S, k) too where B is 1. With `ragged`
   * (sum S, k), or (sum S, Hq, k). Keys are counted from 0 in their sequence, the past ones first; -1 is none.
   * Lists hold whole numbers.
   */
  readonly indices?: TensorLike | undefined;
  /**
   * Attention sinks of rows: an extra logit for each row of each query head, in place of `sinks`. (B, Hq, S), of
   * a float type; with `matrix` (S) too, with `ragged` (sum S, Hq). The server's errors name it `sinks`.
   */
  readonly rowSinks?: TensorLike | undefined;
  /** B numbers: keys from there on are masked. */
  readonly validLengths?: readonly number[] | undefined;
  /** Layout `ragged`: where each sequence's queries begin, and where the last one's end. */
  readonly queryStarts?: readonly number[] | undefined;
  /** Layout `ragged`: likewise for keys. */
  readonly keyStarts?: readonly number[] | undefined;
}

/** How long the server took, in microseconds. */
export interface Timing {
  /** From the request's arrival to the start of work on it. */
  readonly queueUs: number;
  /** Reading the message into tensors. */
  readonly decodeUs: number;
  /** The attention itself. */
  readonly computeUs: number;
  /** Writing the answer. */
  readonly encodeUs: number;
}

/** The answer of one computation. What was not asked for is undefined. */
export interface ComputeResult {
  /** (B, Hq, S, Dv), of the query's type. */
  readonly output: Tensor;
  /** (B, Hq, S), of float32 or float64. */
  readonly logSumExp: Tensor | undefined;
  /** (B, Hq, S, P + L), of the query's type. */
  readonly scores: Tensor | undefined;
  /** (B, Hkv, P + L, D). */
  readonly presentKey: Tensor | undefined;
  /** (B, Hkv, P + L, Dv). */
  readonly presentValue: Tensor | undefined;
  /** What took the server its time. */
  readonly timing: Timing;
}

const NAMES: Readonly<Record<keyof ComputeRequest, true>> = {
  query: true,
  key: true,
  value: true,
  mask: true,
  pastKey: true,
  pastValue: true,
  indices: true,
  rowSinks: true,
  validLengths: true,
  queryStarts: true,
  keyStarts: true,
  ...SCORING_NAMES,
  layout: true,
  queryHeads: true,
  kvHeads: true,
  returnPresent: true,
};

function lengths(name: string, values: readonly number[] | undefined): bigint[] {
  return values === undefined ? [] : Array.from(values, (value) => integer(name, value));
}

/** @internal */
export function computeMessage(request: ComputeRequest): ComputeAttentionRequest {
  checkNames(request, NAMES);
  const message = create(ComputeAttentionRequestSchema);
  message.query = tensorMessage(toTensor("query", request.query));
  message.key = tensorMessage(toTensor("key", request.key));
  message.value = tensorMessage(toTensor("value", request.value));
  const { mask, pastKey, pastValue, indices, rowSinks } = request;
  if (mask !== undefined) message.mask = tensorMessage(toTensor("mask", mask));
  if (pastKey !== undefined) message.pastKey = tensorMessage(toTensor("pastKey", pastKey));
  if (pastValue !== undefined) message.pastValue = tensorMessage(toTensor("pastValue", pastValue));
  if (indices !== undefined) message.indices = tensorMessage(toIndices("indices", indices));
  if (rowSinks !== undefined) message.sinks = tensorMessage(toTensor("rowSinks", rowSinks));
  message.validLengths = lengths("validLengths", request.validLengths);
  message.queryStarts = lengths("queryStarts", request.queryStarts);
  message.keyStarts = lengths("keyStarts", request.keyStarts);
  const options = optionsMessage(request);
  if (options) message.options = options;
  return message;
}

/** The layout that a request means; unspecified where its rank has none. @internal */
export function layoutOf(request: ComputeAttentionRequest): Layout {
  const given = request.options?.layout ?? Layout.UNSPECIFIED;
  if (given !== Layout.UNSPECIFIED) return given;
  const rank = request.query?.shape.length ?? 0;
  if (rank === 2) return Layout.MATRIX;
  if (rank === 3) return Layout.PACKED;
  return rank === 4 ? Layout.BHSD : Layout.UNSPECIFIED;
}

/** The output's shape, if the request is well-formed. @internal */
export function outputShape(request: ComputeAttentionRequest): number[] {
  const query = request.query?.shape.map(Number) ?? [];
  const valueSize = Number(request.value?.shape.at(-1) ?? 0n);
  const packed = layoutOf(request) === Layout.PACKED;
  const heads = packed ? Number(request.options?.queryHeads ?? 0n) : 1;
  const kvHeads = packed ? Number(request.options?.kvHeads ?? 0n) : 1;
  return [...query.slice(0, -1), kvHeads > 0 ? (valueSize / kvHeads) * heads : 0];
}

/** @internal */
export function timingOf(message: TimingMessage | undefined): Timing {
  return {
    queueUs: Number(message?.queueUs ?? 0n),
    decodeUs: Number(message?.decodeUs ?? 0n),
    computeUs: Number(message?.computeUs ?? 0n),
    encodeUs: Number(message?.encodeUs ?? 0n),
  };
}

/** A tensor that comes exactly if it was asked for. @internal */
export function asked(
  name: string,
  wanted: boolean | undefined,
  message: ComputeAttentionResponse["output"],
): Tensor | undefined {
  return wanted ? fromMessage(name, message) : undefined;
}

/** @internal */
export function computeResult(
  request: ComputeAttentionRequest,
  response: ComputeAttentionResponse,
): ComputeResult {
  const output = fromMessage("output", response.output);
  const wanted = outputShape(request);
  if (response.output?.dataType !== request.query?.dataType || String(output.shape) !== String(wanted)) {
    throw malformed(
      `output: got ${output.dataType} (${output.shape.join(", ")}), wanted (${wanted.join(", ")}) of the query's type`,
    );
  }
  const { options } = request;
  return {
    output,
    logSumExp: asked("log_sum_exp", options?.returnLogSumExp, response.logSumExp),
    scores: asked(
      "scores",
      options !== undefined && options.returnScores !== Scores.UNSPECIFIED,
      response.scores,
    ),
    presentKey: asked("present_key", options?.returnPresent, response.presentKey),
    presentValue: asked("present_value", options?.returnPresent, response.presentValue),
    timing: timingOf(response.timing),
  };
}
