package io.github.attentionservice;

import io.github.attentionservice.proto.attention.ComputeAttentionResponse;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.concurrent.CompletableFuture;

/** Computations: as one message, or as a stream where that is better. */
final class Compute {
  // Less is not worth a stream.
  private static final long LEAST_STREAMED_BYTES = 4 << 20;
  private static final long NO_STREAMS_NANOS = 60_000_000_000L;

  private final Connection connection;
  // When the server answered that it knows no streams. Another one may stand there a minute later.
  private volatile long foundNoStreams;
  private volatile boolean knowsNoStreams;

  Compute(Connection connection) {
    this.connection = connection;
  }

  CompletableFuture<ComputeResult> run(ComputeRequest request, CallContext context) {
    KeyChunks chunks = chunksToStream(request);
    return new Retry(Retry.Kind.REPEATABLE, context, connection::forgetFailure)
        .run(() -> tryOnce(request, chunks, context));
  }

  private CompletableFuture<ComputeResult> tryOnce(
      ComputeRequest request, KeyChunks chunks, CallContext context) {
    if (chunks == null || noStreamsNow()) {
      return asMessage(request, context);
    }
    return StreamCall.start(connection, chunks, context)
        .exceptionallyCompose(
            error -> {
              AttentionException failure = Futures.errorOf(error);
              return mayTakeOneMessage(failure)
                  ? asMessage(request, context)
                  : CompletableFuture.failedFuture(failure);
            });
  }

  private CompletableFuture<ComputeResult> asMessage(ComputeRequest request, CallContext context) {
    WireMessage message = request.message();
    if (message.length() > Integer.MAX_VALUE) {
      throw tooLarge(message);
    }
    Metadata headers = connection.headers(context);
    headers.put(Connection.REQUEST_BYTES, Long.toString(message.length()));
    CompletableFuture<ComputeAttentionResponse> answer =
        connection.unary(Methods.COMPUTE, message, headers, context);
    return answer.thenApply(told -> ComputeResult.of(told, request));
  }

  static AttentionException tooLarge(WireMessage message) {
    return AttentionException.of(
        Status.Code.INVALID_ARGUMENT,
        "",
        "the request has " + message.length() + " bytes, more than a message can hold");
  }

  /** A stream costs the server the state of all rows: it is for many keys and few rows. */
  private static KeyChunks chunksToStream(ComputeRequest request) {
    long bytes = request.keyValueBytes();
    if (bytes <= LEAST_STREAMED_BYTES) {
      return null;
    }
    KeyChunks chunks = KeyChunks.of(request);
    long all = bytes + request.query.byteSize();
    boolean oneMessage = bytes + request.headerBytes() < Integer.MAX_VALUE - (64 << 10);
    return chunks != null && oneMessage && chunks.stateBytes() > all ? null : chunks;
  }

  private boolean noStreamsNow() {
    return knowsNoStreams && System.nanoTime() - foundNoStreams < NO_STREAMS_NANOS;
  }

  /** Whether the server may take as one message what it will never take as a stream. */
  private boolean mayTakeOneMessage(AttentionException error) {
    if (error.code() == Status.Code.UNIMPLEMENTED && !error.hasReason("INVALID_FIELD")) {
      foundNoStreams = System.nanoTime();
      knowsNoStreams = true;
      return true;
    }
    return error.code() == Status.Code.RESOURCE_EXHAUSTED
        && (error.hasReason("REQUEST_TOO_LARGE") || error.hasReason("MEMORY_TOO_LARGE"));
  }
}
