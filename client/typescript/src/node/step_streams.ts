/** The streams on which a client sends its steps. */

import { fromBinary } from "@bufbuild/protobuf";
import type { StepRequest, StepResponse } from "../gen/attention/v1/session_pb.js";
import { StepResponseSchema } from "../gen/attention/v1/session_pb.js";
import type { AttentionError } from "../core/errors.js";
import { malformed } from "../core/tensor.js";
import type { CallContext } from "../core/transport.js";
import { writeStep } from "../core/wire.js";
import { Call } from "./call.js";
import type { Connection } from "./connection.js";

/** Streams that are kept open between messages. */
const MOST_IDLE = 8;
const PATH = "/attention.v1.SessionService/Step";

/** Whether a stream that was kept open ended before it took the message, or with its connection. */
function endedBetweenMessages(error: AttentionError): boolean {
  if (error.neverAgain) return false;
  switch (error.reason) {
    case "DRAINING":
    case "MEMORY_BUSY":
    case "IDLE_TOO_LONG":
      return true;
    case "TOKEN_UNKNOWN":
      // The token that it began with was replaced: a new stream has the new one.
      return error.code === "UNAUTHENTICATED";
    default:
      return error.code === "UNAVAILABLE" && error.reason === undefined;
  }
}

/** Tells a caller's headers from others. */
function keyOf(headers: CallContext["headers"]): string {
  const entries = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]);
  return entries.length === 0 ? "" : JSON.stringify(entries.sort());
}

/** A stream, and the headers that it was opened with. */
interface Kept {
  readonly call: Call;
  readonly headers: string;
}

/**
 * Each message has a stream to itself until it is answered: none waits for another's. Streams are kept open
 * for the next messages with the same headers, and keep no process alive meanwhile. @internal
 */
export class StepStreams {
  readonly #connection: Connection;
  readonly #maxReceiveBytes: number;
  /** The one used last at the end. */
  #idle: Kept[] = [];

  constructor(connection: Connection, maxReceiveBytes: number) {
    this.#connection = connection;
    this.#maxReceiveBytes = maxReceiveBytes;
  }

  /** Sends a message a second time, on a new stream, if the kept one has ended meanwhile. */
  async step(request: StepRequest, context: CallContext): Promise<StepResponse> {
    const headers = keyOf(context.headers);
    const kept = this.#take(headers);
    if (kept) {
      try {
        kept.call.busy(true);
        kept.call.limit(context);
        return await this.#exchange(kept, request);
      } catch (error) {
        if (!endedBetweenMessages(error as AttentionError)) throw error;
      }
    }
    const call = new Call(this.#connection, this.#maxReceiveBytes);
    const limit: Record<string, string> = {};
    if (this.#maxReceiveBytes !== Infinity)
      limit["attention-max-response-bytes"] = String(this.#maxReceiveBytes);
    // The deadline of each message is this client's: the stream goes on.
    call.limit(context);
    await call.open(PATH, { ...context, deadline: Infinity }, limit, false);
    return this.#exchange({ call, headers }, request);
  }

  async #exchange(kept: Kept, request: StepRequest): Promise<StepResponse> {
    const { call } = kept;
    try {
      const message = writeStep(request);
      const answer = call.next();
      // It is heard below, when the message is on its way.
      answer.catch(() => undefined);
      await call.write(message.finish(), message.size);
      const bytes = await answer;
      if (!bytes)
        throw this.#connection.unreachable(new Error("the stream of steps ended without an answer"));
      let response: StepResponse;
      try {
        response = fromBinary(StepResponseSchema, bytes);
      } catch (error) {
        throw malformed(String(error));
      }
      this.#keep(kept);
      return response;
    } catch (error) {
      call.cancel();
      throw error;
    }
  }

  #take(headers: string): Kept | undefined {
    // One that is known to have ended was not sent on: a new one is as good.
    this.#idle = this.#idle.filter(({ call }) => !call.ended);
    const kept = this.#idle.findLast((one) => one.headers === headers);
    this.#idle = this.#idle.filter((one) => one !== kept);
    return kept;
  }

  #keep(kept: Kept): void {
    kept.call.unlimit();
    kept.call.busy(false);
    this.#idle.push(kept);
    if (this.#idle.length > MOST_IDLE) this.#idle.shift()?.call.end();
  }

  close(): void {
    for (const { call } of this.#idle.splice(0)) call.end();
  }
}
