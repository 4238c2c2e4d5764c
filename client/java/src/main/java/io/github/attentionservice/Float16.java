package io.github.attentionservice;

/** Converts between {@code float} and IEEE 754 binary16, whose bits a {@code short} holds. */
public final class Float16 {
  private Float16() {}

  /**
   * Rounds to nearest, ties to even. What is too large becomes infinity.
   *
   * @param value any number
   * @return the bits of the binary16
   */
  public static short fromFloat(float value) {
    int bits = Float.floatToRawIntBits(value);
    int sign = bits >>> 16 & 0x8000;
    int magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
      // Stays a NaN, with the upper bits of its payload.
      return (short) (sign | 0x7e00 | magnitude >>> 13 & 0x3ff);
    }
    if (magnitude >= 0x477ff000) {
      return (short) (sign | 0x7c00);
    }
    if (magnitude >= 0x38800000) {
      int odd = magnitude >>> 13 & 1;
      return (short) (sign | magnitude - 0x38000000 + 0xfff + odd >>> 13);
    }
    // Subnormal: adding 0.5 lets the float unit round at the bit 2^-24.
    float rounded = Float.intBitsToFloat(magnitude) + 0.5f;
    return (short) (sign | Float.floatToRawIntBits(rounded) - 0x3f000000);
  }

  /**
   * Exact.
   *
   * @param bits the bits of a binary16
   * @return the same number
   */
  public static float toFloat(short bits) {
    int sign = (bits & 0x8000) << 16;
    int exponent = bits >>> 10 & 0x1f;
    int fraction = bits & 0x3ff;
    if (exponent == 0) {
      float magnitude = fraction * 0x1p-24f;
      return sign == 0 ? magnitude : -magnitude;
    }
    int wide = exponent == 0x1f ? 0xff : exponent + 112;
    return Float.intBitsToFloat(sign | wide << 23 | fraction << 13);
  }

  /**
   * Rounds each number as {@link #fromFloat} does.
   *
   * @param values numbers
   * @return the bits of as many binary16
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
   * @param bits the bits of binary16 numbers
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
