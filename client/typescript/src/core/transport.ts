/** How calls reach a server: what Node and browsers do differently. */

import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";
import type { ComputeAttentionRequest, ComputeAttentionResponse } from "../gen/attention/v1/attention_pb.js";
import type { StepRequest, StepResponse } from "../gen/attention/v1/session_pb.js";

/** What one try of a call carries. @internal */
export interface CallContext {
  /** By performance.now(); Infinity is none. */
  readonly deadline: number;
  /** What the caller gave, for texts. */
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
  readonly headers: Readonly<Record<string, string>>;
  readonly onProgress?: ((sentBytes: number, totalBytes: number) => void) | undefined;
}

/** Every failure is an AttentionError. @internal */
export interface Transport {
  /** The server's name in errors. */
  readonly server: string;
  unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    context: CallContext,
  ): Promise<MessageShape<O>>;
  /** ComputeAttention, or StreamAttention where that is better. */
  compute(request: ComputeAttentionRequest, context: CallContext): Promise<ComputeAttentionResponse>;
  /** A message of a Step stream and its answer; absent where there are no streams. */
  step?(request: StepRequest, context: CallContext): Promise<StepResponse>;
  /** Ends all calls. */
  close(): Promise<void>;
}
