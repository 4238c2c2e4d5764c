package io.github.attentionservice;

import java.time.Duration;
import java.util.Objects;

/**
 * How one call is made, where it differs from what the client does by default. Immutable.
 *
 * <pre>{@code
 * client.compute(request, CallOptions.timeout(Duration.ofSeconds(5)));
 * }</pre>
 */
public final class CallOptions {
  /** What the client does by default. */
  public static final CallOptions DEFAULT = new CallOptions(null, 0, null);

  private final Duration timeout;
  private final int maxAttempts;
  private final String requestId;

  private CallOptions(Duration timeout, int maxAttempts, String requestId) {
    this.timeout = timeout;
    this.maxAttempts = maxAttempts;
    this.requestId = requestId;
  }

  /**
   * Options with a time limit.
   *
   * @param timeout for the whole call, all its attempts together
   * @return options that are the default otherwise
   */
  public static CallOptions timeout(Duration timeout) {
    return DEFAULT.withTimeout(timeout);
  }

  /**
   * The same options with a time limit.
   *
   * @param newTimeout for the whole call, all its attempts together; then it fails with
   *     DEADLINE_EXCEEDED
   * @return new options
   */
  public CallOptions withTimeout(Duration newTimeout) {
    return new CallOptions(Objects.requireNonNull(newTimeout, "timeout"), maxAttempts, requestId);
  }

  /**
   * The same options with a limit of attempts.
   *
   * @param newMaxAttempts at least 1; 1 means that the call is never tried again
   * @return new options
   */
  public CallOptions withMaxAttempts(int newMaxAttempts) {
    if (newMaxAttempts < 1) {
      throw new IllegalArgumentException("maxAttempts: got " + newMaxAttempts + ", wanted >= 1");
    }
    return new CallOptions(timeout, newMaxAttempts, requestId);
  }

  /**
   * The same options with an id by which the call is found in the server's log (the header {@code
   * x-request-id}). Steps, which share a stream, do not have it.
   *
   * @param newRequestId 1 to 128 printable ASCII characters
   * @return new options
   */
  public CallOptions withRequestId(String newRequestId) {
    if (!newRequestId.matches("[\\x21-\\x7e]{1,128}")) {
      throw new IllegalArgumentException("requestId: wanted 1 to 128 printable ASCII characters");
    }
    return new CallOptions(timeout, maxAttempts, newRequestId);
  }

  Duration timeoutOr(Duration ifNone) {
    return timeout == null ? ifNone : timeout;
  }

  int maxAttemptsOr(int ifNone) {
    return maxAttempts == 0 ? ifNone : maxAttempts;
  }

  /** Null if there is none. */
  String requestId() {
    return requestId;
  }
}
