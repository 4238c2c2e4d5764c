package io.github.attentionservice;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.util.JsonFormat;

/** Requests and options of the vectors, which are in protobuf's JSON form. */
final class Json {
  private Json() {}

  static long[] longs(JsonObject object, String name) {
    JsonElement found = object.get(name);
    if (found == null) {
      return new long[0];
    }
    JsonArray array = found.getAsJsonArray();
    long[] numbers = new long[array.size()];
    for (int i = 0; i < numbers.length; ++i) {
      numbers[i] = array.get(i).getAsLong();
    }
    return numbers;
  }

  static double[] doubles(JsonObject object, String name) {
    JsonArray array = object.getAsJsonArray(name);
    double[] numbers = new double[array.size()];
    for (int i = 0; i < numbers.length; ++i) {
      numbers[i] = number(array.get(i));
    }
    return numbers;
  }

  static double number(JsonElement element) {
    String text = element.getAsString();
    return switch (text) {
      case "Infinity" -> Double.POSITIVE_INFINITY;
      case "-Infinity" -> Double.NEGATIVE_INFINITY;
      case "NaN" -> Double.NaN;
      default -> Double.parseDouble(text);
    };
  }

  /** Sets each option by the builder's own method, so that none of them is left untried. */
  static AttentionOptions options(JsonObject request) {
    AttentionOptions.Builder builder = AttentionOptions.builder();
    if (!request.has("options")) {
      return builder.build();
    }
    JsonObject options = request.getAsJsonObject("options");
    for (String name : options.keySet()) {
      JsonElement value = options.get(name);
      switch (name) {
        case "layout" -> builder.layout(Layout.valueOf(last(value, "LAYOUT_")));
        case "query_heads" -> builder.queryHeads(value.getAsLong());
        case "kv_heads" -> builder.kvHeads(value.getAsLong());
        case "scale" -> builder.scale(number(value));
        case "softcap" -> builder.softcap(number(value));
        case "causal" -> builder.causal(Causal.valueOf(last(value, "CAUSAL_")));
        case "window" -> {
          JsonObject window = value.getAsJsonObject();
          if (window.has("left")) {
            builder.windowLeft(window.get("left").getAsLong());
          }
          if (window.has("right")) {
            builder.windowRight(window.get("right").getAsLong());
          }
        }
        case "chunk_size" -> builder.chunkSize(value.getAsLong());
        case "alibi_slopes" -> builder.alibiSlopes(doubles(options, name));
        case "sinks" -> builder.sinks(doubles(options, name));
        case "math_mode" -> builder.mathMode(MathMode.valueOf(last(value, "MATH_MODE_")));
        case "softmax_precision" ->
            builder.softmaxPrecision(DataType.valueOf(last(value, "DATA_TYPE_")));
        case "return_log_sum_exp" -> builder.returnLogSumExp(value.getAsBoolean());
        case "return_scores" -> builder.returnScores(Scores.valueOf(last(value, "SCORES_")));
        case "return_present" -> builder.returnPresent(value.getAsBoolean());
        default -> throw new IllegalArgumentException("option " + name);
      }
    }
    return builder.build();
  }

  private static String last(JsonElement value, String prefix) {
    return value.getAsString().substring(prefix.length());
  }

  static SessionConfig config(JsonObject config) {
    var message = io.github.attentionservice.proto.attention.SessionConfig.newBuilder();
    try {
      JsonFormat.parser().merge(config.toString(), message);
    } catch (InvalidProtocolBufferException e) {
      throw new IllegalArgumentException(e);
    }
    SessionConfig.Builder builder =
        SessionConfig.builder(message.getKvHeads(), message.getHeadSize());
    if (message.getNumLayers() != 0) {
      builder.layers((int) message.getNumLayers());
    }
    if (message.getValueHeadSize() != 0) {
      builder.valueHeadSize(message.getValueHeadSize());
    }
    if (message.getDataTypeValue() != 0) {
      builder.dataType(DataType.of(message.getDataTypeValue()));
    }
    if (message.getRetainWindowCount() > 0) {
      builder.retainWindow(
          message.getRetainWindowList().stream().mapToLong(Long::longValue).toArray());
    }
    if (message.hasRollbackTokens()) {
      builder.rollbackTokens(message.getRollbackTokens());
    }
    SessionConfig built = builder.build();
    if (!built.message().equals(message.build())) {
      throw new IllegalArgumentException("a field that this test does not know: " + message);
    }
    return built;
  }
}
