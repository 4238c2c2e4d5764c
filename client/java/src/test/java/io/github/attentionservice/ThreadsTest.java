package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.parallel.Isolated;

/** What a client leaves behind: nothing. */
@Isolated("counts threads and files of the process")
@Timeout(120)
class ThreadsTest {
  private static final Tensor EYE = Tensor.of(new float[] {1, 0, 0, 1}, 2, 2);
  private static final Tensor TOKEN = Pattern.fill(1, 2, 1, 16);
  private static final Tensor QUERY = Pattern.fill(2, 4, 1, 16);

  private static Set<String> threads() {
    Set<String> names = new TreeSet<>();
    for (Thread thread : Thread.getAllStackTraces().keySet()) {
      if (thread.getName().startsWith("attention-client")
          || thread.getName().startsWith("grpc")
          || thread.getName().startsWith("globalEventExecutor")) {
        names.add(thread.getName());
      }
    }
    return names;
  }

  /** Those of before may have ended by themselves, as Netty's own thread does. */
  private static void assertNothingNew(Set<String> before) {
    Set<String> now = threads();
    now.removeAll(before);
    assertEquals(Set.of(), now);
  }

  @Test
  void threadsEndWithTheClient() {
    Set<String> before = threads();
    AttentionClient client = AttentionClient.connect(Servers.address());
    try (Session session = client.createSession(SessionConfig.builder(2, 16).build())) {
      session.step(TOKEN, TOKEN, QUERY);
      client.computeAsync(ComputeRequest.builder(EYE, EYE, EYE).build()).join();
      for (Thread thread : Thread.getAllStackTraces().keySet()) {
        if (thread.getName().startsWith("attention-client")) {
          assertTrue(thread.isDaemon(), thread.getName());
        }
      }
      assertTrue(threads().contains("attention-client-io"));
      assertTrue(threads().contains("attention-client-timer"));
    }
    client.close();
    assertNothingNew(before);
  }

  @Test
  void clientsThatComeAndGoLeaveNothing() {
    Set<String> before = threads();
    for (int i = 0; i < 50; ++i) {
      try (AttentionClient client = AttentionClient.connect(Servers.address())) {
        client.compute(EYE, EYE, EYE);
      }
    }
    assertNothingNew(before);
    int files = new java.io.File("/proc/self/fd").list().length;
    for (int i = 0; i < 20; ++i) {
      AttentionClient.connect(Servers.address()).close();
      assertThrows(
          IllegalArgumentException.class,
          () -> AttentionClient.builder("192.0.2.1:1").token("secret").build());
    }
    int now = new java.io.File("/proc/self/fd").list().length;
    assertTrue(now <= files + 3, files + " files before, " + now + " after");
  }
}
