package io.github.attentionservice;

/** A stage of the computation to return as {@code scores}. */
public enum Scores {
  /** {@code scale * dot(query, key)}, masked keys included. */
  RAW(1),
  /** After the soft cap, masked keys included. */
  CAPPED(2),
  /** After the bias; -infinity where masked. */
  BIASED(3),
  /** After the softmax. */
  WEIGHTS(4);

  private final int number;

  Scores(int number) {
    this.number = number;
  }

  /** The number in the specification. */
  int number() {
    return number;
  }
}
