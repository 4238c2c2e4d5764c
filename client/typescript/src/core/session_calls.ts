/** The calls of sessions, and what they do to what is known of a session. */

import { create } from "@bufbuild/protobuf";
import type { StepItem as ItemMessage } from "../gen/attention/v1/session_pb.js";
import {
  AppendKeyValuesRequestSchema,
  AttendRequestSchema,
  DeleteSessionRequestSchema,
  GetSessionRequestSchema,
  SessionService,
  StepRequestSchema,
  TruncateSessionRequestSchema,
} from "../gen/attention/v1/session_pb.js";
import type { CallOptions, ClientBase } from "./client.js";
import { timingOf } from "./compute.js";
import { AttentionError, codeName, detailsOf } from "./errors.js";
import { integer } from "./options.js";
import { Retries, sleep } from "./retry.js";
import type {
  AppendRequest,
  AttendRequest,
  AttendResult,
  StepItem,
  StepRequest,
  StepResult,
} from "./session.js";
import { itemMessage, stepResult } from "./session.js";
import type { LayerClaim, SessionState } from "./session_state.js";
import { digestOf } from "./session_state.js";
import type { Tensor } from "./tensor.js";
import { elementSize, malformed, Tensor as TensorClass, tensorMessage, toTensor } from "./tensor.js";
import type { CallContext, Transport } from "./transport.js";

const { appendKeyValues, attend, deleteSession, getSession, truncateSession } = SessionService.method;

/** An append of more bytes is sent in several calls. */
const APPEND_BYTES = 8 * 2 ** 20;
/** The most items of a StepRequest. */
const MOST_ITEMS = 1024;

/** Tokens [begin, end) of (heads, tokens, size). */
function tokensOf(tensor: Tensor, begin: number, end: number): Tensor {
  const [heads, tokens, size] = tensor.shape as [number, number, number];
  const row = size * elementSize(tensor.dataType);
  const run = (end - begin) * row;
  const bytes = new Uint8Array(heads * run);
  for (let h = 0; h < heads; ++h) {
    const from = (h * tokens + begin) * row;
    bytes.set(tensor.bytes.subarray(from, from + run), h * run);
  }
  return new TensorClass(tensor.dataType, [heads, end - begin, size], bytes);
}

/** How many tokens go into one call; Infinity: all. What is not well-formed is sent whole. */
function tokensPerCall(key: Tensor, value: Tensor | undefined): number {
  const bytes = key.bytes.byteLength + (value?.bytes.byteLength ?? 0);
  const tokens = key.shape[1] ?? 0;
  const wellFormed =
    key.shape.length === 3 &&
    key.dataType !== "bits" &&
    (!value || (value.shape.length === 3 && value.shape[1] === tokens && value.dataType !== "bits"));
  if (bytes <= APPEND_BYTES || !wellFormed || tokens === 0) return Infinity;
  return Math.max(1, Math.floor(APPEND_BYTES / (bytes / tokens)));
}

/** An item that is being sent. */
interface Sent {
  readonly number: number;
  readonly state: SessionState;
  readonly claim: LayerClaim | undefined;
  readonly message: ItemMessage;
  readonly retries: Retries;
}

/** @internal */
export class SessionCalls {
  readonly #client: ClientBase;
  readonly #transport: Transport;

  constructor(client: ClientBase, transport: Transport) {
    this.#client = client;
    this.#transport = transport;
  }

  async append(state: SessionState, request: AppendRequest, options: CallOptions = {}): Promise<number> {
    const key = toTensor("key", request.key);
    const value = request.value === undefined ? undefined : toTensor("value", request.value);
    const layer = request.layer ?? 0;
    const context = this.#client.context(options);
    const claim = state.claim(layer);
    try {
      const perCall = tokensPerCall(key, value);
      if (perCall === Infinity) {
        return await this.#appendOnce(state, claim, layer, key, value, context, options);
      }
      return await this.#appendPieces(state, claim, layer, key, value, perCall, context, options);
    } finally {
      claim.release();
    }
  }

  async #appendPieces(
    state: SessionState,
    claim: LayerClaim,
    layer: number,
    key: Tensor,
    value: Tensor | undefined,
    perCall: number,
    context: CallContext,
    options: CallOptions,
  ): Promise<number> {
    const tokens = key.shape[1] as number;
    const total = key.bytes.byteLength + (value?.bytes.byteLength ?? 0);
    const before = claim.unfinished;
    // The same tokens again go on where they ended.
    const again = before?.tokens === tokens && before.digest === digestOf(key, value);
    let length = 0;
    for (let begin = again ? before.done : 0; begin < tokens; begin += perCall) {
      const end = Math.min(begin + perCall, tokens);
      try {
        length = await this.#appendOnce(
          state,
          claim,
          layer,
          tokensOf(key, begin, end),
          value && tokensOf(value, begin, end),
          context,
          options,
        );
      } catch (error) {
        if (begin === 0 || !(error instanceof AttentionError)) throw error;
        claim.unfinished = { digest: digestOf(key, value), tokens, done: begin };
        throw error.with(
          `${error.text}; the first ${String(begin)} of ${String(tokens)} tokens were appended`,
        );
      }
      options.onProgress?.((total / tokens) * end, total);
    }
    return length;
  }

  async #appendOnce(
    state: SessionState,
    claim: LayerClaim,
    layer: number,
    key: Tensor,
    value: Tensor | undefined,
    context: CallContext,
    options: CallOptions,
  ): Promise<number> {
    const message = create(AppendKeyValuesRequestSchema);
    message.id = state.id;
    message.incarnation = state.incarnation;
    message.layer = integer("layer", layer);
    const { expectedLength } = claim;
    if (expectedLength !== undefined) message.expectedLength = expectedLength;
    message.requestId = claim.requestId;
    message.key = tensorMessage(key);
    if (value) message.value = tensorMessage(value);
    const { length } = await state.use(() =>
      this.#client.call(appendKeyValues, message, context, options, {
        repeatable: message.requestId !== "",
        append: message.requestId !== "",
      }),
    );
    claim.appended(Number(length));
    return Number(length);
  }

  async attend(
    state: SessionState,
    request: AttendRequest,
    options: CallOptions = {},
  ): Promise<AttendResult> {
    return (await this.#stepAlone(state, request, options)) as AttendResult;
  }

  async stepOne(state: SessionState, request: StepRequest, options: CallOptions = {}): Promise<AttendResult> {
    return (await this.#stepAlone(state, request, options)) as AttendResult;
  }

  async #stepAlone(
    state: SessionState,
    item: Omit<StepItem, "session">,
    options: CallOptions,
  ): Promise<StepResult> {
    const [result] = await this.#stepStates([{ state, item }], options);
    if (result === undefined) throw malformed("a step has no result");
    if (result instanceof AttentionError) throw result;
    return result;
  }

  step(items: readonly StepItem[], options: CallOptions = {}): Promise<(StepResult | AttentionError)[]> {
    if (items.length > MOST_ITEMS) {
      throw new RangeError(`items: got ${String(items.length)}, wanted at most ${String(MOST_ITEMS)}`);
    }
    for (const { session } of items) {
      if (session.client !== this.#client) throw new TypeError("session: got one of another client");
    }
    return this.#stepStates(
      items.map((item) => ({ state: item.session.state, item })),
      options,
    );
  }

  async #stepStates(
    items: readonly { state: SessionState; item: Omit<StepItem, "session"> }[],
    options: CallOptions,
  ): Promise<(StepResult | AttentionError)[]> {
    const context = this.#client.context(options);
    const results = new Array<StepResult | AttentionError>(items.length);
    const sent: Sent[] = [];
    try {
      // Whole first: an argument that cannot be sent leaves nothing claimed.
      const messages = items.map(({ state, item }) => itemMessage(state, item));
      for (const [number, { state, item }] of items.entries()) {
        const message = messages[number] as ItemMessage;
        let claim: LayerClaim | undefined;
        try {
          state.check();
          if (message.key) claim = state.claim(item.layer ?? 0);
        } catch (error) {
          if (!(error instanceof AttentionError)) throw error;
          results[number] = error;
          continue;
        }
        if (claim) {
          const { expectedLength } = claim;
          if (expectedLength !== undefined) message.expectedLength = expectedLength;
          message.requestId = claim.requestId;
        } else if (!item.anyLength) {
          const length = state.length(item.layer ?? 0);
          if (length !== undefined) message.expectedLength = BigInt(length);
        }
        const append = message.requestId !== "";
        const policy = this.#client.policy(context, options, { repeatable: append || !message.key, append });
        sent.push({ number, state, claim, message, retries: new Retries(policy) });
      }
      if (this.#transport.step) await this.#exchange(sent, results, context);
      else await Promise.all(sent.map((item) => this.#separately(item, results, context, options)));
      return results;
    } finally {
      for (const { claim } of sent) claim?.release();
    }
  }

  /** Sends items in one message, and those again that are to be tried again. */
  async #exchange(
    sent: readonly Sent[],
    results: (StepResult | AttentionError)[],
    context: CallContext,
  ): Promise<void> {
    for (let pending = sent; pending.length > 0;) {
      const begun = performance.now();
      const failed = new Map<Sent, AttentionError>();
      try {
        const message = create(StepRequestSchema);
        message.items = pending.map((item) => item.message);
        const response = await this.#transport.step?.(message, context);
        if (response?.results.length !== pending.length) {
          throw malformed(
            `got ${String(response?.results.length)} results of ${String(pending.length)} items`,
          );
        }
        const timing = timingOf(response.timing);
        for (const [i, answer] of response.results.entries()) {
          const item = pending[i] as Sent;
          if (answer.code !== 0) {
            const error = new AttentionError(codeName(answer.code), answer.message, {
              details: detailsOf(answer.statusDetails),
              server: this.#transport.server,
            });
            failed.set(item, error);
            continue;
          }
          // Done, whatever the answer looks like.
          item.claim?.appended(Number(answer.length));
          item.state.used(begun);
          results[item.number] = orError(() => stepResult(item.message, answer, timing));
        }
      } catch (error) {
        if (!(error instanceof AttentionError)) throw error;
        for (const item of pending) failed.set(item, error);
      }
      let pause = 0;
      const again: Sent[] = [];
      for (const [item, error] of failed) {
        results[item.number] = error;
        item.state.failed(error);
        const wanted = item.retries.pauseAfter(error);
        if (wanted === undefined) continue;
        pause = Math.max(pause, wanted);
        again.push(item);
      }
      if (again.length === 0) return;
      try {
        await sleep(pause, context.signal);
      } catch (error) {
        for (const item of again) results[item.number] = error as AttentionError;
        return;
      }
      pending = again;
    }
  }

  /** An append and an attend by calls of their own, where there are no streams. */
  async #separately(
    { number, state, claim, message }: Sent,
    results: (StepResult | AttentionError)[],
    context: CallContext,
    options: CallOptions,
  ): Promise<void> {
    try {
      let { expectedLength } = message;
      let length = 0n;
      if (message.key) {
        const append = create(AppendKeyValuesRequestSchema, {
          id: message.id,
          incarnation: message.incarnation,
          layer: message.layer,
          requestId: message.requestId,
          key: message.key,
        });
        if (message.value) append.value = message.value;
        if (expectedLength !== undefined) append.expectedLength = expectedLength;
        ({ length } = await state.use(() =>
          this.#client.call(appendKeyValues, append, context, options, {
            repeatable: message.requestId !== "",
            append: message.requestId !== "",
          }),
        ));
        claim?.appended(Number(length));
        expectedLength = length;
      }
      if (!message.query) {
        results[number] = stepResult(message, { length }, timingOf(undefined));
        return;
      }
      const request = create(AttendRequestSchema, {
        id: message.id,
        incarnation: message.incarnation,
        layer: message.layer,
        query: message.query,
        notCausal: message.notCausal,
        maskBegin: message.maskBegin,
      });
      if (expectedLength !== undefined) request.expectedLength = expectedLength;
      if (message.mask) request.mask = message.mask;
      if (message.indices) request.indices = message.indices;
      if (message.sinks) request.sinks = message.sinks;
      if (message.options) request.options = message.options;
      const answer = await state.use(() => this.#client.call(attend, request, context, options));
      results[number] = stepResult(message, answer, timingOf(answer.timing));
    } catch (error) {
      if (!(error instanceof AttentionError)) throw error;
      results[number] = error;
    }
  }

  async truncate(state: SessionState, length: number, options: CallOptions = {}): Promise<void> {
    const message = create(TruncateSessionRequestSchema);
    message.id = state.id;
    message.incarnation = state.incarnation;
    message.length = integer("length", length);
    const { session } = await state.use(() =>
      this.#client.call(truncateSession, message, this.#client.context(options), options),
    );
    if (session) state.tell(session.lengths);
  }

  async refresh(state: SessionState, options: CallOptions = {}): Promise<void> {
    const lengths = await this.#get(state, options);
    if (lengths) state.tell(lengths);
  }

  /** Renews the lease, and changes nothing that is known. */
  async renew(state: SessionState): Promise<void> {
    await this.#get(state, { timeoutMs: Math.max(1000, state.leaseMs / 3), maxAttempts: 1 });
  }

  async #get(state: SessionState, options: CallOptions): Promise<bigint[] | undefined> {
    const message = create(GetSessionRequestSchema);
    message.id = state.id;
    message.incarnation = state.incarnation;
    const { session } = await state.use(() =>
      this.#client.call(getSession, message, this.#client.context(options), options),
    );
    return session?.lengths;
  }

  async delete(state: SessionState, options: CallOptions = {}): Promise<void> {
    // A session with the same id would be another.
    if (state.gone) return;
    const message = create(DeleteSessionRequestSchema);
    message.id = state.id;
    message.incarnation = state.incarnation;
    await this.#client.call(deleteSession, message, this.#client.context(options), options);
    state.deleted();
  }
}

function orError(make: () => StepResult): StepResult | AttentionError {
  try {
    return make();
  } catch (error) {
    if (error instanceof AttentionError) return error;
    throw error;
  }
}
