package io.github.attentionservice;

/**
 * Converts between {@code float} and bfloat16, the upper half of a binary32, which a {@code short}
 * holds.
 */
public final class Bfloat16 {
  private Bfloat16() {}

  /**
   * Rounds to nearest, ties to even.
   *
   * @param value any number
   * @return the bits of the bfloat16
   */
  public static short fromFloat(float value) {
    int bits = Float.floatToRawIntBits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
      // Stays a NaN where only its lower bits are set.
      return (short) (bits >>> 16 | 0x40);
    }
    int odd = bits >>> 16 & 1;
    return (short) (bits + 0x7fff + odd >>> 16);
  }

  /**
   * Exact.
   *
   * @param bits the bits of a bfloat16
   * @return the same number
   */
  public static float toFloat(short bits) {
    return Float.intBitsToFloat(bits << 16);
  }

  /**
   * Rounds each number as {@link #fromFloat} does.
   *
   * @param values numbers
   * @return the bits of as many bfloat16
   */
  public static short[] fromFloats(float[] values) {
    short[] bits = new short[values.length];
    for (int i = 0; i < bits.length; ++i) {
      bits[i] = fromFloat(values[i]);
    }
    return bits;
  }

  /**
   * Exact.
   *
   * @param bits the bits of bfloat16 numbers
   * @return the same numbers
   */
  public static float[] toFloats(short[] bits) {
    float[] values = new float[bits.length];
    for (int i = 0; i < values.length; ++i) {
      values[i] = toFloat(bits[i]);
    }
    return values;
  }
}
