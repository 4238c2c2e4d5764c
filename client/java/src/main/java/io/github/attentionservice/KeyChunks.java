package io.github.attentionservice;

import io.github.attentionservice.proto.attention.KeyValueChunk;
import io.github.attentionservice.proto.attention.StreamAttentionRequest;
import java.util.stream.Stream;

/**
 * A request cut along its keys, for StreamAttention: a header, then past and new tokens in
 * ascending order.
 */
final class KeyChunks {
  private static final long CHUNK_BYTES = 2 << 20;

  private final ComputeRequest request;
  private final Layout layout;
  private final AxisRuns key;
  private final AxisRuns value;
  // Null where there are none.
  private final AxisRuns mask;
  private final AxisRuns pastKey;
  private final AxisRuns pastValue;

  private KeyChunks(ComputeRequest request, Layout layout) {
    int axis = keyAxis(layout);
    this.request = request;
    this.layout = layout;
    this.key = AxisRuns.of(request.key, axis);
    this.value = AxisRuns.of(request.value, axis);
    this.mask = request.mask == null ? null : AxisRuns.of(request.mask, request.mask.rank() - 1);
    this.pastKey = request.pastKey == null ? null : AxisRuns.of(request.pastKey, 2);
    this.pastValue = request.pastValue == null ? null : AxisRuns.of(request.pastValue, 2);
  }

  /** Elements that begin within a byte cannot be cut; the server takes none in streams. */
  private static boolean hasBits(ComputeRequest request) {
    return Stream.of(request.key, request.value, request.mask)
        .anyMatch(tensor -> tensor != null && tensor.dataType() == DataType.BITS);
  }

  /** Null if the request cannot be cut; whether it is right the server says. */
  static KeyChunks of(ComputeRequest request) {
    io.github.attentionservice.proto.attention.AttentionOptions options = request.options.message();
    Layout layout = request.layout();
    if (layout == null
        || layout == Layout.RAGGED
        || hasBits(request)
        || options.getReturnScoresValue() != 0
        || options.getReturnPresent()) {
      return null;
    }
    int rank = layout == Layout.MATRIX ? 2 : layout == Layout.PACKED ? 3 : 4;
    int axis = keyAxis(layout);
    if (request.query.rank() != rank
        || request.key.rank() != rank
        || request.value.rank() != rank
        || request.key.axis(axis) != request.value.axis(axis)
        || !fits(request, request.pastKey, request.key, layout)
        || !fits(request, request.pastValue, request.value, layout)
        || (request.pastKey == null) != (request.pastValue == null)) {
      return null;
    }
    long past = request.pastKey == null ? 0 : request.pastKey.axis(2);
    if (past != (request.pastValue == null ? 0 : request.pastValue.axis(2))) {
      return null;
    }
    Tensor mask = request.mask;
    if (mask != null
        && (mask.rank() == 0 || mask.axis(mask.rank() - 1) > past + request.key.axis(axis))) {
      return null;
    }
    return new KeyChunks(request, layout);
  }

  /** Whether past tokens (B, Hkv, P, D) can be sent as tokens of `current`. */
  private static boolean fits(ComputeRequest request, Tensor past, Tensor current, Layout layout) {
    if (past == null) {
      return true;
    }
    if (past.rank() != 4 || past.dataType() != current.dataType()) {
      return false;
    }
    long batch = past.axis(0);
    long heads = past.axis(1);
    long size = past.axis(3);
    return switch (layout) {
      case MATRIX -> batch == 1 && heads == 1 && size == current.axis(1);
      case PACKED ->
          batch == current.axis(0)
              && heads == request.options.message().getKvHeads()
              && heads > 0
              && current.axis(2) % heads == 0
              && size == current.axis(2) / heads;
      case BHSD -> batch == current.axis(0) && heads == current.axis(1) && size == current.axis(3);
      case BSHD -> batch == current.axis(0) && heads == current.axis(2) && size == current.axis(3);
      case RAGGED -> false;
    };
  }

  /** The axis of tokens of query, key, value and output. */
  private static int keyAxis(Layout layout) {
    return switch (layout) {
      case MATRIX, RAGGED -> 0;
      case PACKED, BSHD -> 1;
      case BHSD -> 2;
    };
  }

  int rowAxis() {
    return keyAxis(layout);
  }

  /** The axis of rows of log_sum_exp. */
  int logSumExpAxis() {
    return layout == Layout.MATRIX ? 0 : 2;
  }

  ComputeRequest request() {
    return request;
  }

  long rows() {
    return request.query.axis(rowAxis());
  }

  private long past() {
    return pastKey == null ? 0 : pastKey.length();
  }

  long tokens() {
    return past() + key.length();
  }

  /**
   * What the server's memory for the rows is: the query, and a partial for each open node of the
   * tree over blocks of 256 keys, in elements of at least FLOAT32.
   */
  long stateBytes() {
    io.github.attentionservice.proto.attention.AttentionOptions options = request.options.message();
    boolean packed = layout == Layout.PACKED;
    if (packed && (options.getQueryHeads() <= 0 || options.getKvHeads() <= 0)) {
      return 0;
    }
    Tensor query = request.query;
    double headSize =
        (double) query.axis(query.rank() - 1) / (packed ? options.getQueryHeads() : 1);
    double valueSize =
        (double) request.value.axis(request.value.rank() - 1) / (packed ? options.getKvHeads() : 1);
    if (headSize < 1) {
      return 0;
    }
    double levels = 2 + Math.log(1 + tokens() / 256.0) / Math.log(2);
    double elements = query.size() * (1 + levels * (valueSize + 2) / headSize);
    return (long) (Math.max(query.dataType().bytes(), 4) * elements);
  }

  WireMessage header() {
    return new WireMessage()
        .message(StreamAttentionRequest.HEADER_FIELD_NUMBER, request.streamHeader());
  }

  /** The end of the chunk that begins with this token. Past and new tokens do not share one. */
  long endOf(long begin) {
    long perToken = Math.max(1, key.bytesPerElement() + value.bytesPerElement());
    if (mask != null) {
      perToken += mask.bytesPerElement();
    }
    long limit = begin < past() ? past() : tokens();
    return Math.min(limit, begin + Math.max(1, CHUNK_BYTES / perToken));
  }

  WireMessage chunk(long begin, long end) {
    WireMessage chunk = new WireMessage();
    if (begin < past()) {
      addPast(chunk, KeyValueChunk.KEY_FIELD_NUMBER, pastKey, key, begin, end);
      addPast(chunk, KeyValueChunk.VALUE_FIELD_NUMBER, pastValue, value, begin, end);
    } else {
      chunk.tensorSlice(KeyValueChunk.KEY_FIELD_NUMBER, key, begin - past(), end - past());
      chunk.tensorSlice(KeyValueChunk.VALUE_FIELD_NUMBER, value, begin - past(), end - past());
    }
    if (mask != null && begin < mask.length()) {
      chunk.tensorSlice(KeyValueChunk.MASK_FIELD_NUMBER, mask, begin, Math.min(end, mask.length()));
    }
    return new WireMessage().message(StreamAttentionRequest.CHUNK_FIELD_NUMBER, chunk);
  }

  private void addPast(
      WireMessage chunk, int field, AxisRuns past, AxisRuns current, long begin, long end) {
    long[] shape = current.shape(end - begin);
    if (layout == Layout.PACKED || layout == Layout.BSHD) {
      chunk.pastWithHeadsLast(field, past, shape, begin, end);
    } else {
      chunk.pastWithHeadsFirst(field, past, shape, begin, end);
    }
  }
}
