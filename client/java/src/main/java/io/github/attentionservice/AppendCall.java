package io.github.attentionservice;

import io.github.attentionservice.proto.attention.AppendKeyValuesResponse;
import java.util.List;
import java.util.concurrent.CompletableFuture;

/** An append, piece by piece. The same tokens again go on where they ended. */
final class AppendCall {
  private final Connection connection;
  private final SessionState session;
  private final int layer;
  private final SessionState.Claim claim;
  private final List<AppendPiece> pieces;
  private final CallContext context;
  private final CompletableFuture<Long> ended = new CompletableFuture<>();

  private AppendCall(
      Connection connection,
      SessionState session,
      int layer,
      List<AppendPiece> pieces,
      CallContext context) {
    this.connection = connection;
    this.session = session;
    this.layer = layer;
    this.claim = session.claim(layer);
    this.pieces = pieces;
    this.context = context;
  }

  /** The layer's length then. */
  static CompletableFuture<Long> start(
      Connection connection,
      SessionState session,
      int layer,
      Tensor key,
      Tensor value,
      CallContext context) {
    AppendCall call =
        new AppendCall(connection, session, layer, AppendPiece.cut(key, value), context);
    // What is returned is done after the release: the next append must find the layer free.
    CompletableFuture<Long> released =
        call.ended.whenComplete((length, error) -> call.claim.release());
    try {
      long tokens = call.pieces.get(call.pieces.size() - 1).end();
      long done = call.pieces.size() == 1 ? 0 : call.claim.alreadyDone(key, value, tokens);
      int first = 0;
      while (call.pieces.get(first).end() <= done && first < call.pieces.size() - 1) {
        ++first;
      }
      call.send(first);
    } catch (RuntimeException e) {
      call.ended.completeExceptionally(e);
    }
    return released;
  }

  private void send(int number) {
    AppendPiece piece = pieces.get(number);
    long begun = System.nanoTime();
    CompletableFuture<AppendKeyValuesResponse> answer =
        new Retry(Retry.Kind.APPEND, context, connection::forgetFailure).run(() -> tryOnce(piece));
    answer.whenComplete(
        (response, error) -> {
          try {
            if (error != null) {
              fail(piece, Futures.errorOf(error));
              return;
            }
            session.used(begun);
            claim.appended(response.getLength());
            if (number + 1 < pieces.size()) {
              send(number + 1);
            } else {
              ended.complete(response.getLength());
            }
          } catch (RuntimeException e) {
            ended.completeExceptionally(e);
          }
        });
  }

  private CompletableFuture<AppendKeyValuesResponse> tryOnce(AppendPiece piece) {
    WireMessage message = SessionMessages.append(session, layer, claim, piece);
    if (message.length() > Integer.MAX_VALUE) {
      throw Compute.tooLarge(message);
    }
    return connection.unary(Methods.APPEND, message, connection.headers(context), context);
  }

  private void fail(AppendPiece piece, AttentionException error) {
    session.failed(error);
    if (piece.begin() == 0) {
      ended.completeExceptionally(error);
      return;
    }
    long tokens = pieces.get(pieces.size() - 1).end();
    claim.leaveUnfinished(piece.key(), piece.value(), tokens, piece.begin());
    ended.completeExceptionally(
        error.with(
            error.description()
                + "; the first "
                + piece.begin()
                + " of "
                + tokens
                + " tokens were appended",
            error.fieldViolations()));
  }
}
