package io.github.attentionservice;

import io.github.attentionservice.proto.attention.StepRequest;
import io.github.attentionservice.proto.attention.StepResponse;
import io.github.attentionservice.proto.attention.StepResult;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;

/**
 * A batch of steps until each of them has its outcome. An error of one item is that item's: it
 * alone is tried again, in a message with those that have to be, too. An error of the message is
 * one of all its items.
 */
final class StepCall {
  /** An item that has no outcome yet. */
  private final class Pending {
    final int number;
    final StepItem item;
    // Null where nothing is appended.
    final SessionState.Claim claim;
    final long expectedLength;
    final Retry retry;

    Pending(int number, StepItem item, SessionState.Claim claim) {
      this.number = number;
      this.item = item;
      this.claim = claim;
      this.expectedLength =
          claim != null
              ? claim.expectedLength()
              : item.options.anyLength ? -1 : state().expectedByAttend(item.layer);
      this.retry =
          new Retry(
              claim == null ? Retry.Kind.REPEATABLE : Retry.Kind.APPEND,
              context,
              connection::forgetFailure);
    }

    SessionState state() {
      return item.session.state();
    }

    WireMessage message() {
      return SessionMessages.step(
          item, state(), expectedLength, claim == null ? "" : claim.requestId());
    }

    /** The server did what the item asks for, whatever the rest of its answer is like. */
    void succeeded(long length) {
      state().used(begun);
      if (claim != null) {
        claim.appended(length);
      }
    }

    void done(AttendResult result, AttentionException error) {
      if (error != null) {
        state().failed(error);
      }
      if (claim != null) {
        claim.release();
      }
      outcomes[number] = new StepOutcome(result, error);
    }
  }

  private final Connection connection;
  private final StepStreams streams;
  private final CallContext context;
  private final long begun = System.nanoTime();
  private final StepOutcome[] outcomes;
  private final CompletableFuture<List<StepOutcome>> ended = new CompletableFuture<>();
  private List<Pending> pending = new ArrayList<>();

  private StepCall(
      Connection connection, StepStreams streams, List<StepItem> items, CallContext context) {
    this.connection = connection;
    this.streams = streams;
    this.context = context;
    this.outcomes = new StepOutcome[items.size()];
    for (int i = 0; i < outcomes.length; ++i) {
      StepItem item = items.get(i);
      try {
        item.session.state().check();
        SessionState.Claim claim = item.key == null ? null : item.session.state().claim(item.layer);
        pending.add(new Pending(i, item, claim));
      } catch (AttentionException e) {
        outcomes[i] = new StepOutcome(null, e);
      }
    }
  }

  /** Of each item its outcome. Does not fail. */
  static CompletableFuture<List<StepOutcome>> start(
      Connection connection, StepStreams streams, List<StepItem> items, CallContext context) {
    StepCall call = new StepCall(connection, streams, items, context);
    call.send();
    return call.ended;
  }

  private void send() {
    if (pending.isEmpty()) {
      ended.complete(List.of(outcomes));
      return;
    }
    WireMessage message = new WireMessage();
    for (Pending one : pending) {
      message.message(StepRequest.ITEMS_FIELD_NUMBER, one.message());
    }
    if (message.length() > Integer.MAX_VALUE) {
      endAll(Compute.tooLarge(message));
      return;
    }
    if (context.remainingNanos() <= 0) {
      endAll(AttentionException.timedOut());
      return;
    }
    CompletableFuture<StepResponse> answer;
    try {
      answer = streams.exchange(message, context);
    } catch (RuntimeException e) {
      answer = CompletableFuture.failedFuture(e);
    }
    answer.whenComplete(
        (response, error) -> {
          AttentionException[] errors = new AttentionException[pending.size()];
          if (error != null) {
            Arrays.fill(errors, Futures.errorOf(error));
          } else if (response.getResultsCount() != errors.length) {
            Arrays.fill(
                errors,
                AttentionException.malformed(
                    "got " + response.getResultsCount() + " results, wanted " + errors.length));
          } else {
            take(response, errors);
          }
          goOn(errors);
        });
  }

  /** Gives the items that went well their results, and fills in the errors of the others. */
  private void take(StepResponse response, AttentionException[] errors) {
    for (int i = 0; i < errors.length; ++i) {
      Pending one = pending.get(i);
      StepResult result = response.getResults(i);
      if (result.getCode() != Status.Code.OK.value()) {
        errors[i] =
            AttentionException.ofItem(
                result.getCode(), result.getMessage(), result.getStatusDetails().toByteArray());
        continue;
      }
      one.succeeded(result.getLength());
      try {
        one.done(AttendResult.of(response, result, one.item), null);
      } catch (AttentionException malformed) {
        errors[i] = malformed;
      }
    }
  }

  /** Tries those again for which the table says so, after the longest of their pauses. */
  private void goOn(AttentionException[] errors) {
    List<Pending> again = new ArrayList<>();
    Duration pause = Duration.ZERO;
    for (int i = 0; i < errors.length; ++i) {
      if (errors[i] == null) {
        continue;
      }
      Pending one = pending.get(i);
      Duration itsPause = one.retry.pauseAfter(errors[i]);
      if (itsPause == null) {
        one.done(null, context.endedOr(errors[i]));
        continue;
      }
      again.add(one);
      pause = itsPause.compareTo(pause) > 0 ? itsPause : pause;
    }
    pending = again;
    if (again.isEmpty()) {
      ended.complete(List.of(outcomes));
    } else {
      context.after(pause, this::send, this::endAll);
    }
  }

  private void endAll(AttentionException error) {
    for (Pending one : pending) {
      one.done(null, error);
    }
    pending = List.of();
    ended.complete(List.of(outcomes));
  }
}
