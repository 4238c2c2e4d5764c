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

/**
 * Each message has a stream to itself until it is answered: none waits for another's. Streams are kept open
 * for the next messages, and keep no process alive meanwhile. @internal
 */
export class StepStreams {
  readonly #connection: Connection;
  readonly #maxReceiveBytes: number;
  readonly #idle: Call[] = [];

  constructor(connection: Connection, maxReceiveBytes: number) {
    this.#connection = connection;
    this.#maxReceiveBytes = maxReceiveBytes;
  }

  /** Sends a message a second time, on a new stream, if the kept one has ended meanwhile. */
  async step(request: StepRequest, context: CallContext): Promise<StepResponse> {
    const kept = this.#take();
    if (kept) {
      try {
        kept.busy(true);
        kept.limit(context);
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
    return this.#exchange(call, request);
  }

  async #exchange(call: Call, request: StepRequest): Promise<StepResponse> {
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
      this.#keep(call);
      return response;
    } catch (error) {
      call.cancel();
      throw error;
    }
  }

  #take(): Call | undefined {
    for (let call = this.#idle.pop(); call; call = this.#idle.pop()) {
      // One that is known to have ended was not sent on: a new one is as good.
      if (!call.ended) return call;
    }
    return undefined;
  }

  #keep(call: Call): void {
    call.unlimit();
    call.busy(false);
    if (this.#idle.length < MOST_IDLE && !call.ended) this.#idle.push(call);
    else call.end();
  }

  close(): void {
    for (const call of this.#idle.splice(0)) call.end();
  }
}
