package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import io.github.attentionservice.proto.attention.ComputeAttentionRequest;
import io.github.attentionservice.proto.attention.KeyValueChunk;
import io.github.attentionservice.proto.attention.StreamAttentionRequest;
import io.grpc.Drainable;
import io.grpc.KnownLength;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** The client's own encoding against protobuf's. */
class WireMessageTest {
  private static byte[] drained(WireMessage message) throws IOException {
    InputStream stream = message.stream();
    assertEquals(message.length(), ((KnownLength) stream).available());
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    int written = ((Drainable) stream).drainTo(bytes);
    assertEquals(message.length(), written);
    assertEquals(0, stream.available());
    return bytes.toByteArray();
  }

  private static io.github.attentionservice.proto.attention.Tensor proto(Tensor tensor) {
    var message = io.github.attentionservice.proto.attention.Tensor.newBuilder();
    message.setDataTypeValue(tensor.dataType().number());
    for (long axis : tensor.shape()) {
      message.addShape(axis);
    }
    return message.setData(ByteString.copyFrom(tensor.toBytes())).build();
  }

  @Test
  void requestIsWhatProtobufWrites() throws IOException {
    Tensor query = Pattern.fill(DataType.BFLOAT16, 1, 1, 2, 3, 4);
    Tensor key = Pattern.fill(DataType.BFLOAT16, 2, 1, 2, 50_000, 4);
    Tensor value = Pattern.fill(DataType.FLOAT64, 3, 1, 2, 50_000, 3);
    Tensor mask = Pattern.fill(DataType.BOOL, 4, 1, 1, 3, 7);
    Tensor past = Tensor.ofBytes(DataType.FLOAT32, ByteBuffer.allocateDirect(0), 1, 2, 0, 4);
    Tensor indices = Tensor.of(new long[] {0, -1, 49_999}, 1, 3, 1);
    Tensor rowSinks = Pattern.fill(DataType.FLOAT16, 5, 1, 2, 3);
    AttentionOptions options =
        AttentionOptions.of(
            o ->
                o.scale(-0.5)
                    .sinks(1, Double.NEGATIVE_INFINITY)
                    .alibiSlopes(0.25, 0.5)
                    .window(3, -1)
                    .causal(Causal.TOP_LEFT)
                    .mathMode(MathMode.FAST));
    ComputeRequest request =
        ComputeRequest.builder(query, key, value)
            .mask(mask)
            .past(past, past)
            .validLengths(0, 1L << 40)
            .queryStarts(0, 3)
            .keyStarts(0, 50_000)
            .indices(indices)
            .rowSinks(rowSinks)
            .options(options)
            .build();
    byte[] wanted =
        ComputeAttentionRequest.newBuilder()
            .setQuery(proto(query))
            .setKey(proto(key))
            .setValue(proto(value))
            .setMask(proto(mask))
            .setPastKey(proto(past))
            .setPastValue(proto(past))
            .addValidLengths(0)
            .addValidLengths(1L << 40)
            .addQueryStarts(0)
            .addQueryStarts(3)
            .addKeyStarts(0)
            .addKeyStarts(50_000)
            .setOptions(options.message())
            .setIndices(proto(indices))
            .setSinks(proto(rowSinks))
            .build()
            .toByteArray();
    assertArrayEquals(wanted, drained(request.message()));
    assertArrayEquals(wanted, drained(request.message()), "a second time");
    assertArrayEquals(wanted, request.message().stream().readAllBytes(), "read, not drained");
  }

  /** What a stream sends, joined, is what one message holds. */
  @ParameterizedTest
  @EnumSource(
      value = Layout.class,
      names = {"MATRIX", "PACKED", "BHSD", "BSHD"})
  void chunksHoldTheTensors(Layout layout) throws IOException {
    int batch = layout == Layout.MATRIX ? 1 : 2;
    int heads = layout == Layout.MATRIX ? 1 : 3;
    int past = 5_000;
    int tokens = 60_000;
    long[] shape =
        switch (layout) {
          case MATRIX -> new long[] {tokens, 4};
          case PACKED -> new long[] {batch, tokens, heads * 4};
          case BHSD -> new long[] {batch, heads, tokens, 4};
          default -> new long[] {batch, tokens, heads, 4};
        };
    long[] rows = shape.clone();
    int axis = layout == Layout.MATRIX ? 0 : layout == Layout.BHSD ? 2 : 1;
    rows[axis] = 1;
    Tensor key = Pattern.fill(2, shape);
    Tensor value = Pattern.fill(DataType.FLOAT16, 3, shape);
    Tensor pastKey = Pattern.fill(4, batch, heads, past, 4);
    Tensor pastValue = Pattern.fill(DataType.FLOAT16, 5, batch, heads, past, 4);
    Tensor mask = Pattern.fill(DataType.BOOL, 6, 1, past + tokens - 100);
    Tensor indices = Tensor.of(new int[] {3, -1}, 1, 2);
    Tensor rowSinks = Pattern.fill(7, 1, 1, 1);
    ComputeRequest request =
        ComputeRequest.builder(Pattern.fill(1, rows), key, value)
            .past(pastKey, pastValue)
            .mask(mask)
            .indices(indices)
            .rowSinks(rowSinks)
            .options(o -> o.layout(layout).queryHeads(heads).kvHeads(heads))
            .build();
    KeyChunks chunks = KeyChunks.of(request);
    assertEquals(past + tokens, chunks.tokens());
    StreamAttentionRequest header = StreamAttentionRequest.parseFrom(drained(chunks.header()));
    assertTrue(header.hasHeader());
    assertEquals(0, header.getHeader().getKey().getData().size());
    assertEquals(past, header.getHeader().getPastValue().getShape(2));
    assertEquals(proto(indices), header.getHeader().getIndices());
    assertEquals(proto(rowSinks), header.getHeader().getSinks());

    List<Tensor> keys = new ArrayList<>();
    List<Tensor> values = new ArrayList<>();
    List<Tensor> masks = new ArrayList<>();
    for (long begin = 0; begin < chunks.tokens(); begin = chunks.endOf(begin)) {
      byte[] bytes = drained(chunks.chunk(begin, chunks.endOf(begin)));
      assertTrue(bytes.length <= (2 << 20) + 1000);
      KeyValueChunk chunk = StreamAttentionRequest.parseFrom(bytes).getChunk();
      keys.add(Answers.tensor(chunk.getKey()));
      values.add(Answers.tensor(chunk.getValue()));
      if (chunk.hasMask()) {
        masks.add(Answers.tensor(chunk.getMask()));
      }
    }
    assertTrue(keys.size() >= 2);
    check(layout, axis, heads, pastKey, key, Answers.join(keys, axis, past + tokens));
    check(layout, axis, heads, pastValue, value, Answers.join(values, axis, past + tokens));
    assertArrayEquals(mask.toBytes(), Answers.join(masks, 1, past + tokens - 100).toBytes());
  }

  /** Element by element, by the definition of each layout. */
  private static void check(
      Layout layout, int axis, int heads, Tensor past, Tensor current, Tensor joined) {
    long[] shape = current.shape();
    shape[axis] += past.axis(2);
    assertArrayEquals(shape, joined.shape());
    float[] pastNumbers = past.toFloats();
    float[] numbers = current.toFloats();
    float[] found = joined.toFloats();
    int pastTokens = (int) past.axis(2);
    int tokens = (int) current.axis(axis);
    int all = pastTokens + tokens;
    for (int b = 0; b < past.axis(0); ++b) {
      for (int h = 0; h < heads; ++h) {
        for (int t = 0; t < all; ++t) {
          for (int d = 0; d < 4; ++d) {
            float wanted =
                t < pastTokens
                    ? pastNumbers[((b * heads + h) * pastTokens + t) * 4 + d]
                    : numbers[index(layout, b, h, t - pastTokens, d, heads, tokens)];
            if (wanted != found[index(layout, b, h, t, d, heads, all)]) {
              assertEquals(wanted, found[index(layout, b, h, t, d, heads, all)], "token " + t);
            }
          }
        }
      }
    }
  }

  private static int index(Layout layout, int b, int h, int t, int d, int heads, int tokens) {
    return layout == Layout.BHSD
        ? ((b * heads + h) * tokens + t) * 4 + d
        : ((b * tokens + t) * heads + h) * 4 + d;
  }

  /** What cannot be cut goes as one message: the server says what is wrong with it. */
  @Test
  void requestsThatCannotBeCut() {
    Tensor query = Pattern.fill(1, 1, 1, 1, 4);
    Tensor key = Pattern.fill(2, 1, 1, 10, 4);
    Tensor shorter = Pattern.fill(3, 1, 1, 9, 4);
    Tensor matrix = Pattern.fill(4, 10, 4);
    Tensor past = Pattern.fill(5, 1, 1, 3, 4);
    List<ComputeRequest> requests =
        List.of(
            ComputeRequest.builder(query, key, shorter).build(),
            ComputeRequest.builder(query, matrix, key).build(),
            ComputeRequest.builder(Pattern.fill(1, 4), key, key).build(),
            ComputeRequest.builder(query, key, key).mask(Pattern.fill(6, 11)).build(),
            ComputeRequest.builder(query, key, key).mask(Pattern.fill(6)).build(),
            ComputeRequest.builder(query, key, key).mask(Tensor.ofBits(new byte[2], 1, 10)).build(),
            ComputeRequest.builder(query, key, key).past(past, null).build(),
            ComputeRequest.builder(query, key, key).past(past, shorter).build(),
            ComputeRequest.builder(query, key, key).past(matrix, matrix).build(),
            ComputeRequest.builder(query, key, key)
                .options(o -> o.returnScores(Scores.RAW))
                .build(),
            ComputeRequest.builder(query, key, key).options(o -> o.returnPresent(true)).build(),
            ComputeRequest.builder(query, key, key).options(o -> o.layout(Layout.RAGGED)).build());
    for (ComputeRequest request : requests) {
      assertEquals(null, KeyChunks.of(request));
    }
    assertEquals(10, KeyChunks.of(ComputeRequest.builder(query, key, key).build()).tokens());
  }
}
