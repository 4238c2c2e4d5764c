package io.github.attentionservice;

import io.github.attentionservice.proto.attention.Window;
import java.util.function.UnaryOperator;

/**
 * What to compute. Immutable; made by {@link #builder}.
 *
 * <p>Each option means what the field of this name means in {@code attention/v1/attention.proto}.
 */
public final class AttentionOptions {
  /** Every default. */
  public static final AttentionOptions DEFAULT = builder().build();

  private final io.github.attentionservice.proto.attention.AttentionOptions message;

  private AttentionOptions(io.github.attentionservice.proto.attention.AttentionOptions message) {
    this.message = message;
  }

  /**
   * A builder with every default.
   *
   * @return a new builder
   */
  public static Builder builder() {
    return new Builder(io.github.attentionservice.proto.attention.AttentionOptions.newBuilder());
  }

  /**
   * Options in one expression: {@code AttentionOptions.of(o -> o.causal(Causal.TOP_LEFT))}.
   *
   * @param choose sets options
   * @return the options
   */
  public static AttentionOptions of(UnaryOperator<Builder> choose) {
    return choose.apply(builder()).build();
  }

  /**
   * A builder with these options.
   *
   * @return a new builder
   */
  public Builder toBuilder() {
    return new Builder(message.toBuilder());
  }

  io.github.attentionservice.proto.attention.AttentionOptions message() {
    return message;
  }

  boolean isDefault() {
    return message.getSerializedSize() == 0;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof AttentionOptions options && options.message.equals(message);
  }

  @Override
  public int hashCode() {
    return message.hashCode();
  }

  /** As the specification's text form. */
  @Override
  public String toString() {
    return message.toString();
  }

  /** Collects options. Not thread-safe. */
  public static final class Builder {
    private final io.github.attentionservice.proto.attention.AttentionOptions.Builder message;

    private Builder(io.github.attentionservice.proto.attention.AttentionOptions.Builder message) {
      this.message = message;
    }

    /**
     * The axes of the tensors. Default: by the rank of the query.
     *
     * @param layout one of them
     * @return this
     */
    public Builder layout(Layout layout) {
      message.setLayoutValue(layout.number());
      return this;
    }

    /**
     * Hq. Needed with {@link Layout#PACKED}.
     *
     * @param heads at least 1, or 0: what the shapes say
     * @return this
     */
    public Builder queryHeads(long heads) {
      message.setQueryHeads(heads);
      return this;
    }

    /**
     * Hkv. Needed with {@link Layout#PACKED}.
     *
     * @param heads at least 1, or 0: what the shapes say
     * @return this
     */
    public Builder kvHeads(long heads) {
      message.setKvHeads(heads);
      return this;
    }

    /**
     * The factor of the dot products. Default: 1 / sqrt(D).
     *
     * @param scale finite; may be negative or 0
     * @return this
     */
    public Builder scale(double scale) {
      message.setScale(scale);
      return this;
    }

    /**
     * The soft cap of the scores: {@code softcap * tanh(score / softcap)}.
     *
     * @param softcap finite, at least 0; 0 is none
     * @return this
     */
    public Builder softcap(double softcap) {
      message.setSoftcap(softcap);
      return this;
    }

    /**
     * A causal mask. Default: none.
     *
     * @param causal which one
     * @return this
     */
    public Builder causal(Causal causal) {
      message.setCausalValue(causal.number());
      return this;
    }

    /**
     * A sliding window: the keys around the query's own position.
     *
     * @param left keys before it, itself not counted; -1 is unbounded
     * @param right keys after it; -1 is unbounded
     * @return this
     */
    public Builder window(long left, long right) {
      message.setWindow(Window.newBuilder().setLeft(left).setRight(right));
      return this;
    }

    /**
     * The left side of a sliding window.
     *
     * @param left keys before the query's own position, itself not counted; -1 is unbounded
     * @return this
     */
    public Builder windowLeft(long left) {
      message.getWindowBuilder().setLeft(left);
      return this;
    }

    /**
     * The right side of a sliding window.
     *
     * @param right keys after the query's own position; -1 is unbounded
     * @return this
     */
    public Builder windowRight(long right) {
      message.getWindowBuilder().setRight(right);
      return this;
    }

    /**
     * Chunked local attention: a query sees the keys of its own chunk only.
     *
     * @param positions of a chunk; 0 is none
     * @return this
     */
    public Builder chunkSize(long positions) {
      message.setChunkSize(positions);
      return this;
    }

    /**
     * ALiBi: adds {@code -slope * distance} to the scores.
     *
     * @param slopes one finite number per query head; none at all: no ALiBi
     * @return this
     */
    public Builder alibiSlopes(double... slopes) {
      message.clearAlibiSlopes();
      for (double slope : slopes) {
        message.addAlibiSlopes(slope);
      }
      return this;
    }

    /**
     * Attention sinks: one more logit per query head, without a value. {@link
     * ComputeRequest.Builder#rowSinks} and {@link AttendOptions#withRowSinks} have one for each row
     * in place of these.
     *
     * @param logits one per query head; -infinity is no sink for that head
     * @return this
     */
    public Builder sinks(double... logits) {
      message.clearSinks();
      for (double logit : logits) {
        message.addSinks(logit);
      }
      return this;
    }

    /**
     * What the arithmetic promises. Default: {@link MathMode#REPRODUCIBLE}.
     *
     * @param mode one of them
     * @return this
     */
    public Builder mathMode(MathMode mode) {
      message.setMathModeValue(mode.number());
      return this;
    }

    /**
     * The least precision of scores, softmax and sums.
     *
     * @param precision a type of floats
     * @return this
     */
    public Builder softmaxPrecision(DataType precision) {
      message.setSoftmaxPrecisionValue(precision.number());
      return this;
    }

    /**
     * Whether to return the logarithm of the softmax's denominator. Default: no.
     *
     * @param wanted whether to return it
     * @return this
     */
    public Builder returnLogSumExp(boolean wanted) {
      message.setReturnLogSumExp(wanted);
      return this;
    }

    /**
     * Which stage to return as scores. Default: none. Costs B * Hq * S * T elements.
     *
     * @param stage one of them
     * @return this
     */
    public Builder returnScores(Scores stage) {
      message.setReturnScoresValue(stage.number());
      return this;
    }

    /**
     * Whether to return past and new keys and values, joined. Default: no.
     *
     * @param wanted whether to return them
     * @return this
     */
    public Builder returnPresent(boolean wanted) {
      message.setReturnPresent(wanted);
      return this;
    }

    /**
     * The options. The server checks them.
     *
     * @return immutable options
     */
    public AttentionOptions build() {
      return new AttentionOptions(message.build());
    }
  }
}
