package io.github.attentionservice;

import java.util.Optional;

/** How one item of {@link AttentionClient#step} ended. Immutable. */
public final class StepOutcome {
  private final AttendResult result;
  private final AttentionException error;

  StepOutcome(AttendResult result, AttentionException error) {
    this.result = result;
    this.error = error;
  }

  /**
   * The item's answer.
   *
   * @return never null
   * @throws AttentionException if the item failed
   */
  public AttendResult get() {
    if (error != null) {
      throw error;
    }
    return result;
  }

  /**
   * Why the item failed.
   *
   * @return empty if it went well
   */
  public Optional<AttentionException> error() {
    return Optional.ofNullable(error);
  }
}
