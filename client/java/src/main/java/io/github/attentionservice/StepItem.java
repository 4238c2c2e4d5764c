package io.github.attentionservice;

import java.util.Objects;

/**
 * A part of {@link AttentionClient#step}: an append, an attend, or both. Immutable but for the
 * elements, which are lent.
 */
public final class StepItem {
  final Session session;
  final int layer;
  final Tensor key;
  final Tensor value;
  final Tensor query;
  final AttendOptions options;

  private StepItem(
      Session session, int layer, Tensor key, Tensor value, Tensor query, AttendOptions options) {
    this.session = Objects.requireNonNull(session, "session");
    this.layer = layer;
    this.key = key;
    this.value = value;
    this.query = query;
    this.options = options;
  }

  /**
   * Adds tokens to a layer.
   *
   * @param session of the client that steps
   * @param layer counted from 0
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv); null where the session stores none
   * @return an item
   */
  public static StepItem append(Session session, int layer, Tensor key, Tensor value) {
    Objects.requireNonNull(key, "key");
    return new StepItem(session, layer, key, value, null, AttendOptions.DEFAULT);
  }

  /**
   * Attends to the tokens of a layer.
   *
   * @param session of the client that steps
   * @param layer counted from 0
   * @param query (Hq, S, D)
   * @return an item
   */
  public static StepItem attend(Session session, int layer, Tensor query) {
    Objects.requireNonNull(query, "query");
    return new StepItem(session, layer, null, null, query, AttendOptions.DEFAULT);
  }

  /**
   * Adds tokens to a layer, then attends to all of them: both or, on an error, neither.
   *
   * @param session of the client that steps
   * @param layer counted from 0
   * @param key (Hkv, n, D)
   * @param value (Hkv, n, Dv); null where the session stores none
   * @param query (Hq, S, D)
   * @return an item
   */
  public static StepItem step(Session session, int layer, Tensor key, Tensor value, Tensor query) {
    Objects.requireNonNull(key, "key");
    Objects.requireNonNull(query, "query");
    return new StepItem(session, layer, key, value, query, AttendOptions.DEFAULT);
  }

  /**
   * The same item with options of how it attends.
   *
   * @param newOptions in place of those before
   * @return a new item
   */
  public StepItem with(AttendOptions newOptions) {
    return new StepItem(
        session, layer, key, value, query, Objects.requireNonNull(newOptions, "options"));
  }
}
