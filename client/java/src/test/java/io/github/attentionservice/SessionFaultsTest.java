package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Duration;
import com.google.protobuf.InvalidProtocolBufferException;
import io.github.attentionservice.proto.attention.AppendKeyValuesRequest;
import io.github.attentionservice.proto.attention.AppendKeyValuesResponse;
import io.github.attentionservice.proto.attention.CreateSessionRequest;
import io.github.attentionservice.proto.attention.CreateSessionResponse;
import io.github.attentionservice.proto.attention.DeleteSessionResponse;
import io.github.attentionservice.proto.attention.GetSessionRequest;
import io.github.attentionservice.proto.attention.GetSessionResponse;
import io.github.attentionservice.proto.attention.StepRequest;
import io.github.attentionservice.proto.attention.StepResponse;
import io.github.attentionservice.proto.attention.StepResult;
import io.grpc.Metadata;
import io.grpc.Status;
import java.io.IOException;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Sessions on servers that fail, answer wrongly or not at all. */
@Timeout(60)
class SessionFaultsTest {
  private static final Tensor TOKEN = Pattern.fill(1, 2, 1, 16);
  private static final Tensor QUERY = Pattern.fill(2, 4, 1, 16);

  private FakeServer server;
  private AttentionClient client;
  private int leaseMillis = 60_000;
  private final List<AppendKeyValuesRequest> appends = new CopyOnWriteArrayList<>();
  private final AtomicInteger streams = new AtomicInteger();
  private final List<StepRequest> steps = new CopyOnWriteArrayList<>();
  private final AtomicInteger renewals = new AtomicInteger();
  private volatile StepHandler stepHandler;

  @BeforeEach
  void start() throws IOException {
    server = new FakeServer();
    client = AttentionClient.connect(server.address());
    server
        .on(
            "CreateSession",
            unary(
                bytes -> {
                  CreateSessionRequest request = CreateSessionRequest.parseFrom(bytes);
                  return CreateSessionResponse.newBuilder()
                      .setSession(session(request.getId()))
                      .build();
                }))
        .on(
            "GetSession",
            unary(
                bytes -> {
                  renewals.incrementAndGet();
                  GetSessionRequest request = GetSessionRequest.parseFrom(bytes);
                  assertEquals(7, request.getIncarnation());
                  return GetSessionResponse.newBuilder()
                      .setSession(session(request.getId()))
                      .build();
                }))
        .on("DeleteSession", unary(bytes -> DeleteSessionResponse.getDefaultInstance()));
    onStep((call, request) -> call.send(answer(request)));
    onAppend(AppendReply.WELL);
  }

  @AfterEach
  void stop() {
    client.close();
    server.close();
  }

  private interface Answer {
    com.google.protobuf.MessageLite to(byte[] request) throws InvalidProtocolBufferException;
  }

  private static FakeServer.Handler unary(Answer answer) {
    return (call, message) -> {
      if (message == null) {
        return;
      }
      try {
        call.send(answer.to(message));
        call.ok();
      } catch (InvalidProtocolBufferException e) {
        throw new IllegalStateException(e);
      }
    };
  }

  private io.github.attentionservice.proto.attention.Session session(String id) {
    var session =
        io.github.attentionservice.proto.attention.Session.newBuilder()
            .setId(id)
            .setIncarnation(7)
            .addLengths(0)
            .addLengths(0);
    session
        .getConfigBuilder()
        .setNumLayers(2)
        .setKvHeads(2)
        .setHeadSize(16)
        .setLease(
            Duration.newBuilder()
                .setSeconds(leaseMillis / 1000)
                .setNanos(leaseMillis % 1000 * 1_000_000));
    return session.build();
  }

  private interface StepHandler {
    void message(FakeServer.Call call, StepRequest request);
  }

  /** Holds for streams that are open, too. */
  private void onStep(StepHandler handler) {
    stepHandler = handler;
    server.on(
        "Step",
        new FakeServer.Handler() {
          @Override
          public void started(FakeServer.Call call) {
            streams.incrementAndGet();
          }

          @Override
          public void message(FakeServer.Call call, byte[] message) {
            if (message == null) {
              call.ok();
              return;
            }
            try {
              StepRequest request = StepRequest.parseFrom(message);
              steps.add(request);
              stepHandler.message(call, request);
            } catch (InvalidProtocolBufferException e) {
              throw new IllegalStateException(e);
            }
          }
        });
  }

  private static StepResponse answer(StepRequest request) {
    StepResponse.Builder answer = StepResponse.newBuilder();
    for (var item : request.getItemsList()) {
      StepResult.Builder result =
          answer
              .addResultsBuilder()
              .setLength(
                  item.getExpectedLength() + (item.hasKey() ? item.getKey().getShape(1) : 0));
      if (item.hasQuery()) {
        result.setOutput(item.getQuery());
      }
    }
    return answer.build();
  }

  private interface AppendReply {
    AppendReply WELL =
        (call, request, number) -> {
          call.send(
              AppendKeyValuesResponse.newBuilder()
                  .setLength(request.getExpectedLength() + request.getKey().getShape(1))
                  .build());
          call.ok();
        };

    void to(FakeServer.Call call, AppendKeyValuesRequest request, int number);
  }

  private void onAppend(AppendReply reply) {
    server.on(
        "AppendKeyValues",
        (call, message) -> {
          if (message == null) {
            return;
          }
          try {
            AppendKeyValuesRequest request = AppendKeyValuesRequest.parseFrom(message);
            appends.add(request);
            reply.to(call, request, appends.size());
          } catch (InvalidProtocolBufferException e) {
            throw new IllegalStateException(e);
          }
        });
  }

  private Session create() {
    return client.createSession(SessionConfig.builder(2, 16).layers(2).build());
  }

  @Test
  void stepsShareAStream() {
    Session session = create();
    for (int i = 0; i < 200; ++i) {
      session.step(TOKEN, TOKEN, QUERY);
      session.attend(1, QUERY);
    }
    assertEquals(1, streams.get());
    assertEquals(200, session.length());
    long different =
        steps.stream()
            .map(step -> step.getItems(0).getRequestId())
            .filter(id -> !id.isEmpty())
            .distinct()
            .count();
    assertEquals(200, different);
    assertTrue(
        steps.stream()
            .allMatch(
                step ->
                    step.getItems(0).getIncarnation() == 7
                        && step.getItems(0).hasExpectedLength()));
  }

  @Test
  void streamsThatEndBetweenMessagesAreOpenedAnew() {
    Session session = create();
    record End(Status.Code code, String reason) {}
    for (End end :
        List.of(
            new End(Status.Code.UNAVAILABLE, "DRAINING"),
            new End(Status.Code.RESOURCE_EXHAUSTED, "MEMORY_BUSY"),
            new End(Status.Code.DEADLINE_EXCEEDED, "IDLE_TOO_LONG"),
            new End(Status.Code.UNAVAILABLE, ""),
            new End(Status.Code.UNAUTHENTICATED, "TOKEN_UNKNOWN"))) {
      // Each stream takes one message; it ends with the second one, of which nothing is done.
      onStep(
          (call, request) -> {
            if (call.messages == 1) {
              call.send(answer(request));
            } else {
              call.fail(end.code, end.reason);
            }
          });
      long before = session.length();
      int sent = steps.size();
      session.step(TOKEN, TOKEN, QUERY);
      session.step(TOKEN, TOKEN, QUERY);
      session.step(TOKEN, TOKEN, QUERY);
      assertEquals(before + 3, session.length());
      long different =
          steps.stream().skip(sent).map(step -> step.getItems(0).getRequestId()).distinct().count();
      assertEquals(3, different, "the same id where a message is sent again");
    }
  }

  @Test
  void otherErrorsOfStreamsAreTold() {
    Session session = create();
    session.step(TOKEN, TOKEN, QUERY);
    onStep((call, request) -> call.fail(Status.Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE"));
    AttentionException error =
        assertThrows(AttentionException.class, () -> session.step(TOKEN, TOKEN, QUERY));
    assertEquals("MALFORMED_MESSAGE", error.reason());
    assertEquals(2, steps.size());
    assertEquals(1, session.length());
  }

  @Test
  void answersThatDoNotMatch() throws Exception {
    Session session = create();
    onStep((call, request) -> call.send(StepResponse.getDefaultInstance()));
    AttentionException error =
        assertThrows(AttentionException.class, () -> session.step(TOKEN, TOKEN, QUERY));
    assertEquals(Status.Code.INTERNAL, error.code());
    assertTrue(error.getMessage().contains("got 0 results, wanted 1"), error.getMessage());
    onStep(
        (call, request) ->
            call.send(
                StepResponse.newBuilder()
                    .addResults(StepResult.newBuilder().setLength(1))
                    .build()));
    error = assertThrows(AttentionException.class, () -> session.attend(QUERY));
    assertTrue(error.getMessage().contains("no output"), error.getMessage());
    onStep(
        (call, request) -> {
          call.send(answer(request));
          call.send(answer(request));
        });
    session.attend(QUERY);
    Thread.sleep(300);
    // The second answer was nobody's: that stream is not used again, and nothing is mixed up.
    onStep((call, request) -> call.send(answer(request)));
    assertEquals(0, session.attend(1, QUERY).length());
  }

  @Test
  void stepsThatGetNoAnswerEndInTime() {
    Session session = create();
    onStep((call, request) -> {});
    CallOptions soon = CallOptions.timeout(java.time.Duration.ofMillis(100));
    AttentionException error =
        assertThrows(
            AttentionException.class,
            () -> session.step(0, TOKEN, TOKEN, QUERY, AttendOptions.DEFAULT, soon));
    assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    CompletionException later =
        assertThrows(
            CompletionException.class,
            () -> session.stepAsync(0, TOKEN, TOKEN, QUERY, AttendOptions.DEFAULT, soon).join());
    assertEquals(Status.Code.DEADLINE_EXCEEDED, ((AttentionException) later.getCause()).code());
    // Nobody knows whether they were appended: the same tokens have the same id.
    onStep((call, request) -> call.send(answer(request)));
    session.step(TOKEN, TOKEN, QUERY);
    assertEquals(1, steps.stream().map(step -> step.getItems(0).getRequestId()).distinct().count());
  }

  @Test
  void oneAppendPerLayerAtATime() throws Exception {
    Session session = create();
    CountDownLatch begun = new CountDownLatch(1);
    CountDownLatch goOn = new CountDownLatch(1);
    onAppend(
        (call, request, number) -> {
          begun.countDown();
          try {
            goOn.await();
          } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
          }
          AppendReply.WELL.to(call, request, number);
        });
    CompletableFuture<Long> first = session.appendAsync(0, TOKEN, TOKEN, CallOptions.DEFAULT);
    assertTrue(begun.await(20, TimeUnit.SECONDS));
    AttentionException error =
        assertThrows(AttentionException.class, () -> session.append(TOKEN, TOKEN));
    assertEquals(Status.Code.ABORTED, error.code());
    assertEquals("LENGTH_CONFLICT", error.reason());
    assertEquals(0, error.length().getAsLong());
    // Other layers, and attends, which do not know how the append ends.
    session.step(1, TOKEN, TOKEN, QUERY);
    session.attend(QUERY);
    assertFalse(steps.get(steps.size() - 1).getItems(0).hasExpectedLength());
    List<StepOutcome> outcomes =
        client.step(
            List.of(
                StepItem.append(session, 0, TOKEN, TOKEN),
                StepItem.append(session, 1, TOKEN, TOKEN),
                StepItem.append(session, 1, TOKEN, TOKEN)));
    assertEquals("LENGTH_CONFLICT", outcomes.get(0).error().orElseThrow().reason());
    assertEquals(2, outcomes.get(1).get().length());
    assertEquals("LENGTH_CONFLICT", outcomes.get(2).error().orElseThrow().reason());
    goOn.countDown();
    assertEquals(1, first.join());
    assertEquals(2, session.append(TOKEN, TOKEN));
  }

  @Test
  void largeAppendsGoOnWhereTheyFailed() {
    Session session = create();
    Tensor many = Pattern.fill(3, 2, 200_000, 16);
    onAppend(
        (call, request, number) -> {
          if (number == 3) {
            call.fail(Status.Code.RESOURCE_EXHAUSTED, "SESSION_BYTES");
          } else {
            AppendReply.WELL.to(call, request, number);
          }
        });
    AttentionException error =
        assertThrows(AttentionException.class, () -> session.append(many, many));
    assertEquals("SESSION_BYTES", error.reason());
    long perCall = appends.get(0).getKey().getShape(1);
    assertTrue(
        error.getMessage().contains("the first " + 2 * perCall + " of 200000 tokens were appended"),
        error.getMessage());
    assertTrue(appends.stream().allMatch(request -> request.getSerializedSize() < 9 << 20));
    assertEquals(2 * perCall, session.length());
    assertEquals(200_000, session.append(many, many));
    assertEquals(2 * perCall, appends.get(3).getExpectedLength());
    assertEquals(appends.get(2).getRequestId(), appends.get(3).getRequestId());
    assertEquals(
        appends.size() - 1,
        appends.stream().map(AppendKeyValuesRequest::getRequestId).distinct().count());
    // Now they are all there: once more means once more.
    int sent = appends.size();
    assertEquals(400_000, session.append(many, many));
    assertEquals(sent - 1, appends.size() - sent);
  }

  @Test
  void otherTokensAfterALargeAppendThatFailed() {
    Session session = create();
    Tensor many = Pattern.fill(3, 2, 200_000, 16);
    onAppend(
        (call, request, number) -> {
          if (number == 2) {
            call.fail(Status.Code.INTERNAL, "INTERNAL");
          } else {
            AppendReply.WELL.to(call, request, number);
          }
        });
    assertThrows(AttentionException.class, () -> session.append(many, many));
    long there = session.length();
    assertTrue(there > 0);
    Tensor other = Pattern.fill(4, 2, 200_000, 16);
    assertEquals(there + 200_000, session.append(other, other));
  }

  @Test
  void goneSessionsAreNotAskedFor() {
    Session session = create();
    onStep(
        (call, request) ->
            call.send(
                StepResponse.newBuilder()
                    .addResults(
                        StepResult.newBuilder()
                            .setCode(Status.Code.NOT_FOUND.value())
                            .setMessage("gone")
                            .setStatusDetails(unknownSession()))
                    .build()));
    assertThrows(AttentionException.class, () -> session.attend(QUERY));
    int sent = steps.size();
    for (Function<Session, Object> call :
        List.<Function<Session, Object>>of(
            one -> one.attend(QUERY),
            one -> one.append(TOKEN, TOKEN),
            Session::refresh,
            Session::fork)) {
      AttentionException error = assertThrows(AttentionException.class, () -> call.apply(session));
      assertEquals("SESSION_UNKNOWN", error.reason());
    }
    assertEquals(sent, steps.size());
    assertEquals(0, appends.size());
    session.delete();
  }

  @Test
  void sessionsThatAreNone() {
    server.on(
        "GetSession",
        unary(
            bytes ->
                GetSessionResponse.newBuilder()
                    .setSession(session("x").toBuilder().addLengths(0))
                    .build()));
    AttentionException error =
        assertThrows(AttentionException.class, () -> client.openSession("x"));
    assertTrue(error.getMessage().contains("2 layers with 3 lengths"), error.getMessage());
  }

  @Test
  void leasesThatNobodyCanCount() {
    server.on(
        "GetSession",
        unary(
            bytes -> {
              renewals.incrementAndGet();
              var session = session("x").toBuilder();
              session.getConfigBuilder().getLeaseBuilder().setSeconds(Long.MAX_VALUE).setNanos(0);
              return GetSessionResponse.newBuilder().setSession(session).build();
            }));
    assertEquals(Long.MAX_VALUE, client.openSession("x").config().lease().toSeconds());
    leaseMillis = 0;
    create();
    create();
    assertEquals(1, renewals.get());
  }

  @Test
  void forksOfWhatIsGone() {
    Session session = create();
    server.on(
        "ForkSessions",
        (call, message) -> {
          if (message != null) {
            call.fail(Status.Code.NOT_FOUND, "SESSION_UNKNOWN");
          }
        });
    assertThrows(AttentionException.class, session::fork);
    assertThrows(AttentionException.class, () -> session.attend(QUERY));
    assertEquals(0, steps.size());
  }

  private static com.google.protobuf.ByteString unknownSession() {
    return com.google.rpc.Status.newBuilder()
        .setCode(Status.Code.NOT_FOUND.value())
        .addDetails(
            com.google.protobuf.Any.pack(
                com.google.rpc.ErrorInfo.newBuilder()
                    .setReason("SESSION_UNKNOWN")
                    .setDomain("attention")
                    .build()))
        .build()
        .toByteString();
  }

  @Test
  void leasesAreRenewedWhileTheObjectLives() throws Exception {
    leaseMillis = 300;
    long begin = System.nanoTime();
    Session session = create();
    Thread.sleep(1000);
    int asked = renewals.get();
    long thirds = (System.nanoTime() - begin) / 100_000_000;
    assertTrue(asked >= 2 && asked <= thirds, asked + " renewals in " + thirds + " thirds");
    session.release();
    Thread.sleep(200);
    asked = renewals.get();
    Thread.sleep(400);
    assertEquals(asked, renewals.get());
    assertEquals("Session " + session.id(), session.toString());
  }

  @Test
  void usedSessionsNeedNoRenewal() throws Exception {
    leaseMillis = 3000;
    Session session = create();
    for (int i = 0; i < 14; ++i) {
      Thread.sleep(100);
      session.attend(QUERY);
    }
    assertEquals(0, renewals.get());
  }

  @Test
  void droppedObjectsAreNotRenewed() throws Exception {
    leaseMillis = 300;
    create();
    int before = -1;
    for (int i = 0; i < 50 && before != renewals.get(); ++i) {
      before = renewals.get();
      System.gc();
      Thread.sleep(400);
    }
    assertEquals(before, renewals.get());
  }

  @Test
  void closedClientsRenewNothing() throws Exception {
    leaseMillis = 300;
    Session session = create();
    client.close();
    Thread.sleep(400);
    assertEquals(0, renewals.get());
    session.close();
    assertThrows(IllegalStateException.class, () -> session.attend(QUERY));
  }

  /** An error of the whole message is one of each item; what may be tried again is. */
  @Test
  void batchesAreTriedItemByItem() {
    Session session = create();
    Session other = create();
    AtomicInteger messages = new AtomicInteger();
    onStep(
        (call, request) -> {
          int number = messages.incrementAndGet();
          if (number == 1) {
            call.close(Status.UNAVAILABLE, new Metadata());
            return;
          }
          StepResponse.Builder answer = answer(request).toBuilder();
          if (number == 2) {
            answer.setResults(
                1,
                StepResult.newBuilder()
                    .setCode(Status.Code.UNAVAILABLE.value())
                    .setMessage("once more"));
          }
          call.send(answer.build());
        });
    List<StepOutcome> outcomes =
        client.step(
            List.of(
                StepItem.step(session, 0, TOKEN, TOKEN, QUERY),
                StepItem.append(other, 0, TOKEN, TOKEN),
                StepItem.attend(other, 1, QUERY)));
    assertTrue(outcomes.stream().allMatch(outcome -> outcome.error().isEmpty()));
    assertEquals(List.of(3, 3, 1), steps.stream().map(StepRequest::getItemsCount).toList());
    assertEquals(steps.get(0).getItems(1).getRequestId(), steps.get(2).getItems(0).getRequestId());
    assertEquals(0, outcomes.get(1).get().output().size());
  }

  @Test
  void batchesThatCannotBe() throws Exception {
    Session session = create();
    assertEquals(List.of(), client.step(List.of()));
    StepItem item = StepItem.attend(session, 0, QUERY);
    assertThrows(
        IllegalArgumentException.class,
        () -> client.step(java.util.Collections.nCopies(1025, item)));
    try (AttentionClient stranger = AttentionClient.connect(server.address())) {
      assertThrows(IllegalArgumentException.class, () -> stranger.step(List.of(item)));
      assertThrows(
          IllegalArgumentException.class,
          () -> stranger.forkSessions(List.of(new Fork(session)), CallOptions.DEFAULT));
    }
    assertThrows(IndexOutOfBoundsException.class, () -> session.length(2));
  }
}
