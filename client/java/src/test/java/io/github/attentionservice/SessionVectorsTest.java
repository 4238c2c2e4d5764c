package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** tests/vectors/sessions.json, with each session's own methods and as batches of one. */
class SessionVectorsTest {
  @TestFactory
  Stream<DynamicTest> scripts() {
    AttentionClient client = AttentionClient.connect(Servers.address());
    return Servers.cases("sessions.json").stream()
        .flatMap(
            one ->
                Stream.of(false, true)
                    .map(
                        batches ->
                            DynamicTest.dynamicTest(
                                one.get("name").getAsString() + (batches ? " in batches" : ""),
                                () -> new Script(client, batches).play(one))))
        .onClose(client::close);
  }

  private record Script(AttentionClient client, boolean batches, Map<String, Session> sessions) {
    Script(AttentionClient client, boolean batches) {
      this(client, batches, new HashMap<>());
    }

    void play(JsonObject script) {
      SessionConfig config = Json.config(script.getAsJsonObject("config"));
      sessions.put("a", client.createSession(config, RandomIds.next(), CallOptions.DEFAULT));
      try {
        JsonArray steps = script.getAsJsonArray("steps");
        for (int i = 0; i < steps.size(); ++i) {
          step(steps.get(i).getAsJsonObject(), "step " + i);
        }
      } finally {
        sessions.values().forEach(Session::delete);
      }
    }

    private void step(JsonObject step, String where) {
      if (step.get("do").getAsString().equals("batch")) {
        batch(step.getAsJsonArray("items"), where);
        return;
      }
      AttentionException error = null;
      try {
        call(step, where);
      } catch (AttentionException e) {
        error = e;
      }
      checkError(step, error, where);
    }

    private static void checkError(JsonObject step, AttentionException error, String where) {
      if (!step.has("error")) {
        if (error != null) {
          fail(where, error);
        }
        return;
      }
      assertTrue(error != null, where + ": no error");
      JsonObject wanted = step.getAsJsonObject("error");
      assertEquals(wanted.get("code").getAsString(), error.code().name(), where);
      assertEquals(wanted.get("reason").getAsString(), error.reason(), where);
      if (wanted.has("field")) {
        assertEquals(
            wanted.get("field").getAsString(), error.fieldViolations().get(0).field(), where);
      }
      if (wanted.has("length")) {
        assertEquals(wanted.get("length").getAsLong(), error.length().orElse(-1), where);
      }
    }

    private void batch(JsonArray items, String where) {
      List<StepItem> sent = new ArrayList<>();
      items.forEach(item -> sent.add(item(item.getAsJsonObject())));
      List<StepOutcome> outcomes = client.step(sent);
      assertEquals(items.size(), outcomes.size());
      for (int i = 0; i < outcomes.size(); ++i) {
        JsonObject item = items.get(i).getAsJsonObject();
        StepOutcome outcome = outcomes.get(i);
        checkError(item, outcome.error().orElse(null), where + ", item " + i);
        if (outcome.error().isEmpty()) {
          check(item, outcome.get(), where + ", item " + i);
        }
      }
    }

    private static void check(JsonObject step, AttendResult result, String where) {
      if (step.has("output_sha256")) {
        assertEquals(
            step.get("output_sha256").getAsString(), Pattern.digest(result.output()), where);
      }
      if (step.has("length_then")) {
        assertEquals(step.get("length_then").getAsLong(), result.length(), where);
      }
    }

    private void call(JsonObject step, String where) {
      Session session = sessions.get(step.get("session").getAsString());
      String kind = step.get("do").getAsString();
      String target = step.has("target") ? step.get("target").getAsString() : null;
      switch (kind) {
        case "append", "attend", "step" -> {
          StepItem item = item(step);
          if (batches) {
            check(step, client.step(List.of(item)).get(0).get(), where);
          } else if (kind.equals("append")) {
            long length = session.append(item.layer, item.key, item.value);
            assertEquals(step.get("length_then").getAsLong(), length, where);
            assertEquals(length, session.length(item.layer), where);
          } else if (kind.equals("attend")) {
            check(
                step,
                session.attend(item.layer, item.query, item.options, CallOptions.DEFAULT),
                where);
          } else {
            check(
                step,
                session.step(
                    item.layer,
                    item.key,
                    item.value,
                    item.query,
                    item.options,
                    CallOptions.DEFAULT),
                where);
          }
        }
        case "fork" -> sessions.put(target, session.fork());
        case "open" -> sessions.put(target, client.openSession(session.id()));
        case "truncate" -> session.truncate(step.get("length").getAsLong());
        case "refresh" -> session.refresh();
        case "delete" -> session.delete();
        default -> fail("step " + kind);
      }
      if (step.has("lengths_then")) {
        Session asked = target == null ? session : sessions.get(target);
        assertArrayEquals(Json.longs(step, "lengths_then"), asked.lengths(), where);
      }
    }

    private StepItem item(JsonObject step) {
      Session session = sessions.get(step.get("session").getAsString());
      int layer = step.get("layer").getAsInt();
      Tensor key = tensor(step, "key");
      Tensor value = tensor(step, "value");
      Tensor query = tensor(step, "query");
      AttendOptions options = AttendOptions.DEFAULT.withOptions(Json.options(step));
      if (step.has("any_length")) {
        options = options.withAnyLength();
      }
      if (step.has("not_causal") && step.get("not_causal").getAsBoolean()) {
        options = options.withoutCausal();
      }
      if (step.has("mask")) {
        options = options.withMask(tensor(step, "mask"));
      }
      StepItem item =
          query == null
              ? StepItem.append(session, layer, key, value)
              : key == null
                  ? StepItem.attend(session, layer, query)
                  : StepItem.step(session, layer, key, value, query);
      return item.with(options);
    }

    private static Tensor tensor(JsonObject step, String name) {
      return step.has(name) ? Pattern.fill(step.getAsJsonObject(name)) : null;
    }
  }

  /** The vectors are there. */
  @ParameterizedTest
  @ValueSource(strings = {"decode", "two_objects", "large_append"})
  void vectorsHold(String name) {
    assertTrue(
        Servers.cases("sessions.json").stream()
            .anyMatch(one -> one.get("name").getAsString().equals(name)));
  }
}
