package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** The server as it is, in good days and bad ones. */
@Timeout(120)
class RealServerTest {
  private static final Tensor EYE = Tensor.of(new float[] {1, 0, 0, 1}, 2, 2);
  private static final Tensor TOKEN = Pattern.fill(1, 2, 1, 16);
  private static final Tensor QUERY = Pattern.fill(2, 4, 1, 16);

  /** The same answer, bit for bit, as a stream and as one message, in each layout. */
  @ParameterizedTest
  @EnumSource(
      value = Layout.class,
      names = {"MATRIX", "PACKED", "BHSD", "BSHD"})
  void streamsHaveTheBitsOfOneMessage(Layout layout) {
    int batch = layout == Layout.MATRIX ? 1 : 2;
    int heads = layout == Layout.MATRIX ? 1 : 2;
    long[] keys = shape(layout, batch, heads, 9000, 32);
    long[] rows = shape(layout, batch, heads, 300, 32);
    ComputeRequest request =
        ComputeRequest.builder(Pattern.fill(1, rows), Pattern.fill(2, keys), Pattern.fill(3, keys))
            .past(Pattern.fill(4, batch, heads, 700, 32), Pattern.fill(5, batch, heads, 700, 32))
            .mask(Pattern.fill(DataType.BOOL, 6, 300, 9000))
            .options(
                o ->
                    o.layout(layout)
                        .queryHeads(heads)
                        .kvHeads(heads)
                        .causal(Causal.BOTTOM_RIGHT)
                        .returnLogSumExp(true))
            .build();
    ComputeResult inOne;
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      inOne = client.compute(request);
    }
    ClientThreads threads = new ClientThreads(null);
    Connection connection =
        new Connection(Servers.address(), AttentionClient.builder(Servers.address()), threads);
    CallerExecutor executor = new CallerExecutor();
    CallContext context =
        new CallContext(Duration.ofSeconds(60), 1, null, executor, threads.timer());
    ComputeResult streamed =
        executor.await(StreamCall.start(connection, KeyChunks.of(request), context), context);
    assertArrayEquals(inOne.output().shape(), streamed.output().shape());
    assertArrayEquals(inOne.output().toBytes(), streamed.output().toBytes());
    assertArrayEquals(
        inOne.logSumExp().orElseThrow().toBytes(), streamed.logSumExp().orElseThrow().toBytes());
    try {
      connection.close(1_000_000_000);
      threads.close(1_000_000_000);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private static long[] shape(Layout layout, long batch, long heads, long tokens, long size) {
    return switch (layout) {
      case MATRIX -> new long[] {tokens, size};
      case PACKED -> new long[] {batch, tokens, heads * size};
      case BHSD -> new long[] {batch, heads, tokens, size};
      default -> new long[] {batch, tokens, heads, size};
    };
  }

  /** An element that is wrong in the third chunk is named as in one message. */
  @Test
  void errorsOfStreamsNameTheRequestsFields() {
    Tensor keys = Tensor.of(new float[1 << 21], 1, 1, 1 << 15, 64);
    byte[] mask = new byte[1 << 15];
    mask[30_000] = 2;
    ComputeRequest request =
        ComputeRequest.builder(Pattern.fill(1, 1, 1, 1, 64), keys, keys)
            .mask(Tensor.ofBytes(DataType.BOOL, ByteBuffer.wrap(mask), 1 << 15))
            .build();
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      AttentionException error =
          assertThrows(AttentionException.class, () -> client.compute(request));
      assertEquals("mask.data", error.fieldViolations().get(0).field());
      assertFalse(error.getMessage().contains("chunk."), error.getMessage());
      ComputeRequest wrong =
          ComputeRequest.builder(Pattern.fill(1, 1, 1, 1, 32), keys, keys).build();
      error = assertThrows(AttentionException.class, () -> client.compute(wrong));
      assertEquals("key.shape", error.fieldViolations().get(0).field());
      assertTrue(error.getMessage().startsWith("INVALID_ARGUMENT: key.shape"), error.getMessage());
    }
  }

  @Test
  void capabilitiesHealthAndLists() {
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      Capabilities capabilities = client.capabilities();
      assertTrue(capabilities.maxRequestBytes() > 1 << 20);
      assertTrue(capabilities.dataTypes().contains(DataType.BFLOAT16));
      assertTrue(capabilities.mathModes().contains(MathMode.REPRODUCIBLE));
      assertEquals(Health.SERVING, client.health());
      assertEquals(
          Health.SERVING, client.health("attention.v1.AttentionService", CallOptions.DEFAULT));
      assertEquals(
          Status.Code.NOT_FOUND,
          assertThrows(AttentionException.class, () -> client.health("none", CallOptions.DEFAULT))
              .code());
      String id = "java-" + RandomIds.next();
      try (Session session =
          client.createSession(
              SessionConfig.builder(2, 16)
                  .layers(3)
                  .dataType(DataType.BFLOAT16)
                  .lease(Duration.ofSeconds(30))
                  .build(),
              id,
              CallOptions.DEFAULT)) {
        assertEquals(3, session.config().layers());
        assertEquals(16, session.config().valueHeadSize());
        assertEquals(Duration.ofSeconds(30), session.config().lease());
        assertEquals(DataType.BFLOAT16, session.config().dataType());
        assertTrue(client.listSessions().stream().anyMatch(info -> info.id().equals(id)));
        SessionInfo info = client.getSession(id, CallOptions.DEFAULT);
        assertEquals(List.of(0L, 0L, 0L), info.lengths());
        assertEquals(session.incarnation(), info.incarnation());
        assertEquals(id, client.createSession(session.config(), id, CallOptions.DEFAULT).id());
        assertEquals(
            "SESSION_EXISTS",
            assertThrows(
                    AttentionException.class,
                    () ->
                        client.createSession(
                            SessionConfig.builder(1, 2).build(), id, CallOptions.DEFAULT))
                .reason());
        assertEquals(3, session.forkMany(3).stream().peek(Session::delete).count());
      }
      assertFalse(client.listSessions().stream().anyMatch(info -> info.id().equals(id)));
      client.deleteSession(id, CallOptions.DEFAULT);
      assertEquals(
          "SESSION_UNKNOWN",
          assertThrows(AttentionException.class, () -> client.openSession(id)).reason());
    }
  }

  @Test
  void valuesThatAreAPrefixOfKeys() {
    try (AttentionClient client = AttentionClient.connect(Servers.address());
        Session session =
            client.createSession(
                SessionConfig.builder(1, 16).valueHeadSize(8).valueIsKeyPrefix(true).build())) {
      Tensor key = Pattern.fill(1, 1, 3, 16);
      assertEquals(3, session.append(key, null));
      Tensor query = Pattern.fill(2, 2, 1, 16);
      AttendResult result =
          session.attend(
              0,
              query,
              AttendOptions.of(o -> o.returnLogSumExp(true).returnScores(Scores.WEIGHTS))
                  .withMask(Tensor.of(new boolean[] {true, false, true}, 3))
                  .withoutCausal(),
              CallOptions.DEFAULT);
      assertArrayEquals(new long[] {2, 1, 8}, result.output().shape());
      assertEquals(0, result.scores().orElseThrow().toFloats()[1]);
      assertArrayEquals(new long[] {2, 1}, result.logSumExp().orElseThrow().shape());
      session.step(key, null, query);
      assertEquals(6, session.length());
    }
  }

  /** The bits of a mask that says the same, as a stream, too. */
  @Test
  void indicesNameTheKeysThatAreSeen() {
    int keys = 9000;
    Tensor query = Pattern.fill(1, 1, 4, 2, 64);
    Tensor key = Pattern.fill(2, 1, 4, keys, 64);
    Tensor indices = Tensor.of(new int[] {0, keys - 1, 0, 17, -1, -1}, 1, 2, 3);
    boolean[] seen = new boolean[2 * keys];
    BitSet bits = new BitSet();
    for (int one : new int[] {0, keys - 1, keys + 17}) {
      seen[one] = true;
      bits.set(one);
    }
    // Of heads that have the same sink for each of their rows.
    Tensor rowSinks = Tensor.of(new float[] {0, 0, 1, 1, -1, -1, 2, 2}, 1, 4, 2);
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      ComputeRequest masked =
          ComputeRequest.builder(query, key, key)
              .mask(Tensor.of(seen, 2, keys))
              .options(o -> o.sinks(0, 1, -1, 2))
              .build();
      ComputeRequest listed =
          ComputeRequest.builder(query, key, key).indices(indices).rowSinks(rowSinks).build();
      assertTrue(listed.keyValueBytes() > 4 << 20);
      assertNotNull(KeyChunks.of(listed));
      String wanted = Pattern.digest(client.compute(masked).output());
      assertEquals(wanted, Pattern.digest(client.compute(listed).output()));
      ComputeRequest whole =
          ComputeRequest.builder(query, key, key)
              .indices(indices)
              .rowSinks(rowSinks)
              .options(o -> o.returnScores(Scores.RAW))
              .build();
      assertEquals(wanted, Pattern.digest(client.compute(whole).output()));
      // A mask of bits goes as one message.
      ComputeRequest packed =
          ComputeRequest.builder(query, key, key)
              .mask(Tensor.ofBits(Arrays.copyOf(bits.toByteArray(), 2 * keys / 8), 2, keys))
              .options(o -> o.sinks(0, 1, -1, 2))
              .build();
      assertEquals(wanted, Pattern.digest(client.compute(packed).output()));
    }
  }

  @Test
  void indicesAndSinksOfSessions() {
    try (AttentionClient client = AttentionClient.connect(Servers.address());
        Session session = client.createSession(SessionConfig.builder(2, 16).build())) {
      session.append(Pattern.fill(1, 2, 7, 16), Pattern.fill(2, 2, 7, 16));
      Tensor query = Pattern.fill(3, 4, 2, 16);
      AttendOptions every = AttendOptions.DEFAULT.withoutCausal();
      AttendOptions listed = every.withIndices(Tensor.of(new int[] {6, 0, 6, 3, -1, -1}, 2, 3));
      boolean[] seen = new boolean[14];
      seen[0] = seen[6] = seen[7 + 3] = true;
      AttendOptions masked = every.withMask(Tensor.of(seen, 2, 7));
      AttendOptions packed = every.withMask(Tensor.ofBits(new byte[] {0b1000001, 0b100}, 2, 7));
      String withoutSinks = attended(session, query, masked);
      assertEquals(withoutSinks, attended(session, query, listed));
      assertEquals(withoutSinks, attended(session, query, packed));
      assertNotEquals(withoutSinks, attended(session, query, every));

      Tensor rowSinks = Pattern.fill(4, 4, 2);
      String withSinks = attended(session, query, masked.withRowSinks(rowSinks));
      assertEquals(withSinks, attended(session, query, listed.withRowSinks(rowSinks)));
      assertNotEquals(withoutSinks, withSinks);

      // In a step the new token is one of those counted. A list for each head.
      Tensor heads = Tensor.of(new long[] {7, 0, 7, 1, 7, 2, -1, 3}, 4, 1, 2);
      AttendResult step =
          session.step(
              0,
              TOKEN,
              TOKEN,
              QUERY,
              AttendOptions.DEFAULT
                  .withIndices(heads)
                  .withRowSinks(Tensor.of(new float[] {0, 1, 2, 3}, 4, 1)),
              CallOptions.DEFAULT);
      boolean[] same = new boolean[4 * 8];
      for (int head = 0; head < 4; ++head) {
        same[8 * head + head] = true;
        same[8 * head + 7] = head < 3;
      }
      AttendOptions sinks =
          AttendOptions.of(o -> o.sinks(0, 1, 2, 3)).withMask(Tensor.of(same, 4, 1, 8));
      assertEquals(attended(session, QUERY, sinks), Pattern.digest(step.output()));

      AttendOptions wrong = AttendOptions.DEFAULT.withIndices(Tensor.of(new int[] {8}, 1, 1));
      AttentionException error =
          assertThrows(AttentionException.class, () -> attended(session, QUERY, wrong));
      String field = error.fieldViolations().get(0).field();
      assertTrue(field.startsWith("indices"), field);
      AttendOptions both = sinks.withRowSinks(Tensor.of(new float[4], 4, 1));
      error = assertThrows(AttentionException.class, () -> attended(session, QUERY, both));
      assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    }
  }

  private static String attended(Session session, Tensor query, AttendOptions options) {
    return Pattern.digest(session.attend(0, query, options, CallOptions.DEFAULT).output());
  }

  /** Direct buffers, of any byte order, are sent as arrays are. */
  @Test
  void directBuffers() {
    FloatBuffer direct =
        ByteBuffer.allocateDirect(1 << 20).order(ByteOrder.BIG_ENDIAN).asFloatBuffer();
    direct.put(Pattern.floats(1 << 18, 5)).flip();
    Tensor there = Tensor.of(direct, 1, 4, 1024, 64);
    Tensor here = Pattern.fill(5, 1, 4, 1024, 64);
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      assertArrayEquals(
          client.compute(here, here, here).output().toFloats(),
          client.compute(there, there, there).output().toFloats());
    }
  }

  @Test
  void thousandsOfCallsAtOnce() {
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      List<CompletableFuture<Float>> calls = new ArrayList<>();
      for (int i = 0; i < 3000; ++i) {
        float number = i;
        Tensor value = Tensor.of(new float[] {number, 0, number, 0}, 2, 2);
        calls.add(
            client
                .computeAsync(ComputeRequest.builder(EYE, EYE, value).build())
                .thenApply(result -> result.output().floatBuffer().get(0)));
      }
      for (int i = 0; i < calls.size(); ++i) {
        assertEquals(i, calls.get(i).join(), 1e-3f);
      }
    }
  }

  @Test
  void continuationsMayWait() {
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      ComputeRequest request = ComputeRequest.builder(EYE, EYE, EYE).build();
      List<CompletableFuture<Float>> calls = new ArrayList<>();
      for (int i = 0; i < 50; ++i) {
        calls.add(
            client
                .computeAsync(request)
                .thenApply(
                    first -> {
                      client.compute(request);
                      return client.computeAsync(request).join().output().toFloats()[0];
                    }));
      }
      calls.forEach(call -> assertEquals(0.66976154f, call.join()));
    }
  }

  @Test
  void manyThreadsStepAtOnce() throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(8);
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      List<Future<byte[]>> outputs = new ArrayList<>();
      for (int i = 0; i < 8; ++i) {
        outputs.add(
            threads.submit(
                () -> {
                  try (Session session =
                      client.createSession(SessionConfig.builder(2, 16).build())) {
                    byte[] last = null;
                    for (int step = 0; step < 100; ++step) {
                      last = session.step(TOKEN, TOKEN, QUERY).output().toBytes();
                    }
                    assertEquals(100, session.length());
                    return last;
                  }
                }));
      }
      byte[] first = outputs.get(0).get();
      for (Future<byte[]> output : outputs) {
        assertArrayEquals(first, output.get());
      }
    } finally {
      threads.shutdown();
    }
  }

  /** The server is killed while calls are under way, and comes back at the same address. */
  @Test
  void serversThatAreKilledAndComeBack() throws Exception {
    Servers.Started server = Servers.start();
    String address = server.address;
    try (AttentionClient client = AttentionClient.connect(address)) {
      client.compute(EYE, EYE, EYE);
      Session session = client.createSession(SessionConfig.builder(2, 16).build());
      session.step(TOKEN, TOKEN, QUERY);
      server.kill();
      AttentionException error =
          assertThrows(
              AttentionException.class,
              () ->
                  client.compute(
                      ComputeRequest.builder(EYE, EYE, EYE).build(),
                      CallOptions.DEFAULT.withMaxAttempts(2)));
      assertEquals(Status.Code.UNAVAILABLE, error.code(), error + " by " + error.getCause());
      CompletableFuture<ComputeResult> waiting =
          client.computeAsync(ComputeRequest.builder(EYE, EYE, EYE).build());
      try (Servers.Started again = Servers.start("--listen=" + address)) {
        assertEquals(address, again.address);
        assertEquals(4, waiting.join().output().size());
        // It is another server, which knows no session.
        error = assertThrows(AttentionException.class, () -> session.step(TOKEN, TOKEN, QUERY));
        assertEquals("SESSION_UNKNOWN", error.reason());
      }
    } finally {
      server.close();
    }
  }

  /** A server that drains ends the step stream between messages; another one takes over. */
  @Test
  void drainingServers() throws Exception {
    try (Servers.Started server = Servers.start("--default-deadline=1s")) {
      try (AttentionClient client = AttentionClient.connect(server.address)) {
        Session session = client.createSession(SessionConfig.builder(2, 16).build());
        session.step(TOKEN, TOKEN, QUERY);
        // The server ends a stream on which nothing comes (IDLE_TOO_LONG).
        Thread.sleep(1500);
        session.step(TOKEN, TOKEN, QUERY);
        assertEquals(2, session.length());
        server.terminate();
        AttentionException error =
            assertThrows(
                AttentionException.class,
                () -> {
                  for (int i = 0; i < 1000; ++i) {
                    session.step(TOKEN, TOKEN, QUERY);
                  }
                });
        assertEquals(Status.Code.UNAVAILABLE, error.code());
      }
    }
  }

  @Test
  void leasesLastAtARealServer() throws Exception {
    try (AttentionClient client = AttentionClient.connect(Servers.address());
        AttentionClient other = AttentionClient.connect(Servers.address())) {
      SessionConfig config = SessionConfig.builder(2, 16).lease(Duration.ofSeconds(1)).build();
      Session kept = client.createSession(config);
      Session left = other.createSession(config);
      left.release();
      Thread.sleep(2500);
      kept.step(TOKEN, TOKEN, QUERY);
      assertEquals(
          "SESSION_UNKNOWN",
          assertThrows(AttentionException.class, () -> left.attend(QUERY)).reason());
      kept.delete();
    }
  }

  /** Garbage is collected while tensors are sent from direct memory that nothing else refers to. */
  @Test
  void garbageCollectionWhileSending() {
    try (AttentionClient client = AttentionClient.connect(Servers.address())) {
      byte[] wanted = null;
      for (int i = 0; i < 20; ++i) {
        FloatBuffer keys =
            ByteBuffer.allocateDirect(8 << 20).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
        keys.put(Pattern.floats(2 << 20, 3)).flip();
        CompletableFuture<ComputeResult> call =
            client.computeAsync(
                ComputeRequest.builder(
                        Pattern.fill(1, 1, 8, 1, 64),
                        Tensor.of(keys, 1, 8, 4096, 64),
                        Tensor.of(keys, 1, 8, 4096, 64))
                    .build());
        keys = null;
        System.gc();
        byte[] output = call.join().output().toBytes();
        wanted = wanted == null ? output : wanted;
        assertArrayEquals(wanted, output);
      }
    }
  }
}
