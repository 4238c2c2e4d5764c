package io.github.attentionservice;

import io.github.attentionservice.proto.attention.StepResponse;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.RejectedExecutionException;

/**
 * Step streams that stay open: one, or as many as messages are under way at once. A stream that
 * ended between messages is opened anew, and the message sent again once.
 */
final class StepStreams {
  private static final int MOST_IDLE = 16;

  private final Connection connection;
  // Those without a message under way, the one used last in front.
  private final Deque<Stream> idle = new ArrayDeque<>();
  private boolean closed;

  StepStreams(Connection connection) {
    this.connection = connection;
  }

  CompletableFuture<StepResponse> exchange(WireMessage message, CallContext context) {
    Stream stream = takeIdle();
    if (stream == null) {
      return open().send(message, context);
    }
    return stream
        .send(message, context)
        .exceptionallyCompose(
            error -> {
              AttentionException failure = Futures.errorOf(error);
              return endedBetweenMessages(failure) && context.remainingNanos() > 0
                  ? open().send(message, context)
                  : CompletableFuture.failedFuture(failure);
            });
  }

  /** Errors of a stream that was good before, with which nothing of its last message is done. */
  private static boolean endedBetweenMessages(AttentionException error) {
    if (error.retryForbidden()) {
      return false;
    }
    return switch (error.code()) {
      case UNAVAILABLE -> error.hasReason("DRAINING") || Retry.isLost(error);
      case RESOURCE_EXHAUSTED -> error.hasReason("MEMORY_BUSY");
      case DEADLINE_EXCEEDED -> error.hasReason("IDLE_TOO_LONG");
      // The token that it began with is good no more; there may be another one by now.
      case UNAUTHENTICATED -> error.hasReason("TOKEN_UNKNOWN");
      default -> false;
    };
  }

  private synchronized Stream takeIdle() {
    return idle.pollFirst();
  }

  private synchronized boolean giveBack(Stream stream) {
    if (closed || idle.size() >= MOST_IDLE) {
      return false;
    }
    idle.addFirst(stream);
    return true;
  }

  private synchronized void forget(Stream stream) {
    idle.remove(stream);
  }

  void close() {
    List<Stream> all;
    synchronized (this) {
      closed = true;
      all = new ArrayList<>(idle);
      idle.clear();
    }
    for (Stream stream : all) {
      stream.call.cancel("the client was closed", null);
    }
  }

  private Stream open() {
    Stream stream = new Stream(connection.newCall(Methods.STEP, Runnable::run, null));
    try {
      stream.call.start(stream, connection.headers(null));
      // One message comes for each that is sent.
      stream.call.request(Integer.MAX_VALUE);
    } catch (RuntimeException e) {
      stream.call.cancel("the stream could not be opened", e);
      throw e;
    }
    return stream;
  }

  /** One message that is under way. */
  private record Exchange(CompletableFuture<StepResponse> answer, CallContext context) {
    void done(StepResponse response, Throwable error) {
      Runnable tell =
          () -> {
            if (error == null) {
              answer.complete(response);
            } else {
              answer.completeExceptionally(error);
            }
          };
      try {
        context.executor().execute(tell);
      } catch (RejectedExecutionException e) {
        tell.run();
      }
    }
  }

  /** Its callbacks run on the connection's thread. */
  private final class Stream extends ClientCall.Listener<StepResponse> {
    final ClientCall<WireMessage, StepResponse> call;
    // Null between messages. Guarded by this.
    private Exchange exchange;
    // Why it is given up. Guarded by this.
    private AttentionException endedWith;
    // Not null once it has ended. Guarded by this.
    private AttentionException closedWith;

    Stream(ClientCall<WireMessage, StepResponse> call) {
      this.call = call;
    }

    CompletableFuture<StepResponse> send(WireMessage message, CallContext context) {
      Exchange mine = new Exchange(new CompletableFuture<>(), context);
      synchronized (this) {
        if (closedWith != null) {
          return CompletableFuture.failedFuture(closedWith);
        }
        exchange = mine;
      }
      context.watch(mine.answer);
      context.underWay(error -> giveUp(mine, error));
      try {
        call.sendMessage(message);
      } catch (RuntimeException | Error e) {
        // It has been given up meanwhile, or there is no memory for it.
        call.cancel("the message could not be sent", e);
      }
      return mine.answer;
    }

    private void giveUp(Exchange given, AttentionException error) {
      synchronized (this) {
        if (exchange != given) {
          return;
        }
        endedWith = error;
      }
      call.cancel(error.description(), null);
    }

    @Override
    public void onMessage(StepResponse message) {
      Exchange answered;
      synchronized (this) {
        answered = exchange;
        exchange = null;
      }
      if (answered == null) {
        call.cancel("an answer without a message", null);
        return;
      }
      // Before the answer is told, so that the next message finds the stream.
      if (!giveBack(this)) {
        call.halfClose();
      }
      answered.done(message, null);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      forget(this);
      Exchange unanswered;
      AttentionException error;
      synchronized (this) {
        error =
            status.isOk()
                ? AttentionException.of(
                    Status.Code.UNAVAILABLE, "", "the server ended the stream without an answer")
                : Connection.errorOf(status, trailers, endedWith);
        closedWith = error;
        unanswered = exchange;
        exchange = null;
      }
      if (unanswered != null) {
        unanswered.done(null, error);
      }
    }
  }
}
