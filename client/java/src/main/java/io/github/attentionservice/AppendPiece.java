package io.github.attentionservice;

import java.util.ArrayList;
import java.util.List;

/**
 * Tokens [begin, end) of an append, which is sent in several calls where it is large.
 *
 * @param value null where the session stores none
 * @param whole whether it is all of the append: then its shapes are sent as they are
 */
record AppendPiece(Tensor key, Tensor value, long begin, long end, boolean whole) {
  private static final long MOST_BYTES = 8 << 20;
  private static final int TOKEN_AXIS = 1;

  /** At least one. What cannot be cut is one piece, of which the server says what is wrong. */
  static List<AppendPiece> cut(Tensor key, Tensor value) {
    long bytes = key.byteSize() + (value == null ? 0 : value.byteSize());
    boolean regular =
        canBeCut(key)
            && (value == null || canBeCut(value) && value.axis(TOKEN_AXIS) == key.axis(TOKEN_AXIS));
    long tokens = regular ? key.axis(TOKEN_AXIS) : 0;
    if (bytes <= MOST_BYTES || tokens <= 1) {
      return List.of(new AppendPiece(key, value, 0, tokens, true));
    }
    long perToken = bytes / tokens;
    long tokensPerPiece = Math.max(1, MOST_BYTES / perToken);
    List<AppendPiece> pieces = new ArrayList<>();
    for (long begin = 0; begin < tokens; begin += tokensPerPiece) {
      long end = Math.min(tokens, begin + tokensPerPiece);
      pieces.add(new AppendPiece(key, value, begin, end, false));
    }
    return pieces;
  }

  private static boolean canBeCut(Tensor tensor) {
    return tensor.rank() == 3 && tensor.dataType() != DataType.BITS;
  }

  void addTo(WireMessage message, int keyField, int valueField) {
    if (whole) {
      message.tensor(keyField, key).tensor(valueField, value);
      return;
    }
    message.tensorSlice(keyField, AxisRuns.of(key, TOKEN_AXIS), begin, end);
    if (value != null) {
      message.tensorSlice(valueField, AxisRuns.of(value, TOKEN_AXIS), begin, end);
    }
  }
}
