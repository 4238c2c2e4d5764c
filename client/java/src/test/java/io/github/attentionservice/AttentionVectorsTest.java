package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Base64;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** tests/vectors/attention.json and digests.json. */
class AttentionVectorsTest {
  @TestFactory
  Stream<DynamicTest> numbers() {
    AttentionClient client = AttentionClient.connect(Servers.address());
    return Servers.cases("attention.json").stream()
        .map(
            one ->
                DynamicTest.dynamicTest(
                    one.get("name").getAsString(), () -> checkNumbers(client, one)))
        .onClose(client::close);
  }

  @TestFactory
  Stream<DynamicTest> digests() {
    AttentionClient client = AttentionClient.connect(Servers.address());
    return Servers.cases("digests.json").stream()
        .map(
            one ->
                DynamicTest.dynamicTest(
                    one.get("name").getAsString(), () -> checkDigest(client, one)))
        .onClose(client::close);
  }

  private static void checkDigest(AttentionClient client, JsonObject one) {
    JsonObject request = one.getAsJsonObject("request");
    ComputeRequest asked = request(request, Pattern::fill);
    if (one.has("error")) {
      JsonObject wanted = one.getAsJsonObject("error");
      AttentionException error =
          assertThrows(AttentionException.class, () -> client.compute(asked));
      assertEquals(wanted.get("code").getAsString(), error.code().name());
      assertEquals(wanted.get("reason").getAsString(), error.reason());
      assertEquals(wanted.get("field").getAsString(), error.fieldViolations().get(0).field());
      return;
    }
    assertEquals(
        one.get("output_sha256").getAsString(), Pattern.digest(client.compute(asked).output()));
  }

  private interface Reader {
    Tensor read(JsonObject tensor);
  }

  private static ComputeRequest request(JsonObject request, Reader reader) {
    ComputeRequest.Builder builder =
        ComputeRequest.builder(
            read(request, "query", reader),
            read(request, "key", reader),
            read(request, "value", reader));
    builder.mask(read(request, "mask", reader));
    builder.past(read(request, "past_key", reader), read(request, "past_value", reader));
    builder.indices(read(request, "indices", reader));
    builder.rowSinks(read(request, "sinks", reader));
    builder.validLengths(Json.longs(request, "valid_lengths"));
    builder.queryStarts(Json.longs(request, "query_starts"));
    builder.keyStarts(Json.longs(request, "key_starts"));
    for (String name : request.keySet()) {
      assertTrue(
          List.of(
                  "query",
                  "key",
                  "value",
                  "mask",
                  "past_key",
                  "past_value",
                  "indices",
                  "sinks",
                  "valid_lengths",
                  "query_starts",
                  "key_starts",
                  "options")
              .contains(name),
          name);
    }
    return builder.options(Json.options(request)).build();
  }

  private static Tensor read(JsonObject request, String name, Reader reader) {
    return request.has(name) ? reader.read(request.getAsJsonObject(name)) : null;
  }

  /** Numbers, or bytes in base64. */
  private static Tensor tensor(JsonObject tensor) {
    long[] shape = Json.longs(tensor, "shape");
    if (tensor.has("float_values")) {
      double[] numbers = Json.doubles(tensor, "float_values");
      float[] floats = new float[numbers.length];
      for (int i = 0; i < floats.length; ++i) {
        floats[i] = (float) numbers[i];
      }
      return Tensor.of(floats, shape);
    }
    DataType type =
        tensor.has("data_type")
            ? DataType.valueOf(
                tensor.get("data_type").getAsString().substring("DATA_TYPE_".length()))
            : DataType.FLOAT32;
    byte[] bytes =
        tensor.has("data")
            ? Base64.getDecoder().decode(tensor.get("data").getAsString())
            : new byte[0];
    return Tensor.ofBytes(type, ByteBuffer.wrap(bytes), shape);
  }

  private static boolean canBeMade(JsonObject request) {
    try {
      request(request, AttentionVectorsTest::tensor);
      return true;
    } catch (IllegalArgumentException | NullPointerException e) {
      return false;
    }
  }

  private static void checkNumbers(AttentionClient client, JsonObject one) {
    JsonObject request = one.getAsJsonObject("request");
    if (one.has("error")) {
      JsonObject wanted = one.getAsJsonObject("error");
      if (!canBeMade(request)) {
        // A tensor whose elements do not fit its shape, or none at all: refused before it is sent.
        assertEquals("INVALID_ARGUMENT", wanted.get("code").getAsString());
        return;
      }
      AttentionException error =
          assertThrows(
              AttentionException.class,
              () -> client.compute(request(request, AttentionVectorsTest::tensor)));
      assertEquals(wanted.get("code").getAsString(), error.code().name());
      if (wanted.has("field")) {
        assertEquals(wanted.get("field").getAsString(), error.fieldViolations().get(0).field());
      }
      return;
    }
    ComputeResult result = client.compute(request(request, AttentionVectorsTest::tensor));
    JsonObject wanted = one.getAsJsonObject("response");
    checkClose(wanted, "output", Optional.of(result.output()));
    checkClose(wanted, "log_sum_exp", result.logSumExp());
    checkClose(wanted, "scores", result.scores());
    checkClose(wanted, "present_key", result.presentKey());
    checkClose(wanted, "present_value", result.presentValue());
  }

  private static void checkClose(JsonObject response, String name, Optional<Tensor> found) {
    assertEquals(response.has(name), found.isPresent(), name);
    if (found.isEmpty()) {
      return;
    }
    Tensor wanted = tensor(response.getAsJsonObject(name));
    Tensor got = found.get();
    assertEquals(wanted.dataType(), got.dataType(), name);
    assertArrayEquals(wanted.shape(), got.shape(), name);
    double[] expected = wanted.toDoubles();
    double[] actual = got.toDoubles();
    for (int i = 0; i < expected.length; ++i) {
      double e = expected[i];
      double a = actual[i];
      boolean close =
          Double.compare(e, a) == 0 || Math.abs(e - a) <= tolerance(wanted.dataType(), e);
      assertTrue(close, name + "[" + i + "]: got " + a + ", wanted " + e);
    }
  }

  /** tests/vectors/README.md says why. */
  private static double tolerance(DataType type, double expected) {
    double size = Math.abs(expected);
    return switch (type) {
      case FLOAT32 -> 1e-6 + 1e-5 * size;
      case FLOAT64 -> 1e-14 + 1e-13 * size;
      case FLOAT16 -> 1e-6 + 2 * Math.scalb(1.0, Math.max(Math.getExponent(size), -14) - 10);
      case BFLOAT16 -> 1e-6 + 2 * Math.scalb(1.0, Math.max(Math.getExponent(size), -126) - 7);
      default -> throw new IllegalArgumentException("type " + type);
    };
  }

  /** What the digest is of: the order of bytes does not depend on the buffer. */
  @org.junit.jupiter.api.Test
  void bytesAreLittleEndian() {
    byte[] bytes = Tensor.of(new float[] {1}, 1).toBytes();
    assertEquals(1f, ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).getFloat());
  }

  /** The vectors are there, and hold what this test reads. */
  @org.junit.jupiter.api.Test
  void vectorsAreMany() {
    List<JsonObject> cases = Servers.cases("attention.json");
    assertTrue(cases.size() > 20);
    JsonArray query =
        cases.get(0).getAsJsonObject("request").getAsJsonObject("query").getAsJsonArray("shape");
    assertEquals(2, query.size());
  }
}
