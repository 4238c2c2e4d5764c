package io.github.attentionservice;

import java.util.Objects;

/**
 * A fork to make: a new session with the tokens of another.
 *
 * @param source of the same client
 * @param target the id of the new session; empty: one that nobody can guess
 */
public record Fork(Session source, String target) {
  /**
   * Checks that neither is null.
   *
   * @param source of the same client
   * @param target the id of the new session; empty: one that nobody can guess
   */
  public Fork {
    Objects.requireNonNull(source, "source");
    Objects.requireNonNull(target, "target");
  }

  /**
   * A fork with an id that nobody can guess.
   *
   * @param source of the same client
   */
  public Fork(Session source) {
    this(source, "");
  }
}
