package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletionException;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.parallel.Execution;
import org.junit.jupiter.api.parallel.ExecutionMode;

/** tests/vectors/retries.json against the misbehaving server, blocking and not. */
@Execution(ExecutionMode.CONCURRENT)
class RetryVectorsTest {
  private static final Duration DEFAULT = Duration.ofSeconds(10);

  @TestFactory
  Stream<DynamicTest> blocking() {
    Servers.misbehaving();
    return Servers.cases("retries.json").stream()
        .map(one -> DynamicTest.dynamicTest(name(one), () -> check(one, false)));
  }

  @TestFactory
  Stream<DynamicTest> async() {
    Servers.misbehaving();
    return Servers.cases("retries.json").stream()
        .filter(one -> List.of("compute", "append", "step").contains(one.get("call").getAsString()))
        .map(one -> DynamicTest.dynamicTest(name(one), () -> check(one, true)));
  }

  private static String name(JsonObject one) {
    return one.get("name").getAsString();
  }

  private static void check(JsonObject one, boolean async) throws Exception {
    String token = name(one) + "." + RandomIds.next();
    Duration timeout =
        one.has("timeout_ms") ? Duration.ofMillis(one.get("timeout_ms").getAsLong()) : DEFAULT;
    AttentionException error = null;
    long millis;
    try (AttentionClient client =
        AttentionClient.builder(Servers.misbehaving()).token(token).build()) {
      String call = one.get("call").getAsString();
      Session session =
          List.of("compute", "capabilities", "health", "create").contains(call)
              ? null
              : client.createSession(SessionConfig.builder(2, 16).build());
      if (one.has("most_ms")) {
        // What is timed is no first connection, in a Java that has just begun.
        client.health();
      }
      long begin = System.nanoTime();
      try {
        if (call.equals("batch")) {
          batch(one, client, session, CallOptions.timeout(timeout));
        } else {
          call(client, session, call, CallOptions.timeout(timeout), async);
        }
      } catch (AttentionException e) {
        error = e;
      } catch (CompletionException e) {
        error = (AttentionException) e.getCause();
      }
      millis = (System.nanoTime() - begin) / 1_000_000;
      if (one.has("length_then")) {
        assertEquals(one.get("length_then").getAsLong(), session.length());
      }
    }
    checkResult(one, error);
    if (one.has("most_ms")) {
      assertTrue(millis <= one.get("most_ms").getAsLong(), millis + " ms");
    }
    checkAttempts(one, Servers.attempts(token));
  }

  private static void call(
      AttentionClient client, Session session, String call, CallOptions options, boolean async) {
    Tensor row = Pattern.fill(1, 1, 4);
    Tensor token = Pattern.fill(1, 2, 1, 16);
    Tensor query = Pattern.fill(2, 4, 1, 16);
    ComputeRequest request = ComputeRequest.builder(row, row, row).build();
    if (async) {
      switch (call) {
        case "compute" -> client.computeAsync(request, options).join();
        case "append" -> session.appendAsync(0, token, token, options).join();
        case "step" ->
            session.stepAsync(0, token, token, query, AttendOptions.DEFAULT, options).join();
        default -> fail(call);
      }
      return;
    }
    switch (call) {
      case "compute" -> client.compute(request, options);
      case "capabilities" -> client.capabilities(options);
      case "health" -> client.health("", options);
      case "create" -> client.createSession(SessionConfig.builder(2, 16).build(), "", options);
      case "fork" -> session.fork("", options);
      case "truncate" -> session.truncate(0, options);
      case "delete" -> session.delete(options);
      case "append" -> session.append(0, token, token, options);
      case "step" -> session.step(0, token, token, query, AttendOptions.DEFAULT, options);
      case "step_again" -> {
        session.step(token, token, query);
        session.step(0, token, token, query, AttendOptions.DEFAULT, options);
      }
      default -> fail(call);
    }
  }

  private static void batch(
      JsonObject one, AttentionClient client, Session session, CallOptions options) {
    Tensor token = Pattern.fill(1, 2, 1, 16);
    Tensor query = Pattern.fill(2, 4, 1, 16);
    Session other = client.createSession(SessionConfig.builder(2, 16).build());
    List<StepOutcome> outcomes =
        client.step(
            List.of(
                StepItem.step(session, 0, token, token, query),
                StepItem.step(other, 0, token, token, query)),
            options);
    AttentionException second = outcomes.get(1).error().orElseThrow();
    assertEquals(one.get("second").getAsString(), second.code().name());
    outcomes.get(0).get();
  }

  private static void checkResult(JsonObject one, AttentionException error) {
    String wanted = one.get("result").getAsString();
    if (error == null) {
      assertEquals("OK", wanted);
      return;
    }
    if (!error.code().name().equals(wanted)) {
      fail("wanted " + wanted, error);
    }
    if (one.has("reason")) {
      assertEquals(one.get("reason").getAsString(), error.reason());
    }
    if (one.has("length")) {
      assertEquals(one.get("length").getAsLong(), error.length().orElse(-1));
    }
  }

  private static void checkAttempts(JsonObject one, JsonArray calls) {
    List<JsonObject> attempts = new ArrayList<>();
    for (int i = 0; i < calls.size(); ++i) {
      JsonObject call = calls.get(i).getAsJsonObject();
      if (call.get("method").getAsString().equals(one.get("method").getAsString())) {
        attempts.add(call);
      }
    }
    assertEquals(one.get("attempts").getAsInt(), attempts.size(), calls.toString());
    if (one.has("least_gaps_ms")) {
      JsonArray gaps = one.getAsJsonArray("least_gaps_ms");
      for (int i = 0; i < gaps.size(); ++i) {
        double gap =
            attempts.get(i + 1).get("ms").getAsDouble() - attempts.get(i).get("ms").getAsDouble();
        double least = gaps.get(i).getAsDouble();
        assertTrue(gap >= least, "gap " + i + ": " + gap + " ms, wanted " + least);
      }
    }
    if (one.has("same_request_id") && one.get("same_request_id").getAsBoolean()) {
      String first = attempts.get(0).get("request_id").getAsString();
      assertTrue(!first.isEmpty());
      attempts.forEach(call -> assertEquals(first, call.get("request_id").getAsString()));
    }
  }
}
