package io.github.attentionservice;

import io.github.attentionservice.proto.attention.CreateSessionRequest;
import io.github.attentionservice.proto.attention.CreateSessionResponse;
import io.github.attentionservice.proto.attention.DeleteSessionRequest;
import io.github.attentionservice.proto.attention.ForkSessionsRequest;
import io.github.attentionservice.proto.attention.ForkSessionsResponse;
import io.github.attentionservice.proto.attention.GetSessionRequest;
import io.github.attentionservice.proto.attention.GetSessionResponse;
import io.github.attentionservice.proto.attention.ListSessionsRequest;
import io.github.attentionservice.proto.attention.TruncateSessionRequest;
import io.github.attentionservice.proto.attention.TruncateSessionResponse;
import io.grpc.MethodDescriptor;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;

/** The calls of sessions. */
final class Sessions {
  private final AttentionClient client;
  private final Connection connection;
  private final StepStreams streams;
  private final LeaseKeeper leases;

  Sessions(AttentionClient client, Connection connection, ClientThreads threads) {
    this.client = client;
    this.connection = connection;
    this.streams = new StepStreams(connection);
    this.leases =
        new LeaseKeeper(
            threads.timer(),
            (session, timeout, ended) -> {
              long begun = System.nanoTime();
              try {
                client
                    .startAsync(CallOptions.timeout(timeout), context -> get(session, context))
                    .whenComplete(
                        (told, error) -> {
                          if (error == null) {
                            session.used(begun);
                          } else {
                            session.failed(Futures.errorOf(error));
                          }
                          ended.run();
                        });
              } catch (IllegalStateException e) {
                // The client was closed just now.
                ended.run();
              }
            });
  }

  void close() {
    leases.close();
    streams.close();
  }

  private <Q, R> CompletableFuture<R> call(
      MethodDescriptor<Q, R> method, Q request, Retry.Kind kind, CallContext context) {
    return new Retry(kind, context, connection::forgetFailure)
        .run(() -> connection.unary(method, request, connection.headers(context), context));
  }

  private Session handle(io.github.attentionservice.proto.attention.Session told) {
    if (told.getId().isEmpty() || told.getLengthsCount() != told.getConfig().getNumLayers()) {
      throw AttentionException.malformed(
          "session '"
              + told.getId()
              + "' of "
              + told.getConfig().getNumLayers()
              + " layers with "
              + told.getLengthsCount()
              + " lengths");
    }
    SessionState state = new SessionState(told);
    Session session = new Session(client, this, state);
    leases.add(session, state);
    return session;
  }

  /** An empty id: one that nobody can guess, chosen here so that the call can be tried again. */
  CompletableFuture<Session> create(SessionConfig config, String id, CallContext context) {
    CreateSessionRequest request =
        CreateSessionRequest.newBuilder()
            .setId(id.isEmpty() ? RandomIds.next() : id)
            .setConfig(config.message())
            .build();
    CompletableFuture<CreateSessionResponse> answer =
        call(Methods.CREATE, request, Retry.Kind.REPEATABLE, context);
    return answer.thenApply(created -> handle(created.getSession()));
  }

  CompletableFuture<SessionInfo> info(String id, CallContext context) {
    return get(id, 0, context).thenApply(answer -> SessionInfo.of(answer.getSession()));
  }

  CompletableFuture<Session> open(String id, CallContext context) {
    return get(id, 0, context).thenApply(answer -> handle(answer.getSession()));
  }

  private CompletableFuture<GetSessionResponse> get(SessionState session, CallContext context) {
    return get(session.id(), session.incarnation(), context);
  }

  private CompletableFuture<GetSessionResponse> get(
      String id, long incarnation, CallContext context) {
    GetSessionRequest request =
        GetSessionRequest.newBuilder().setId(id).setIncarnation(incarnation).build();
    return call(Methods.GET, request, Retry.Kind.REPEATABLE, context);
  }

  CompletableFuture<List<SessionInfo>> list(CallContext context) {
    return list("", new ArrayList<>(), context);
  }

  private CompletableFuture<List<SessionInfo>> list(
      String page, List<SessionInfo> found, CallContext context) {
    ListSessionsRequest request = ListSessionsRequest.newBuilder().setPageToken(page).build();
    return call(Methods.LIST, request, Retry.Kind.REPEATABLE, context)
        .thenCompose(
            answer -> {
              answer.getSessionsList().forEach(session -> found.add(SessionInfo.of(session)));
              return answer.getNextPageToken().isEmpty()
                  ? CompletableFuture.completedFuture(List.copyOf(found))
                  : list(answer.getNextPageToken(), found, context);
            });
  }

  CompletableFuture<Void> delete(String id, long incarnation, CallContext context) {
    DeleteSessionRequest request =
        DeleteSessionRequest.newBuilder().setId(id).setIncarnation(incarnation).build();
    return call(Methods.DELETE, request, Retry.Kind.REPEATABLE, context).thenApply(answer -> null);
  }

  CompletableFuture<Void> delete(SessionState session, CallContext context) {
    leases.remove(session);
    if (session.isGone()) {
      // One with the same id would be another.
      return CompletableFuture.completedFuture(null);
    }
    return delete(session.id(), session.incarnation(), context).thenRun(session::deleted);
  }

  void release(SessionState session) {
    leases.remove(session);
  }

  CompletableFuture<List<Session>> fork(List<Fork> forks, CallContext context) {
    ForkSessionsRequest.Builder request = ForkSessionsRequest.newBuilder();
    for (Fork fork : forks) {
      fork.source().state().check();
      request
          .addForksBuilder()
          .setSource(fork.source().id())
          .setSourceIncarnation(fork.source().incarnation())
          .setTarget(fork.target().isEmpty() ? RandomIds.next() : fork.target());
    }
    long begun = System.nanoTime();
    CompletableFuture<ForkSessionsResponse> answer =
        call(Methods.FORK, request.build(), Retry.Kind.ONCE, context);
    return answer.handle(
        (made, error) -> {
          if (error != null) {
            // Of several sources nobody knows which one is meant.
            boolean same =
                forks.stream().map(fork -> fork.source().state()).distinct().count() == 1;
            throw same ? failed(forks.get(0).source().state(), error) : Futures.errorOf(error);
          }
          if (made.getSessionsCount() != forks.size()) {
            throw AttentionException.malformed(
                "got " + made.getSessionsCount() + " sessions, wanted " + forks.size());
          }
          forks.forEach(fork -> fork.source().state().used(begun));
          return made.getSessionsList().stream().map(this::handle).toList();
        });
  }

  CompletableFuture<Void> truncate(SessionState session, long length, CallContext context) {
    session.check();
    TruncateSessionRequest request =
        TruncateSessionRequest.newBuilder()
            .setId(session.id())
            .setIncarnation(session.incarnation())
            .setLength(length)
            .build();
    long begun = System.nanoTime();
    CompletableFuture<TruncateSessionResponse> answer =
        call(Methods.TRUNCATE, request, Retry.Kind.REPEATABLE, context);
    return answer.handle(
        (told, error) -> {
          if (error != null) {
            throw failed(session, error);
          }
          session.used(begun);
          session.setLengths(told.getSession());
          return null;
        });
  }

  CompletableFuture<SessionInfo> refresh(SessionState session, CallContext context) {
    session.check();
    long begun = System.nanoTime();
    return get(session, context)
        .handle(
            (told, error) -> {
              if (error != null) {
                throw failed(session, error);
              }
              session.used(begun);
              session.setLengths(told.getSession());
              return SessionInfo.of(told.getSession());
            });
  }

  private static AttentionException failed(SessionState session, Throwable error) {
    AttentionException failure = Futures.errorOf(error);
    session.failed(failure);
    return failure;
  }

  CompletableFuture<Long> append(
      SessionState session, int layer, Tensor key, Tensor value, CallContext context) {
    return AppendCall.start(connection, session, layer, key, value, context);
  }

  CompletableFuture<List<StepOutcome>> step(List<StepItem> items, CallContext context) {
    return StepCall.start(connection, streams, items, context);
  }

  CompletableFuture<AttendResult> step(StepItem item, CallContext context) {
    return step(List.of(item), context).thenApply(outcomes -> outcomes.get(0).get());
  }
}
