/** What both entry points share. */

export type { Capabilities, CallOptions, CommonOptions, Fork, HealthStatus } from "./client.js";
export { ClientBase } from "./client.js";
export type { ComputeRequest, ComputeResult, Timing } from "./compute.js";
export type { Code, FieldViolation } from "./errors.js";
export { AttentionError } from "./errors.js";
export { bfloat16ToFloat32, float16ToFloat32, float32ToBfloat16, float32ToFloat16 } from "./float16.js";
export type { AttentionOptions, ScoringOptions } from "./options.js";
export type {
  AppendRequest,
  AttendOptions,
  AttendRequest,
  AttendResult,
  SessionConfig,
  SessionDataType,
  SessionInfo,
  StepItem,
  StepRequest,
  StepResult,
} from "./session.js";
export { Session } from "./session.js";
export type { DataType, NestedArray, TensorData, TensorLike } from "./tensor.js";
export { bfloat16, bits, bool, float16, Tensor, tensor } from "./tensor.js";
