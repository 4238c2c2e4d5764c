/** What a failed call says. */

import { fromBinary } from "@bufbuild/protobuf";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from "../gen/attention/details/v1/details_pb.js";

/** The code of an error: gRPC's names. */
export type Code =
  | "CANCELLED"
  | "UNKNOWN"
  | "INVALID_ARGUMENT"
  | "DEADLINE_EXCEEDED"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "FAILED_PRECONDITION"
  | "ABORTED"
  | "OUT_OF_RANGE"
  | "UNIMPLEMENTED"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "DATA_LOSS"
  | "UNAUTHENTICATED";

/** By number, from 1. */
const CODES: readonly Code[] = [
  "CANCELLED",
  "UNKNOWN",
  "INVALID_ARGUMENT",
  "DEADLINE_EXCEEDED",
  "NOT_FOUND",
  "ALREADY_EXISTS",
  "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED",
  "FAILED_PRECONDITION",
  "ABORTED",
  "OUT_OF_RANGE",
  "UNIMPLEMENTED",
  "INTERNAL",
  "UNAVAILABLE",
  "DATA_LOSS",
  "UNAUTHENTICATED",
];

/** The name of a code on the wire. @internal */
export function codeName(code: number): Code {
  return CODES[code - 1] ?? "UNKNOWN";
}

/** One field that is wrong. */
export interface FieldViolation {
  /** Its path in the request, by the names of attention.proto: `key.shape`. */
  readonly field: string;
  /** What came and what was wanted. */
  readonly description: string;
}

/** A message of google.rpc by its public name, as statuses carry them. @internal */
export interface Detail {
  readonly type: string;
  readonly value: Uint8Array;
}

/** What an error is made of, besides code and text. @internal */
export interface ErrorParts {
  readonly details?: readonly Detail[];
  /** The trailer grpc-retry-pushback-ms. */
  readonly pushback?: string | undefined;
  readonly server?: string | undefined;
  readonly cause?: unknown;
  readonly reason?: string;
  readonly metadata?: Readonly<Record<string, string>>;
}

/**
 * A call that failed. Every failure after a call was sent is one of these; arguments that cannot be
 * sent are a TypeError or a RangeError.
 *
 * ```ts
 * try {
 *   await client.compute(request);
 * } catch (error) {
 *   if (error instanceof AttentionError && error.code === "INVALID_ARGUMENT") {
 *     console.log(error.fieldViolations[0]?.field); // key.shape
 *   }
 * }
 * ```
 */
export class AttentionError extends Error {
  override readonly name = "AttentionError";
  /** What kind of failure it is. */
  readonly code: Code;
  /**
   * Why, in capitals: tells errors of one code apart, such as `QUEUE_FULL`. The project's
   * client/README.md lists them. Undefined where neither the service nor this client gave one.
   */
  readonly reason: string | undefined;
  /** The fields that are wrong, where the code is INVALID_ARGUMENT. */
  readonly fieldViolations: readonly FieldViolation[];
  /** The true length of the layer, where the reason is LENGTH_CONFLICT. */
  readonly length: number | undefined;
  /** When to try again, where the server told. */
  readonly retryDelayMs: number | undefined;
  /** More about the reason, such as `length`, `first_token` and `least_length`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** What is not there, where the code is NOT_FOUND: its type and its name. */
  readonly resource: { readonly type: string; readonly name: string } | undefined;
  /** The text alone, without code and server. */
  readonly text: string;
  /** The server forbade another try. @internal */
  readonly neverAgain: boolean;
  /** @internal */
  readonly parts: ErrorParts;

  /** @internal */
  constructor(code: Code, text: string, parts: ErrorParts = {}) {
    const at = parts.server === undefined ? "" : ` (server ${parts.server})`;
    super(`${code}: ${text}${at}`, parts.cause === undefined ? {} : { cause: parts.cause });
    this.code = code;
    this.text = text;
    let reason = parts.reason;
    let metadata = parts.metadata ?? {};
    let delay: number | undefined;
    let resource: AttentionError["resource"];
    const violations: FieldViolation[] = [];
    for (const { type, value } of parts.details ?? []) {
      try {
        switch (type.slice(type.lastIndexOf("/") + 1)) {
          case "google.rpc.ErrorInfo": {
            const info = fromBinary(ErrorInfoSchema, value);
            if (info.domain !== "attention") break;
            reason = info.reason;
            metadata = info.metadata;
            break;
          }
          case "google.rpc.BadRequest":
            for (const { field, description } of fromBinary(BadRequestSchema, value).fieldViolations) {
              violations.push({ field, description });
            }
            break;
          case "google.rpc.RetryInfo": {
            const wait = fromBinary(RetryInfoSchema, value).retryDelay;
            const told = wait && Number(wait.seconds) * 1000 + wait.nanos / 1e6;
            if (told !== undefined && told >= 0) delay = told;
            break;
          }
          case "google.rpc.ResourceInfo": {
            const info = fromBinary(ResourceInfoSchema, value);
            resource = { type: info.resourceType, name: info.resourceName };
            break;
          }
        }
      } catch {
        // A detail that cannot be read says nothing; code and text still do.
      }
    }
    let neverAgain = false;
    if (parts.pushback !== undefined) {
      neverAgain = !/^\d{1,15}$/.test(parts.pushback);
      delay = neverAgain ? undefined : Number(parts.pushback);
    }
    this.reason = reason;
    this.metadata = metadata;
    this.fieldViolations = violations;
    this.retryDelayMs = delay;
    this.resource = resource;
    const length = metadata["length"];
    this.length = length !== undefined && /^\d+$/.test(length) ? Number(length) : undefined;
    this.neverAgain = neverAgain;
    this.parts = parts;
    // For machinery, not for those who print an error.
    Object.defineProperty(this, "parts", { enumerable: false });
    Object.defineProperty(this, "neverAgain", { enumerable: false });
  }

  /** The same error with another text, and with fields renamed. @internal */
  with(text: string, rename: (violation: FieldViolation) => FieldViolation = (v) => v): AttentionError {
    const error = new AttentionError(this.code, text, this.parts);
    Object.assign(error, { fieldViolations: this.fieldViolations.map(rename) });
    return error;
  }
}

/** The details in the bytes of a google.rpc.Status. @internal */
export function detailsOf(status: Uint8Array): Detail[] {
  try {
    return fromBinary(StatusSchema, status).details.map(({ typeUrl, value }) => ({ type: typeUrl, value }));
  } catch {
    return [];
  }
}

/** A call that the caller gave up. @internal */
export function cancelled(signal: AbortSignal | undefined, server?: string): AttentionError {
  return new AttentionError("CANCELLED", "the caller cancelled the call", {
    server,
    cause: signal?.reason as unknown,
  });
}

/** A call whose time is over. @internal */
export function deadlineExceeded(timeoutMs: number, server?: string): AttentionError {
  return new AttentionError("DEADLINE_EXCEEDED", `no answer within ${String(timeoutMs)} ms`, { server });
}
