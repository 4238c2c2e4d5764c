package io.github.attentionservice;

/** The type of a tensor's elements. */
public enum DataType {
  /** IEEE 754 binary32: {@code float}. */
  FLOAT32(1, 4),
  /** IEEE 754 binary16; its bits in a {@code short}. */
  FLOAT16(2, 2),
  /** The upper 16 bits of a binary32, in a {@code short}. */
  BFLOAT16(3, 2),
  /** IEEE 754 binary64: {@code double}. */
  FLOAT64(4, 8),
  /** One byte per element: 0 or 1. Masks only. */
  BOOL(5, 1),
  /** Two's complement: {@code byte}. Masks, and what a session may store. */
  INT8(6, 1),
  /** Two's complement: {@code int}. Masks and indices only. */
  INT32(7, 4),
  /** Two's complement: {@code long}. Masks and indices only. */
  INT64(8, 8),
  /** OCP's E4M3. Not in tensors: what a session may store. */
  FLOAT8_E4M3(9, 1),
  /** One bit per element, eight of them in a byte: 1 is true. Masks only; {@link Tensor#ofBits}. */
  BITS(10, 1);

  private final int number;
  private final int bytes;

  DataType(int number, int bytes) {
    this.number = number;
    this.bytes = bytes;
  }

  /**
   * The size of one element; of {@link #BITS} that of eight.
   *
   * @return bytes
   */
  public int bytes() {
    return bytes;
  }

  /** The number in the specification. */
  int number() {
    return number;
  }

  /** Null for a number that this client does not know. */
  static DataType of(int number) {
    for (DataType type : values()) {
      if (type.number == number) {
        return type;
      }
    }
    return null;
  }
}
