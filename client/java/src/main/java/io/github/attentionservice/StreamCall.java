package io.github.attentionservice;

import io.github.attentionservice.proto.attention.StreamAttentionResponse;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;

/** One try of a computation whose keys are sent while it is computed. */
final class StreamCall extends ClientCall.Listener<StreamAttentionResponse> {
  private final ClientCall<WireMessage, StreamAttentionResponse> call;
  private final KeyChunks chunks;
  // Of all messages together; 0: no limit.
  private final long maxReceiveBytes;
  private final CompletableFuture<ComputeResult> answered = new CompletableFuture<>();
  private volatile AttentionException endedWith;

  // Guarded by this, as is the use of `call`: callbacks may come while the header is being sent.
  private long sent;
  private boolean closed;

  // Only callbacks use what follows, one at a time.
  private final List<Tensor> outputs = new ArrayList<>();
  private final List<Tensor> logSumExps = new ArrayList<>();
  private long outputRows;
  private long sumRows;
  private Timing timing;
  // What is wrong with the answer; null if nothing is.
  private AttentionException broken;
  private long received;

  private StreamCall(
      ClientCall<WireMessage, StreamAttentionResponse> call,
      KeyChunks chunks,
      long maxReceiveBytes) {
    this.call = call;
    this.chunks = chunks;
    this.maxReceiveBytes = maxReceiveBytes;
  }

  static CompletableFuture<ComputeResult> start(
      Connection connection, KeyChunks chunks, CallContext context) {
    StreamCall stream =
        new StreamCall(
            connection.newCall(Methods.STREAM, context.executor(), context),
            chunks,
            connection.maxReceiveBytes());
    context.underWay(
        error -> {
          stream.endedWith = error;
          stream.call.cancel(error.description(), null);
        });
    WireMessage header = chunks.header();
    if (header.length() > Integer.MAX_VALUE) {
      stream.call.cancel("too large", null);
      throw Compute.tooLarge(header);
    }
    Metadata headers = connection.headers(context);
    headers.put(Connection.REQUEST_BYTES, Long.toString(header.length()));
    stream.begin(header, headers);
    return stream.answered;
  }

  private synchronized void begin(WireMessage header, Metadata headers) {
    try {
      call.start(this, headers);
      call.request(2);
      call.sendMessage(header);
    } catch (RuntimeException | Error e) {
      call.cancel("the request could not be sent", e);
      answered.completeExceptionally(endedWith == null ? e : endedWith);
    }
  }

  /** The connection takes more. Rows that come meanwhile are read between two of these. */
  @Override
  public synchronized void onReady() {
    while (call.isReady() && sent < chunks.tokens()) {
      long end = chunks.endOf(sent);
      call.sendMessage(chunks.chunk(sent, end));
      sent = end;
    }
    if (sent == chunks.tokens() && !closed) {
      closed = true;
      call.halfClose();
    }
  }

  @Override
  public void onMessage(StreamAttentionResponse message) {
    if (broken != null) {
      return;
    }
    try {
      received += message.getSerializedSize();
      if (maxReceiveBytes > 0 && received > maxReceiveBytes) {
        throw AttentionException.of(
            Status.Code.RESOURCE_EXHAUSTED,
            "CLIENT_LIMIT",
            "the answer has more than maxReceiveBytes, " + maxReceiveBytes);
      }
      if (message.hasOutput()) {
        outputRows += add(message.getOutput(), outputs, chunks.rowAxis(), outputRows);
      }
      if (message.hasLogSumExp()) {
        sumRows += add(message.getLogSumExp(), logSumExps, chunks.logSumExpAxis(), sumRows);
      }
    } catch (AttentionException e) {
      broken = e;
      call.cancel(e.description(), e);
      return;
    }
    if (message.hasTiming()) {
      timing = Timing.of(message.getTiming());
    }
    synchronized (this) {
      call.request(1);
    }
  }

  /** Keeps no more rows than the query has. Returns how many the part has. */
  private long add(
      io.github.attentionservice.proto.attention.Tensor part,
      List<Tensor> parts,
      int axis,
      long before) {
    Tensor tensor = Answers.tensor(part);
    if (tensor.rank() <= axis || tensor.axis(axis) > chunks.rows() - before) {
      throw AttentionException.malformed(
          "got rows of " + tensor + " after " + before + " of " + chunks.rows());
    }
    parts.add(tensor);
    return tensor.axis(axis);
  }

  @Override
  public void onClose(Status status, Metadata trailers) {
    if (broken != null) {
      answered.completeExceptionally(broken);
      return;
    }
    if (!status.isOk()) {
      answered.completeExceptionally(
          namedAsInRequest(Connection.errorOf(status, trailers, endedWith)));
      return;
    }
    try {
      answered.complete(result());
    } catch (AttentionException e) {
      answered.completeExceptionally(e);
    }
  }

  private ComputeResult result() {
    if (timing == null) {
      throw AttentionException.malformed("the stream ended before its last message");
    }
    Optional<Tensor> logSumExp =
        logSumExps.isEmpty()
            ? Optional.empty()
            : Optional.of(Answers.join(logSumExps, chunks.logSumExpAxis(), chunks.rows()));
    ComputeResult result =
        new ComputeResult(
            Answers.join(outputs, chunks.rowAxis(), chunks.rows()),
            logSumExp,
            Optional.empty(),
            Optional.empty(),
            Optional.empty(),
            timing);
    result.check(chunks.request());
    return result;
  }

  /** The error that the same request in one message would have. */
  static AttentionException namedAsInRequest(AttentionException error) {
    if (error.fieldViolations().isEmpty()) {
      return error;
    }
    List<FieldViolation> violations = new ArrayList<>();
    for (FieldViolation violation : error.fieldViolations()) {
      String description = violation.description();
      violations.add(
          new FieldViolation(
              renamed(violation.field()),
              violation.field().startsWith("chunk.") ? withoutElement(description) : description));
    }
    return error.with(renamed(error.description()), violations);
  }

  private static String renamed(String text) {
    if (text.startsWith("chunk.")) {
      return withoutElement(text.substring("chunk.".length()));
    }
    return text.startsWith("header.") ? text.substring("header.".length()) : text;
  }

  /** Elements are counted within the chunk: their numbers would mislead. */
  private static String withoutElement(String text) {
    return text.replaceFirst(" at element [0-9]+", "");
  }
}
