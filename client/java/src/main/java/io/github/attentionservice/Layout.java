package io.github.attentionservice;

/**
 * How the axes of query, key, value and output are laid out: B batch, S queries, L keys, Hq and Hkv
 * heads, D and Dv head sizes.
 */
public enum Layout {
  /** Query (S, D), key (L, D), value (L, Dv), output (S, Dv). The default for rank 2. */
  MATRIX(1),
  /**
   * Query (B, S, Hq*D), key (B, L, Hkv*D), value (B, L, Hkv*Dv). The default for rank 3. Needs
   * {@code queryHeads} and {@code kvHeads}.
   */
  PACKED(2),
  /** Query (B, Hq, S, D), key (B, Hkv, L, D), value (B, Hkv, L, Dv). The default for rank 4. */
  BHSD(3),
  /** Query (B, S, Hq, D), key (B, L, Hkv, D), value (B, L, Hkv, Dv). */
  BSHD(4),
  /**
   * Sequences of different length along one axis: query (sum S, Hq, D), key (sum L, Hkv, D), value
   * (sum L, Hkv, Dv).
   */
  RAGGED(5);

  private final int number;

  Layout(int number) {
    this.number = number;
  }

  /** The number in the specification. */
  int number() {
    return number;
  }
}
