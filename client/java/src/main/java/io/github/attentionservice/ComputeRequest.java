package io.github.attentionservice;

import io.github.attentionservice.proto.attention.ComputeAttentionRequest;
import java.util.Objects;
import java.util.function.UnaryOperator;

/**
 * Tensors and options of one computation. Immutable but for the elements, which are lent; made by
 * {@link #builder}.
 *
 * <p>The server checks shapes and types against one another.
 */
public final class ComputeRequest {
  final Tensor query;
  final Tensor key;
  final Tensor value;
  final Tensor mask;
  final Tensor pastKey;
  final Tensor pastValue;
  final Tensor indices;
  final Tensor rowSinks;
  final AttentionOptions options;
  private final long[] validLengths;
  private final long[] queryStarts;
  private final long[] keyStarts;

  private ComputeRequest(Builder builder) {
    query = builder.query;
    key = builder.key;
    value = builder.value;
    mask = builder.mask;
    pastKey = builder.pastKey;
    pastValue = builder.pastValue;
    indices = builder.indices;
    rowSinks = builder.rowSinks;
    options = builder.options;
    validLengths = builder.validLengths.clone();
    queryStarts = builder.queryStarts.clone();
    keyStarts = builder.keyStarts.clone();
  }

  /**
   * A builder of a request.
   *
   * @param query FLOAT32, FLOAT16, BFLOAT16 or FLOAT64
   * @param key of the query's type
   * @param value of any of these types
   * @return a new builder
   */
  public static Builder builder(Tensor query, Tensor key, Tensor value) {
    return new Builder(query, key, value);
  }

  /** The bytes of all that a stream sends in chunks. */
  long keyValueBytes() {
    long bytes = 0;
    for (Tensor tensor : new Tensor[] {key, value, mask, pastKey, pastValue}) {
      bytes += tensor == null ? 0 : tensor.byteSize();
    }
    return bytes;
  }

  /** The bytes of all that a stream's header has. */
  long headerBytes() {
    long bytes = query.byteSize();
    for (Tensor tensor : new Tensor[] {indices, rowSinks}) {
      bytes += tensor == null ? 0 : tensor.byteSize();
    }
    return bytes;
  }

  /** The whole request as one message. */
  /** By the query's rank, where the options name none; null where the server has to say so. */
  Layout layout() {
    int number = options.message().getLayoutValue();
    if (number == 0) {
      return switch (query.rank()) {
        case 2 -> Layout.MATRIX;
        case 3 -> Layout.PACKED;
        case 4 -> Layout.BHSD;
        default -> null;
      };
    }
    for (Layout layout : Layout.values()) {
      if (layout.number() == number) {
        return layout;
      }
    }
    return null;
  }

  /** The output's; null where the request must be wrong. */
  long[] outputShape() {
    if (query.rank() == 0 || value.rank() == 0) {
      return null;
    }
    long columns = value.axis(value.rank() - 1);
    if (layout() == Layout.PACKED) {
      long queryHeads = options.message().getQueryHeads();
      long kvHeads = options.message().getKvHeads();
      if (queryHeads <= 0 || kvHeads <= 0) {
        return null;
      }
      columns = columns / kvHeads * queryHeads;
    }
    long[] shape = query.shape();
    shape[shape.length - 1] = columns;
    return shape;
  }

  WireMessage message() {
    return common(
        new WireMessage()
            .tensor(ComputeAttentionRequest.QUERY_FIELD_NUMBER, query)
            .tensor(ComputeAttentionRequest.KEY_FIELD_NUMBER, key)
            .tensor(ComputeAttentionRequest.VALUE_FIELD_NUMBER, value)
            .tensor(ComputeAttentionRequest.MASK_FIELD_NUMBER, mask)
            .tensor(ComputeAttentionRequest.PAST_KEY_FIELD_NUMBER, pastKey)
            .tensor(ComputeAttentionRequest.PAST_VALUE_FIELD_NUMBER, pastValue));
  }

  /** The same without the elements that a stream sends later. */
  WireMessage streamHeader() {
    return common(
        new WireMessage()
            .tensor(ComputeAttentionRequest.QUERY_FIELD_NUMBER, query)
            .tensorHead(ComputeAttentionRequest.KEY_FIELD_NUMBER, key)
            .tensorHead(ComputeAttentionRequest.VALUE_FIELD_NUMBER, value)
            .tensorHead(ComputeAttentionRequest.MASK_FIELD_NUMBER, mask)
            .tensorHead(ComputeAttentionRequest.PAST_KEY_FIELD_NUMBER, pastKey)
            .tensorHead(ComputeAttentionRequest.PAST_VALUE_FIELD_NUMBER, pastValue));
  }

  private WireMessage common(WireMessage message) {
    message
        .packedInt64s(ComputeAttentionRequest.VALID_LENGTHS_FIELD_NUMBER, validLengths)
        .packedInt64s(ComputeAttentionRequest.QUERY_STARTS_FIELD_NUMBER, queryStarts)
        .packedInt64s(ComputeAttentionRequest.KEY_STARTS_FIELD_NUMBER, keyStarts);
    if (!options.isDefault()) {
      message.message(ComputeAttentionRequest.OPTIONS_FIELD_NUMBER, options.message());
    }
    return message
        .tensor(ComputeAttentionRequest.INDICES_FIELD_NUMBER, indices)
        .tensor(ComputeAttentionRequest.SINKS_FIELD_NUMBER, rowSinks);
  }

  /** Collects a request. Not thread-safe. */
  public static final class Builder {
    private final Tensor query;
    private final Tensor key;
    private final Tensor value;
    private Tensor mask;
    private Tensor pastKey;
    private Tensor pastValue;
    private Tensor indices;
    private Tensor rowSinks;
    private AttentionOptions options = AttentionOptions.DEFAULT;
    private long[] validLengths = {};
    private long[] queryStarts = {};
    private long[] keyStarts = {};

    private Builder(Tensor query, Tensor key, Tensor value) {
      this.query = Objects.requireNonNull(query, "query");
      this.key = Objects.requireNonNull(key, "key");
      this.value = Objects.requireNonNull(value, "value");
    }

    /**
     * A mask, broadcast to (B, Hq, S, T). Of BOOL or BITS true attends; numbers, integers too, are
     * added to the scores: of these only -infinity hides.
     *
     * @param newMask of any type; null: none
     * @return this
     */
    public Builder mask(Tensor newMask) {
      mask = newMask;
      return this;
    }

    /**
     * Keys and values before the new ones, (B, Hkv, P, D) and (B, Hkv, P, Dv) in every layout.
     *
     * @param newPastKey of the key's type; null: none
     * @param newPastValue of the value's type; null: none
     * @return this
     */
    public Builder past(Tensor newPastKey, Tensor newPastValue) {
      pastKey = newPastKey;
      pastValue = newPastValue;
      return this;
    }

    /**
     * Sparse attention: the keys that each query sees, of those that all else lets it see. Only
     * these are read. Keys are counted from 0 in their sequence, the past ones first; -1 is none.
     *
     * @param newIndices of INT32 or INT64, (B, S, k), or (B, Hq, S, k) for each query head; (S, k)
     *     too where B is 1; with {@link Layout#RAGGED} (sum S, k) or (sum S, Hq, k). null: all keys
     * @return this
     */
    public Builder indices(Tensor newIndices) {
      indices = newIndices;
      return this;
    }

    /**
     * Attention sinks of rows: one more logit for each row of each query head, in place of {@link
     * AttentionOptions.Builder#sinks}. An error of the server names it {@code sinks}.
     *
     * @param newRowSinks of floats, (B, Hq, S); with {@link Layout#MATRIX} (S) too, with {@link
     *     Layout#RAGGED} (sum S, Hq); -infinity is no sink for that row. null: none
     * @return this
     */
    public Builder rowSinks(Tensor newRowSinks) {
      rowSinks = newRowSinks;
      return this;
    }

    /**
     * How many keys of each batch entry are valid; those behind are masked.
     *
     * @param lengths B numbers; none at all: all keys are valid
     * @return this
     */
    public Builder validLengths(long... lengths) {
      validLengths = lengths.clone();
      return this;
    }

    /**
     * Where the sequences of {@link Layout#RAGGED} begin in the query.
     *
     * @param starts B + 1 numbers, from 0 to the length of the first axis
     * @return this
     */
    public Builder queryStarts(long... starts) {
      queryStarts = starts.clone();
      return this;
    }

    /**
     * Where the sequences of {@link Layout#RAGGED} begin in the keys.
     *
     * @param starts B + 1 numbers, from 0 to the length of the first axis
     * @return this
     */
    public Builder keyStarts(long... starts) {
      keyStarts = starts.clone();
      return this;
    }

    /**
     * What to compute.
     *
     * @param newOptions in place of those before
     * @return this
     */
    public Builder options(AttentionOptions newOptions) {
      options = Objects.requireNonNull(newOptions, "options");
      return this;
    }

    /**
     * What to compute: {@code options(o -> o.causal(Causal.TOP_LEFT))}.
     *
     * @param choose sets options, beside those before
     * @return this
     */
    public Builder options(UnaryOperator<AttentionOptions.Builder> choose) {
      return options(choose.apply(options.toBuilder()).build());
    }

    /**
     * The request.
     *
     * @return a request that lends these tensors
     */
    public ComputeRequest build() {
      return new ComputeRequest(this);
    }
  }
}
