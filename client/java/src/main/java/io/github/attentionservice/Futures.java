package io.github.attentionservice;

import io.grpc.Status;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;

/** What is missing in CompletableFuture. */
final class Futures {
  private Futures() {}

  /** Of a future that is done; throws the error itself where it failed. */
  static <T> T result(CompletableFuture<T> done) {
    try {
      return done.join();
    } catch (CompletionException e) {
      Throwable cause = CallContext.unwrap(e);
      if (cause instanceof RuntimeException error) {
        throw error;
      }
      if (cause instanceof Error error) {
        throw error;
      }
      throw e;
    }
  }

  /** The error of a call that a future ended with. What is none of a call is a bug. */
  static AttentionException errorOf(Throwable error) {
    AttentionException found = AttentionException.find(error);
    if (found != null) {
      return found;
    }
    AttentionException bug =
        AttentionException.of(Status.Code.INTERNAL, "", "the client failed: " + error);
    bug.addSuppressed(error);
    return bug;
  }
}
