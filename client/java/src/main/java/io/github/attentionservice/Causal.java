package io.github.attentionservice;

/** Which keys a causal mask lets query row i see: those with {@code j <= i + offset}. */
public enum Causal {
  /**
   * The offset is P with past keys, the valid length less S with valid lengths, else 0. The
   * convention of ONNX and PyTorch.
   */
  TOP_LEFT(1),
  /**
   * The offset is T - S, or the valid length less S: the last query sees the last key.
   * FlashAttention's convention.
   */
  BOTTOM_RIGHT(2);

  private final int number;

  Causal(int number) {
    this.number = number;
  }

  /** The number in the specification. */
  int number() {
    return number;
  }
}
