package io.github.attentionservice;

import java.util.Objects;
import java.util.function.UnaryOperator;

/**
 * How queries are attended to in a session. Immutable.
 *
 * <p>By default the queries are the last tokens of the sequence: the last query sees all tokens,
 * the one before it all but the last.
 */
public final class AttendOptions {
  /** Every default. */
  public static final AttendOptions DEFAULT =
      new AttendOptions(AttentionOptions.DEFAULT, null, 0, false, null, null, false);

  final AttentionOptions options;
  final Tensor mask;
  final long maskBegin;
  final boolean notCausal;
  final Tensor indices;
  final Tensor rowSinks;
  final boolean anyLength;

  private AttendOptions(
      AttentionOptions options,
      Tensor mask,
      long maskBegin,
      boolean notCausal,
      Tensor indices,
      Tensor rowSinks,
      boolean anyLength) {
    this.options = options;
    this.mask = mask;
    this.maskBegin = maskBegin;
    this.notCausal = notCausal;
    this.indices = indices;
    this.rowSinks = rowSinks;
    this.anyLength = anyLength;
  }

  /**
   * Options of what is computed: {@code AttendOptions.of(o -> o.windowLeft(1023))}.
   *
   * @param choose sets options; layout, heads and {@code returnPresent} must be left out
   * @return options that are the default otherwise
   */
  public static AttendOptions of(UnaryOperator<AttentionOptions.Builder> choose) {
    return DEFAULT.withOptions(AttentionOptions.of(choose));
  }

  /**
   * The same with other options of what is computed.
   *
   * @param newOptions layout, heads and {@code returnPresent} must be left out
   * @return new options
   */
  public AttendOptions withOptions(AttentionOptions newOptions) {
    return new AttendOptions(
        Objects.requireNonNull(newOptions, "options"),
        mask,
        maskBegin,
        notCausal,
        indices,
        rowSinks,
        anyLength);
  }

  /**
   * The same with a mask, as in {@link ComputeRequest.Builder#mask}.
   *
   * @param newMask broadcast to (1, Hq, S, T)
   * @return new options
   */
  public AttendOptions withMask(Tensor newMask) {
    return withMask(newMask, 0);
  }

  /**
   * The same with a mask that leaves out the first tokens.
   *
   * @param newMask broadcast to (1, Hq, S, T - begin)
   * @param begin the token of the mask's first column: a multiple of 256, at most the first token
   *     that a query sees
   * @return new options
   */
  public AttendOptions withMask(Tensor newMask, long begin) {
    return new AttendOptions(options, newMask, begin, notCausal, indices, rowSinks, anyLength);
  }

  /**
   * The same where a query sees only the tokens that its list names, of those that all else lets it
   * see. Tokens are counted from the session's first one; -1 is none.
   *
   * @param newIndices of INT32 or INT64, (S, k), or (Hq, S, k) for each query head; null: all
   *     tokens
   * @return new options
   */
  public AttendOptions withIndices(Tensor newIndices) {
    return new AttendOptions(options, mask, maskBegin, notCausal, newIndices, rowSinks, anyLength);
  }

  /**
   * The same with a sink for each row of each query head, in place of {@link
   * AttentionOptions.Builder#sinks}. An error of the server names it {@code sinks}.
   *
   * @param newRowSinks of floats, (Hq, S); -infinity is no sink for that row; null: none
   * @return new options
   */
  public AttendOptions withRowSinks(Tensor newRowSinks) {
    return new AttendOptions(options, mask, maskBegin, notCausal, indices, newRowSinks, anyLength);
  }

  /**
   * The same where every query sees every token, but for what mask, indices and options hide.
   *
   * @return new options
   */
  public AttendOptions withoutCausal() {
    return new AttendOptions(options, mask, maskBegin, true, indices, rowSinks, anyLength);
  }

  /**
   * The same where a query sees whatever tokens the layer has, whoever has appended them. Without
   * it a layer that is not as long as the object knows is ABORTED. Where tokens are appended in the
   * same step it says nothing.
   *
   * @return new options
   */
  public AttendOptions withAnyLength() {
    return new AttendOptions(options, mask, maskBegin, notCausal, indices, rowSinks, true);
  }
}
