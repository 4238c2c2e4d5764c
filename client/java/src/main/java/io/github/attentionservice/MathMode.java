package io.github.attentionservice;

/** What the arithmetic promises. */
public enum MathMode {
  /** The same request gives the same bits on every server and CPU. The default. */
  REPRODUCIBLE(1),
  /** May use what the CPU has to multiply bfloat16. The same bits on the same CPU model only. */
  FAST(2);

  private final int number;

  MathMode(int number) {
    this.number = number;
  }

  /** The number in the specification. */
  int number() {
    return number;
  }
}
