package io.github.attentionservice;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.netty.handler.ssl.NotSslRecordException;
import java.io.IOException;
import java.security.GeneralSecurityException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.regex.Pattern;

/**
 * A call that failed: what the server said, or what the client found out by itself.
 *
 * <p>Go by {@link #code}, and by {@link #reason} where one code has several causes.
 */
public final class AttentionException extends RuntimeException {
  private static final long serialVersionUID = 1;

  static final Metadata.Key<String> PUSHBACK =
      Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);
  // Of the reasons that the service gives.
  private static final String DOMAIN = "attention";
  // Of a valid Duration of protobuf: 10,000 years.
  private static final long MOST_SECONDS = 315_576_000_000L;
  private static final Pattern WHOLE_NUMBER = Pattern.compile("[0-9]{1,15}");

  /** What kind of failure it is. */
  private final Status.Code code;

  /** A text for people. */
  private final String description;

  /** Why the call failed; empty if nobody says. */
  private final String reason;

  // Whoever serializes exceptions loses the next two.
  private final transient Map<String, String> metadata;
  private final transient List<FieldViolation> fieldViolations;

  /** After how long another try may succeed; null if nobody says. */
  private final Duration retryDelay;

  /** Whether the server forbids another try. */
  private final boolean retryForbidden;

  private AttentionException(Details details, Throwable cause) {
    super(text(details), cause);
    this.code = details.code;
    this.description = details.description;
    this.reason = details.reason;
    this.metadata = Map.copyOf(details.metadata);
    this.fieldViolations = List.copyOf(details.fieldViolations);
    this.retryDelay = details.retryDelay;
    this.retryForbidden = details.retryForbidden;
  }

  private static String text(Details details) {
    String reason = details.reason;
    boolean more = !reason.isEmpty() && !reason.equals(details.code.name());
    return details.code + ": " + details.description + (more ? " [" + reason + "]" : "");
  }

  /**
   * What kind of failure it is.
   *
   * @return a gRPC code, never OK
   */
  public Status.Code code() {
    return code;
  }

  /**
   * Why the call failed, such as {@code INVALID_FIELD} or {@code QUEUE_FULL}. Other reasons may
   * come.
   *
   * @return a name in capitals; empty where gRPC or something on the way ended the call
   */
  public String reason() {
    return reason;
  }

  /**
   * What went wrong, without code and reason.
   *
   * @return a text for people
   */
  public String description() {
    return description;
  }

  /**
   * The fields that are wrong, where the code is INVALID_ARGUMENT.
   *
   * @return an immutable list
   */
  public List<FieldViolation> fieldViolations() {
    return fieldViolations == null ? List.of() : fieldViolations;
  }

  /**
   * The layer's true length, where the reason is {@code LENGTH_CONFLICT}.
   *
   * @return a number of tokens
   */
  public OptionalLong length() {
    String length = metadata().getOrDefault("length", "");
    return WHOLE_NUMBER.matcher(length).matches()
        ? OptionalLong.of(Long.parseLong(length))
        : OptionalLong.empty();
  }

  /**
   * What else the server tells of the reason, such as {@code first_token}.
   *
   * @return an immutable map
   */
  public Map<String, String> metadata() {
    return metadata == null ? Map.of() : metadata;
  }

  /**
   * After how long another try may succeed.
   *
   * @return empty where the server does not say
   */
  public Optional<Duration> retryDelay() {
    return Optional.ofNullable(retryDelay);
  }

  /** Whether the server forbids another try. */
  boolean retryForbidden() {
    return retryForbidden;
  }

  boolean hasReason(String wanted) {
    return reason.equals(wanted);
  }

  static AttentionException of(Status.Code code, String reason, String description) {
    return of(code, reason, description, Map.of());
  }

  static AttentionException of(
      Status.Code code, String reason, String description, Map<String, String> metadata) {
    Details details = new Details(code, description);
    details.reason = reason;
    details.metadata = metadata;
    return new AttentionException(details, null);
  }

  static AttentionException malformed(String description) {
    return of(Status.Code.INTERNAL, "", "malformed answer: " + description);
  }

  static AttentionException timedOut() {
    return of(Status.Code.DEADLINE_EXCEEDED, "", "the call's time is over");
  }

  static AttentionException cancelled() {
    return of(Status.Code.CANCELLED, "", "the caller cancelled the call");
  }

  /** The error as it came over the wire; `trailers` may be null. */
  static AttentionException of(Status status, Metadata trailers) {
    if (status.getCode() == Status.Code.CANCELLED && status.getCause() != null) {
      // Nobody has cancelled it: what gRPC makes of a message that cannot be read or written.
      AttentionException why = find(status.getCause());
      return why == null
          ? of(
              Status.INTERNAL.withDescription(status.getDescription()).withCause(status.getCause()),
              trailers)
          : why;
    }
    Details details = new Details(codeOf(status), describe(status));
    byte[] encoded = trailers == null ? null : trailers.get(DETAILS);
    if (encoded != null) {
      details.read(encoded);
    } else {
      details.reasonOfClient(status.getDescription());
    }
    String pushback = trailers == null ? null : trailers.get(PUSHBACK);
    if (pushback != null) {
      details.retryForbidden = !WHOLE_NUMBER.matcher(pushback).matches();
      details.retryDelay =
          details.retryForbidden ? null : Duration.ofMillis(Long.parseLong(pushback));
    }
    return new AttentionException(details, status.getCause());
  }

  /**
   * gRPC says UNKNOWN of some connections that were lost. An error that the server sent has no
   * cause.
   */
  private static Status.Code codeOf(Status status) {
    boolean lost = false;
    for (Throwable at = status.getCause(); at != null; at = at.getCause()) {
      lost |= at instanceof IOException;
    }
    return lost && status.getCode() == Status.Code.UNKNOWN
        ? Status.Code.UNAVAILABLE
        : status.getCode();
  }

  /** The error of one item of a step. */
  static AttentionException ofItem(int code, String message, byte[] encoded) {
    Details details = new Details(Status.fromCodeValue(code).getCode(), message);
    details.read(encoded);
    return new AttentionException(details, null);
  }

  /** Whatever a future ended with; null if it is none of a call. */
  static AttentionException find(Throwable error) {
    for (Throwable at = error; at != null; at = at.getCause()) {
      if (at instanceof AttentionException found) {
        return found;
      }
      if (at instanceof StatusRuntimeException found) {
        return of(found.getStatus(), found.getTrailers());
      }
      if (at instanceof StatusException found) {
        return of(found.getStatus(), found.getTrailers());
      }
    }
    return null;
  }

  /** The same error with another text, and other names of fields. */
  AttentionException with(String newDescription, List<FieldViolation> violations) {
    Details details = new Details(code, newDescription);
    details.reason = reason;
    details.metadata = metadata();
    details.fieldViolations = violations;
    details.retryDelay = retryDelay;
    details.retryForbidden = retryForbidden;
    return new AttentionException(details, getCause());
  }

  /** gRPC's text, and the cause that it leaves to the stack trace; of some, in plain words. */
  private static String describe(Status status) {
    String text = status.getDescription() == null ? "" : status.getDescription();
    if (text.equals("Network closed for unknown reason")) {
      return "the server closed the connection at once: it may want TLS, or a certificate of the client";
    }
    if (text.contains("First received frame was not SETTINGS")) {
      return "the server does not speak gRPC on this port";
    }
    Throwable root = status.getCause();
    while (root != null && root.getCause() != null) {
      root = root.getCause();
    }
    if (root == null || root.getMessage() == null || text.contains(root.getMessage())) {
      return text;
    }
    if (root instanceof NotSslRecordException) {
      return "the server does not speak TLS on this port";
    }
    if (root instanceof GeneralSecurityException) {
      return "the server's certificate was refused: " + root.getMessage();
    }
    // The one that says the most: where to, for a connection.
    String told = root.getMessage();
    for (Throwable at = status.getCause(); at != root; at = at.getCause()) {
      if (at.getMessage() != null && at.getMessage().contains(root.getMessage())) {
        told = at.getMessage();
        break;
      }
    }
    return text.isEmpty() ? told : text + ": " + told;
  }

  private static final class Details {
    final Status.Code code;
    final String description;
    String reason = "";
    Map<String, String> metadata = Map.of();
    List<FieldViolation> fieldViolations = new ArrayList<>();
    Duration retryDelay;
    boolean retryForbidden;

    Details(Status.Code code, String description) {
      this.code = code;
      this.description = description;
    }

    void read(byte[] encoded) {
      try {
        for (Any detail : com.google.rpc.Status.parseFrom(encoded).getDetailsList()) {
          read(detail);
        }
      } catch (InvalidProtocolBufferException e) {
        // Something on the way has spoilt them; the code tells enough.
        reason = "";
      }
    }

    private void read(Any detail) throws InvalidProtocolBufferException {
      if (detail.is(ErrorInfo.class)) {
        ErrorInfo info = detail.unpack(ErrorInfo.class);
        // What something on the way gives as its reason is none of the service's.
        if (info.getDomain().equals(DOMAIN)) {
          reason = info.getReason();
          metadata = info.getMetadataMap();
        }
      } else if (detail.is(BadRequest.class)) {
        for (BadRequest.FieldViolation violation :
            detail.unpack(BadRequest.class).getFieldViolationsList()) {
          fieldViolations.add(new FieldViolation(violation.getField(), violation.getDescription()));
        }
      } else if (detail.is(RetryInfo.class)) {
        com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
        boolean valid =
            delay.getSeconds() >= 0
                && delay.getSeconds() <= MOST_SECONDS
                && delay.getNanos() >= 0
                && delay.getNanos() < 1_000_000_000;
        retryDelay = valid ? Duration.ofSeconds(delay.getSeconds(), delay.getNanos()) : null;
      }
    }

    /** What gRPC's library ends by itself it tells by words only. */
    void reasonOfClient(String text) {
      if (text == null) {
        return;
      }
      if (code == Status.Code.RESOURCE_EXHAUSTED && text.contains("exceeds maximum size")) {
        reason = "CLIENT_LIMIT";
      } else if (text.contains("Header size exceeded max allowed size")) {
        reason = "HEADERS_TOO_LARGE";
      }
    }
  }
}
