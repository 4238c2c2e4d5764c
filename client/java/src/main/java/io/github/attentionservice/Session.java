package io.github.attentionservice;

import java.util.Collections;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;

/**
 * A session: one sequence, whose keys and values stay in the server between calls, so that a decode
 * step sends the new token only.
 *
 * <pre>{@code
 * try (Session session = client.createSession(SessionConfig.builder(8, 128).layers(32).build())) {
 *   session.append(layer, key, value);                                 // the prompt, (8, n, 128)
 *   Tensor output = session.step(layer, key, value, query).output();   // each token, (8, 1, 128)
 * }
 * }</pre>
 *
 * <p><b>The end.</b> {@link #close}, and so a {@code try} block, deletes the session at the server.
 * An object that is dropped deletes nothing: the server does when the lease is over. {@link
 * #release} leaves the session to others.
 *
 * <p><b>Lengths.</b> The object knows how long each layer is, from what the server answered to it,
 * and appends and attends only where that is still so ({@link AttendOptions#withAnyLength} attends
 * to whatever is there). Else nothing is done: ABORTED ({@code LENGTH_CONFLICT}), and {@link
 * AttentionException#length} is the true length. {@link #refresh} takes over the server's lengths.
 *
 * <p><b>Trying again.</b> Each append has a request id, by which the server does it once. Where a
 * call failed for want of an answer (DEADLINE_EXCEEDED, CANCELLED, UNAVAILABLE), the same tokens
 * may be appended again with the same object, also where they are so many that they go in several
 * calls.
 *
 * <p><b>Leases.</b> The client renews the session's lease for as long as the object is referred to.
 *
 * <p>Thread-safe. While an append to a layer is under way, another one to it fails with ABORTED.
 */
public final class Session implements AutoCloseable {
  private final AttentionClient client;
  private final Sessions sessions;
  private final SessionState state;

  Session(AttentionClient client, Sessions sessions, SessionState state) {
    this.client = client;
    this.sessions = sessions;
    this.state = state;
  }

  SessionState state() {
    return state;
  }

  AttentionClient client() {
    return client;
  }

  /**
   * The session's id.
   *
   * @return 1 to 128 printable ASCII characters
   */
  public String id() {
    return state.id();
  }

  /**
   * Tells the session from others that had or will have its id.
   *
   * @return an unsigned number, never 0
   */
  public long incarnation() {
    return state.incarnation();
  }

  /**
   * What the session holds.
   *
   * @return with every default filled in
   */
  public SessionConfig config() {
    return state.config();
  }

  /**
   * The tokens of layer 0, as far as this object knows.
   *
   * @return a number of tokens
   */
  public long length() {
    return state.length(0);
  }

  /**
   * The tokens of a layer, as far as this object knows.
   *
   * @param layer counted from 0
   * @return a number of tokens
   * @throws IndexOutOfBoundsException if there is no such layer
   */
  public long length(int layer) {
    return state.length(layer);
  }

  /**
   * The tokens of all layers, as far as this object knows.
   *
   * @return one number per layer
   */
  public long[] lengths() {
    return state.lengths();
  }

  /**
   * Adds tokens to layer 0, as {@link #append(int, Tensor, Tensor, CallOptions)}.
   *
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv)
   * @return the layer's length
   * @throws AttentionException if the call fails
   */
  public long append(Tensor key, Tensor value) {
    return append(0, key, value);
  }

  /**
   * Adds tokens to a layer, as {@link #append(int, Tensor, Tensor, CallOptions)}.
   *
   * @param layer counted from 0
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv); null where the session stores none
   * @return the layer's length
   * @throws AttentionException if the call fails
   */
  public long append(int layer, Tensor key, Tensor value) {
    return append(layer, key, value, CallOptions.DEFAULT);
  }

  /**
   * Adds tokens to a layer: all of them or, on an error, none.
   *
   * <p>More than 8 MiB are sent in several calls, one after another, each of which is done whole or
   * not at all. If one fails, those before it stay: {@link #length(int)} counts their tokens. The
   * same tokens, appended once more, go on where that was.
   *
   * @param layer counted from 0
   * @param key (Hkv, n, D), of any type of floats
   * @param value (Hkv, n, Dv), of any type of floats; null where the session stores none
   * @param options of the call
   * @return the layer's length
   * @throws AttentionException if the call fails
   */
  public long append(int layer, Tensor key, Tensor value, CallOptions options) {
    Objects.requireNonNull(key, "key");
    return client.block(options, context -> sessions.append(state, layer, key, value, context));
  }

  /**
   * Adds tokens without waiting, as {@link #append(int, Tensor, Tensor, CallOptions)}.
   *
   * @param layer counted from 0
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv); null where the session stores none
   * @param options of the call
   * @return the layer's length; to cancel it cancels the call
   */
  public CompletableFuture<Long> appendAsync(
      int layer, Tensor key, Tensor value, CallOptions options) {
    Objects.requireNonNull(key, "key");
    return client.startAsync(
        options, context -> sessions.append(state, layer, key, value, context));
  }

  /**
   * Attends to the tokens of layer 0.
   *
   * @param query (Hq, S, D), of the type that the session stores
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public AttendResult attend(Tensor query) {
    return attend(0, query);
  }

  /**
   * Attends to the tokens of a layer.
   *
   * @param layer counted from 0
   * @param query (Hq, S, D), of the type that the session stores
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public AttendResult attend(int layer, Tensor query) {
    return attend(layer, query, AttendOptions.DEFAULT, CallOptions.DEFAULT);
  }

  /**
   * Attends to the tokens of a layer.
   *
   * @param layer counted from 0
   * @param query (Hq, S, D), of the type that the session stores
   * @param attend how
   * @param options of the call
   * @return the answer
   * @throws AttentionException if the call fails; ABORTED if the layer has another length than this
   *     object knows
   */
  public AttendResult attend(int layer, Tensor query, AttendOptions attend, CallOptions options) {
    return step(StepItem.attend(this, layer, query).with(attend), options);
  }

  /**
   * Attends without waiting.
   *
   * @param layer counted from 0
   * @param query (Hq, S, D), of the type that the session stores
   * @param attend how
   * @param options of the call
   * @return the answer; to cancel it cancels the call
   */
  public CompletableFuture<AttendResult> attendAsync(
      int layer, Tensor query, AttendOptions attend, CallOptions options) {
    return stepAsync(StepItem.attend(this, layer, query).with(attend), options);
  }

  /**
   * Adds tokens to layer 0, then attends to all of them.
   *
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv); null where the session stores none
   * @param query (Hq, S, D), of the type that the session stores
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public AttendResult step(Tensor key, Tensor value, Tensor query) {
    return step(0, key, value, query);
  }

  /**
   * Adds tokens to a layer, then attends to all of them.
   *
   * @param layer counted from 0
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv); null where the session stores none
   * @param query (Hq, S, D), of the type that the session stores
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public AttendResult step(int layer, Tensor key, Tensor value, Tensor query) {
    return step(layer, key, value, query, AttendOptions.DEFAULT, CallOptions.DEFAULT);
  }

  /**
   * Adds tokens to a layer, then attends to all of them, in one message: both or, on an error,
   * neither. What is larger than a message that the server takes must be appended before.
   *
   * @param layer counted from 0
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv); null where the session stores none
   * @param query (Hq, S, D), of the type that the session stores
   * @param attend how
   * @param options of the call
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public AttendResult step(
      int layer,
      Tensor key,
      Tensor value,
      Tensor query,
      AttendOptions attend,
      CallOptions options) {
    return step(StepItem.step(this, layer, key, value, query).with(attend), options);
  }

  /**
   * Adds tokens and attends without waiting.
   *
   * @param layer counted from 0
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv); null where the session stores none
   * @param query (Hq, S, D), of the type that the session stores
   * @param attend how
   * @param options of the call
   * @return the answer; to cancel it cancels the call
   */
  public CompletableFuture<AttendResult> stepAsync(
      int layer,
      Tensor key,
      Tensor value,
      Tensor query,
      AttendOptions attend,
      CallOptions options) {
    return stepAsync(StepItem.step(this, layer, key, value, query).with(attend), options);
  }

  private AttendResult step(StepItem item, CallOptions options) {
    return client.block(options, context -> sessions.step(item, context));
  }

  private CompletableFuture<AttendResult> stepAsync(StepItem item, CallOptions options) {
    return client.startAsync(options, context -> sessions.step(item, context));
  }

  /**
   * A new session with the tokens of this one, which takes no memory for them until the two part.
   *
   * @return the new session
   * @throws AttentionException if the call fails
   */
  public Session fork() {
    return fork("", CallOptions.DEFAULT);
  }

  /**
   * A new session with the tokens of this one.
   *
   * @param id of the new session; empty: one that nobody can guess
   * @param options of the call
   * @return the new session
   * @throws AttentionException if the call fails
   */
  public Session fork(String id, CallOptions options) {
    return client.forkSessions(List.of(new Fork(this, id)), options).get(0);
  }

  /**
   * Several new sessions with the tokens of this one: all or none.
   *
   * @param count 1 to 128
   * @return the new sessions
   * @throws AttentionException if the call fails
   */
  public List<Session> forkMany(int count) {
    return client.forkSessions(Collections.nCopies(count, new Fork(this)), CallOptions.DEFAULT);
  }

  /**
   * Forgets the tokens of every layer from a length on.
   *
   * @param length at most that of the shortest layer
   * @throws AttentionException if the call fails; nothing is changed then
   */
  public void truncate(long length) {
    truncate(length, CallOptions.DEFAULT);
  }

  /**
   * Forgets the tokens of every layer from a length on.
   *
   * @param length at most that of the shortest layer
   * @param options of the call
   * @throws AttentionException if the call fails; nothing is changed then
   */
  public void truncate(long length, CallOptions options) {
    client.block(options, context -> sessions.truncate(state, length, context));
  }

  /**
   * Takes over the lengths that the server has.
   *
   * @return what the server tells
   * @throws AttentionException if the call fails
   */
  public SessionInfo refresh() {
    return refresh(CallOptions.DEFAULT);
  }

  /**
   * Takes over the lengths that the server has.
   *
   * @param options of the call
   * @return what the server tells
   * @throws AttentionException if the call fails
   */
  public SessionInfo refresh(CallOptions options) {
    return client.block(options, context -> sessions.refresh(state, context));
  }

  /**
   * Ends the session at the server. No error if it has ended before.
   *
   * @throws AttentionException if the call fails
   */
  public void delete() {
    delete(CallOptions.DEFAULT);
  }

  /**
   * Ends the session at the server. No error if it has ended before.
   *
   * @param options of the call
   * @throws AttentionException if the call fails
   */
  public void delete(CallOptions options) {
    client.block(options, context -> sessions.delete(state, context));
  }

  /** Stops renewing the lease, and leaves the session to whoever opens it by its id. */
  public void release() {
    sessions.release(state);
  }

  /**
   * {@link #delete}s the session. Nothing if the client was closed before.
   *
   * @throws AttentionException if the call fails
   */
  @Override
  public void close() {
    if (!client.isClosed()) {
      delete();
    }
  }

  /** The id. */
  @Override
  public String toString() {
    return "Session " + id();
  }
}
