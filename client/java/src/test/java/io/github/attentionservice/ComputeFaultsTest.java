package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import io.github.attentionservice.proto.attention.ComputeAttentionResponse;
import io.github.attentionservice.proto.attention.DataType;
import io.github.attentionservice.proto.attention.StreamAttentionResponse;
import io.github.attentionservice.proto.attention.Timing;
import io.grpc.Metadata;
import io.grpc.Status;
import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.UnaryOperator;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Servers that answer wrongly, or not at all. */
@Timeout(60)
class ComputeFaultsTest {
  private static final Tensor ROW = Pattern.fill(1, 1, 4);
  private static final ComputeRequest SMALL = ComputeRequest.builder(ROW, ROW, ROW).build();

  private FakeServer server;
  private AttentionClient client;

  @BeforeEach
  void start() throws IOException {
    server = new FakeServer();
    client = AttentionClient.connect(server.address());
  }

  @AfterEach
  void stop() {
    client.close();
    server.close();
  }

  private static io.github.attentionservice.proto.attention.Tensor tensor(
      int type, int bytes, long... shape) {
    var tensor =
        io.github.attentionservice.proto.attention.Tensor.newBuilder()
            .setDataTypeValue(type)
            .setData(ByteString.copyFrom(new byte[bytes]));
    for (long axis : shape) {
      tensor.addShape(axis);
    }
    return tensor.build();
  }

  private static io.github.attentionservice.proto.attention.Tensor floats(long... shape) {
    int bytes = 4;
    for (long axis : shape) {
      bytes *= (int) axis;
    }
    return tensor(DataType.DATA_TYPE_FLOAT32_VALUE, bytes, shape);
  }

  /** Answers each call with these messages. */
  private void answer(String method, List<byte[]> messages) {
    server.on(
        method,
        (call, message) -> {
          if (message == null) {
            messages.forEach(call::send);
            call.ok();
          }
        });
  }

  private static byte[] answerOf(io.github.attentionservice.proto.attention.Tensor output) {
    return ComputeAttentionResponse.newBuilder().setOutput(output).build().toByteArray();
  }

  private void assertMalformed(ComputeRequest request, String text) {
    AttentionException error =
        assertThrows(AttentionException.class, () -> client.compute(request));
    assertEquals(Status.Code.INTERNAL, error.code(), error.toString());
    assertTrue(error.getMessage().contains(text), error.getMessage());
  }

  @Test
  void answersThatAreNone() {
    answer("ComputeAttention", List.of(new byte[] {10, 100, 1}));
    assertMalformed(SMALL, "malformed answer");
    answer("ComputeAttention", List.of(new byte[0]));
    assertMalformed(SMALL, "no output");
    answer("ComputeAttention", List.of(answerOf(tensor(1, 15, 1, 4))));
    assertMalformed(SMALL, "got 15 bytes, wanted 16");
    answer("ComputeAttention", List.of(answerOf(tensor(77, 16, 1, 4))));
    assertMalformed(SMALL, "type 77");
    answer("ComputeAttention", List.of(answerOf(tensor(1, 16, Long.MAX_VALUE, 4))));
    assertMalformed(SMALL, "shape too large");
    answer("ComputeAttention", List.of(answerOf(tensor(1, 16, -1, -4))));
    assertMalformed(SMALL, "negative axis");
    answer("ComputeAttention", List.of());
    assertMalformed(SMALL, "");
    answer("ComputeAttention", List.of(answerOf(floats(4, 1))));
    assertMalformed(SMALL, "got Tensor FLOAT32 [4, 1], wanted FLOAT32 [1, 4]");
    answer("ComputeAttention", List.of(answerOf(floats(1, 4))));
    for (UnaryOperator<AttentionOptions.Builder> asked :
        List.<UnaryOperator<AttentionOptions.Builder>>of(
            o -> o.returnLogSumExp(true),
            o -> o.returnScores(Scores.WEIGHTS),
            o -> o.returnPresent(true))) {
      Tensor row = SMALL.query;
      assertMalformed(ComputeRequest.builder(row, row, row).options(asked).build(), "answer: no ");
    }
    assertEquals(4, client.compute(SMALL).output().size());
  }

  /** A request whose keys are sent as a stream. */
  private static ComputeRequest large() {
    Tensor keys = Tensor.of(new float[1 << 21], 1, 1, 1 << 15, 64);
    return ComputeRequest.builder(Pattern.fill(1, 1, 2, 3, 64), keys, keys)
        .options(o -> o.returnLogSumExp(true))
        .build();
  }

  private static byte[] rows(long rows) {
    return StreamAttentionResponse.newBuilder()
        .setOutput(floats(1, 2, rows, 64))
        .setLogSumExp(floats(1, 2, rows))
        .build()
        .toByteArray();
  }

  private static final byte[] LAST =
      StreamAttentionResponse.newBuilder()
          .setTiming(Timing.newBuilder().setComputeUs(7))
          .build()
          .toByteArray();

  @Test
  void streamsThatAreNone() {
    answer("StreamAttention", List.of(rows(1), rows(2)));
    assertMalformed(large(), "before its last message");
    answer("StreamAttention", List.of(rows(1), rows(1), LAST));
    assertMalformed(large(), "got 2 rows, wanted 3");
    answer("StreamAttention", List.of(LAST));
    assertMalformed(large(), "no rows");
    answer("StreamAttention", List.of(rows(3), rows(1), LAST));
    assertMalformed(large(), "got rows of Tensor FLOAT32 [1, 2, 1, 64] after 3 of 3");
    byte[] other =
        StreamAttentionResponse.newBuilder()
            .setOutput(floats(1, 3, 2, 64))
            .setLogSumExp(floats(1, 2, 2))
            .build()
            .toByteArray();
    answer("StreamAttention", List.of(rows(1), other, LAST));
    assertMalformed(large(), "after those of");
    byte[] flat =
        StreamAttentionResponse.newBuilder()
            .setOutput(floats(64))
            .setLogSumExp(floats(1, 2, 3))
            .build()
            .toByteArray();
    answer("StreamAttention", List.of(flat, LAST));
    assertMalformed(large(), "got rows of Tensor FLOAT32 [64] after 0 of 3");
    answer("StreamAttention", List.of(rows(1), rows(2), LAST));
    ComputeResult result = client.compute(large());
    assertArrayEquals(new long[] {1, 2, 3, 64}, result.output().shape());
    assertArrayEquals(new long[] {1, 2, 3}, result.logSumExp().orElseThrow().shape());
    assertEquals(Duration.of(7, java.time.temporal.ChronoUnit.MICROS), result.timing().compute());
  }

  @Test
  void streamsThatTheServerDoesNotTake() {
    AtomicInteger streams = new AtomicInteger();
    AtomicReference<Status.Code> code = new AtomicReference<>();
    AtomicReference<String> reason = new AtomicReference<>("");
    server.on(
        "StreamAttention",
        new FakeServer.Handler() {
          @Override
          public void started(FakeServer.Call call) {
            streams.incrementAndGet();
            call.fail(code.get(), reason.get());
          }

          @Override
          public void message(FakeServer.Call call, byte[] message) {}
        });
    byte[] whole =
        ComputeAttentionResponse.newBuilder()
            .setOutput(floats(1, 2, 3, 64))
            .setLogSumExp(floats(1, 2, 3))
            .build()
            .toByteArray();
    answer("ComputeAttention", List.of(whole));
    code.set(Status.Code.RESOURCE_EXHAUSTED);
    for (String taken : List.of("REQUEST_TOO_LARGE", "MEMORY_TOO_LARGE")) {
      reason.set(taken);
      assertEquals(384, client.compute(large()).output().size());
    }
    code.set(Status.Code.UNIMPLEMENTED);
    reason.set("INVALID_FIELD");
    assertEquals(
        Status.Code.UNIMPLEMENTED,
        assertThrows(AttentionException.class, () -> client.compute(large())).code());
    assertEquals(3, streams.get());
    reason.set("");
    client.compute(large());
    assertEquals(4, streams.get());
    // Known for a minute.
    client.compute(large());
    assertEquals(4, streams.get());
  }

  @Test
  void headersTellBytes() {
    AtomicReference<String> told = new AtomicReference<>();
    AtomicReference<String> most = new AtomicReference<>();
    AtomicReference<String> id = new AtomicReference<>();
    AtomicReference<String> agent = new AtomicReference<>();
    AtomicInteger bytes = new AtomicInteger();
    FakeServer.Handler handler =
        (call, message) -> {
          if (message != null && call.messages == 1) {
            told.set(call.header("attention-request-bytes"));
            most.set(call.header("attention-max-response-bytes"));
            id.set(call.header("x-request-id"));
            agent.set(call.header("user-agent"));
            bytes.set(message.length);
            call.fail(Status.Code.INTERNAL, "INTERNAL");
          }
        };
    server.on("ComputeAttention", handler).on("StreamAttention", handler);
    assertThrows(
        AttentionException.class,
        () -> client.compute(SMALL, CallOptions.DEFAULT.withRequestId("find-me")));
    assertEquals(Integer.toString(bytes.get()), told.get());
    assertEquals(null, most.get());
    assertEquals("find-me", id.get());
    assertTrue(agent.get().startsWith("attention-java"), agent.get());
    assertThrows(AttentionException.class, () -> client.compute(large()));
    assertEquals(Integer.toString(bytes.get()), told.get());
    assertTrue(bytes.get() < 3000);
    try (AttentionClient limited =
        AttentionClient.builder(server.address()).maxReceiveBytes(1234).build()) {
      assertThrows(AttentionException.class, () -> limited.compute(SMALL));
      assertEquals("1234", most.get());
      answer("ComputeAttention", List.of(answerOf(floats(400))));
      AttentionException error =
          assertThrows(AttentionException.class, () -> limited.compute(SMALL));
      assertEquals(Status.Code.RESOURCE_EXHAUSTED, error.code());
      assertEquals("CLIENT_LIMIT", error.reason());
      // In pieces it is as large.
      answer("StreamAttention", List.of(rows(1), rows(1), rows(1), LAST));
      error = assertThrows(AttentionException.class, () -> limited.compute(large()));
      assertEquals("CLIENT_LIMIT", error.reason());
      assertEquals(Status.Code.RESOURCE_EXHAUSTED, error.code());
    }
  }

  @Test
  void namesOfStreamsAreThoseOfRequests() {
    AttentionException named =
        StreamCall.namedAsInRequest(
            AttentionException.of(
                    Status.Code.INVALID_ARGUMENT,
                    "INVALID_FIELD",
                    "chunk.key.data: NaN at element 7")
                .with(
                    "chunk.mask.data: got 2 at element 17, wanted 0 or 1",
                    List.of(
                        new FieldViolation("chunk.mask.data", "got 2 at element 17, wanted 0 or 1"),
                        new FieldViolation("header.key.shape", "at element 3"))));
    assertEquals("mask.data: got 2, wanted 0 or 1", named.description());
    assertEquals(
        List.of(
            new FieldViolation("mask.data", "got 2, wanted 0 or 1"),
            new FieldViolation("key.shape", "at element 3")),
        named.fieldViolations());
    assertEquals("INVALID_FIELD", named.reason());
  }

  /** Counts calls that the client gave up. */
  private CountDownLatch hang(CountDownLatch begun) {
    CountDownLatch cancelled = new CountDownLatch(1);
    FakeServer.Handler handler =
        new FakeServer.Handler() {
          @Override
          public void started(FakeServer.Call call) {
            begun.countDown();
          }

          @Override
          public void message(FakeServer.Call call, byte[] message) {}

          @Override
          public void cancelled(FakeServer.Call call) {
            cancelled.countDown();
          }
        };
    server.on("ComputeAttention", handler).on("StreamAttention", handler);
    return cancelled;
  }

  private static void assertReached(CountDownLatch latch) throws InterruptedException {
    assertTrue(latch.await(20, TimeUnit.SECONDS));
  }

  @Test
  void cancelledFuturesCancelTheCall() throws Exception {
    for (ComputeRequest request : List.of(SMALL, large())) {
      CountDownLatch begun = new CountDownLatch(1);
      CountDownLatch cancelled = hang(begun);
      CompletableFuture<ComputeResult> call = client.computeAsync(request);
      assertReached(begun);
      assertTrue(call.cancel(true));
      assertReached(cancelled);
      assertThrows(CancellationException.class, call::join);
    }
  }

  @Test
  void cancelledDependentsCancelTheCall() throws Exception {
    CountDownLatch begun = new CountDownLatch(1);
    CountDownLatch cancelled = hang(begun);
    CompletableFuture<Tensor> call = client.computeAsync(SMALL).thenApply(ComputeResult::output);
    assertReached(begun);
    assertTrue(call.cancel(true));
    assertReached(cancelled);
  }

  @Test
  void timeoutsOfFuturesCancelTheCall() throws Exception {
    CountDownLatch begun = new CountDownLatch(1);
    CountDownLatch cancelled = hang(begun);
    CompletableFuture<ComputeResult> call = client.computeAsync(SMALL);
    assertReached(begun);
    call.orTimeout(100, TimeUnit.MILLISECONDS);
    CompletionException error = assertThrows(CompletionException.class, call::join);
    assertTrue(error.getCause() instanceof TimeoutException);
    assertReached(cancelled);
  }

  @Test
  void interruptedThreadsCancelTheCall() throws Exception {
    CountDownLatch begun = new CountDownLatch(1);
    CountDownLatch cancelled = hang(begun);
    AtomicReference<AttentionException> thrown = new AtomicReference<>();
    AtomicReference<Boolean> interrupted = new AtomicReference<>();
    Thread thread =
        new Thread(
            () -> {
              try {
                client.compute(SMALL);
              } catch (AttentionException e) {
                thrown.set(e);
                interrupted.set(Thread.currentThread().isInterrupted());
              }
            });
    thread.start();
    assertReached(begun);
    thread.interrupt();
    thread.join(20_000);
    assertReached(cancelled);
    assertEquals(Status.Code.CANCELLED, thrown.get().code());
    assertEquals(true, interrupted.get());
  }

  @Test
  void cancellingEndsThePauseBetweenTries() throws Exception {
    Metadata trailers = new Metadata();
    trailers.put(AttentionException.PUSHBACK, "30000");
    CountDownLatch begun = new CountDownLatch(1);
    server.on(
        "ComputeAttention",
        (call, message) -> {
          if (message == null) {
            begun.countDown();
            call.close(Status.RESOURCE_EXHAUSTED, trailers);
          }
        });
    CompletableFuture<ComputeResult> call = client.computeAsync(SMALL);
    assertReached(begun);
    assertThrows(TimeoutException.class, () -> call.get(300, TimeUnit.MILLISECONDS));
    call.cancel(true);
    assertThrows(CancellationException.class, call::join);
  }

  @Test
  void closingEndsThePauseOfAThreadThatWaits() throws Exception {
    Metadata trailers = new Metadata();
    trailers.put(AttentionException.PUSHBACK, "30000");
    CountDownLatch begun = new CountDownLatch(1);
    server.on(
        "ComputeAttention",
        (call, message) -> {
          if (message == null) {
            begun.countDown();
            call.close(Status.RESOURCE_EXHAUSTED, trailers);
          }
        });
    CompletableFuture<AttentionException> failed = new CompletableFuture<>();
    Thread thread =
        new Thread(
            () ->
                failed.complete(
                    assertThrows(AttentionException.class, () -> client.compute(SMALL))));
    thread.start();
    assertReached(begun);
    client.close();
    assertEquals(Status.Code.CANCELLED, failed.get(20, TimeUnit.SECONDS).code());
  }

  @Test
  void deadlinesOfAMillisecond() {
    hang(new CountDownLatch(1));
    for (ComputeRequest request : List.of(SMALL, large())) {
      for (int i = 0; i < 20; ++i) {
        CallOptions soon = CallOptions.timeout(Duration.ofMillis(1));
        AttentionException error =
            assertThrows(AttentionException.class, () -> client.compute(request, soon));
        assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code(), error.toString());
        CompletionException later =
            assertThrows(
                CompletionException.class, () -> client.computeAsync(request, soon).join());
        assertEquals(Status.Code.DEADLINE_EXCEEDED, ((AttentionException) later.getCause()).code());
      }
    }
    assertEquals(
        Status.Code.DEADLINE_EXCEEDED,
        assertThrows(
                AttentionException.class,
                () -> client.compute(SMALL, CallOptions.timeout(Duration.ZERO)))
            .code());
  }

  @Test
  void closingEndsCallsUnderWay() throws Exception {
    CountDownLatch begun = new CountDownLatch(2);
    hang(begun);
    CompletableFuture<ComputeResult> small = client.computeAsync(SMALL);
    CompletableFuture<ComputeResult> streamed = client.computeAsync(large());
    assertReached(begun);
    client.close();
    for (CompletableFuture<ComputeResult> call : List.of(small, streamed)) {
      CompletionException error = assertThrows(CompletionException.class, call::join);
      AttentionException cause = (AttentionException) error.getCause();
      assertEquals(Status.Code.CANCELLED, cause.code());
      assertEquals("the client was closed", cause.description());
    }
    assertThrows(IllegalStateException.class, () -> client.compute(SMALL));
    assertThrows(IllegalStateException.class, () -> client.computeAsync(SMALL));
    client.close();
  }

  @Test
  void nobodyListens() {
    server.close();
    long begin = System.nanoTime();
    AttentionException error =
        assertThrows(
            AttentionException.class,
            () -> client.compute(SMALL, CallOptions.DEFAULT.withMaxAttempts(1)));
    assertEquals(Status.Code.UNAVAILABLE, error.code());
    assertEquals("", error.reason());
    assertTrue(error.getMessage().contains("Connection refused: /127.0.0.1:"), error.getMessage());
    assertTrue(System.nanoTime() - begin < 10_000_000_000L);
  }

  /** Details that cannot be read leave the code. */
  @Test
  void detailsThatAreNone() {
    Metadata trailers = new Metadata();
    trailers.put(
        Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER),
        new byte[] {10, 100, 1});
    server.on(
        "ComputeAttention",
        (call, message) -> {
          if (message == null) {
            call.close(Status.ABORTED.withDescription("text"), trailers);
          }
        });
    AttentionException error = assertThrows(AttentionException.class, () -> client.compute(SMALL));
    assertEquals("ABORTED: text", error.getMessage());
    assertEquals("", error.reason());
    assertTrue(error.length().isEmpty());
    assertTrue(error.retryDelay().isEmpty());
    assertNotNull(error.fieldViolations());
  }
}
