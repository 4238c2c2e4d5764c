package io.github.attentionservice.examples;

import attention.v1.Attention;
import attention.v1.AttentionServiceGrpc;
import com.google.protobuf.ByteString;
import io.github.attentionservice.AttentionClient;
import io.github.attentionservice.ComputeRequest;
import io.github.attentionservice.Tensor;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/**
 * How fast this client is beside the generated stub, as one would write it by gRPC's and protobuf's
 * tutorials. Both begin with arrays of floats and end with one.
 */
public final class Bench {
  private static final int WARM_UP_CALLS = 3;

  private record Case(String name, int rows, int keys, int queryHeads, int kvHeads, int headSize) {
    long[] queryShape() {
      return new long[] {1, queryHeads, rows, headSize};
    }

    long[] keyShape() {
      return new long[] {1, kvHeads, keys, headSize};
    }
  }

  private static final List<Case> CASES =
      List.of(
          new Case("tiny", 16, 16, 1, 1, 64),
          new Case("128", 128, 128, 8, 8, 64),
          new Case("decode", 1, 8192, 32, 8, 128));

  private Bench() {}

  /**
   * Prints one line of JSON for each case and way.
   *
   * @param arguments --server and --seconds, which is for all cases together
   * @throws InterruptedException if the program is to end
   */
  public static void main(String[] arguments) throws InterruptedException {
    Flags flags = new Flags(arguments);
    double seconds = Double.parseDouble(flags.get("seconds")) / CASES.size();
    ManagedChannel channel =
        Grpc.newChannelBuilder(flags.get("server"), InsecureChannelCredentials.create())
            .maxInboundMessageSize(Integer.MAX_VALUE)
            .build();
    try (AttentionClient client = AttentionClient.connect(flags.get("server"))) {
      AttentionServiceGrpc.AttentionServiceBlockingStub stub =
          AttentionServiceGrpc.newBlockingStub(channel);
      for (Case one : CASES) {
        run(one, client, stub, seconds);
      }
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static void run(
      Case one,
      AttentionClient client,
      AttentionServiceGrpc.AttentionServiceBlockingStub stub,
      double seconds) {
    float[] query = numbers(1, one.queryShape());
    float[] key = numbers(2, one.keyShape());
    float[] value = numbers(3, one.keyShape());
    Supplier<float[]> byClient =
        () ->
            client
                .compute(
                    ComputeRequest.builder(
                            Tensor.of(query, one.queryShape()),
                            Tensor.of(key, one.keyShape()),
                            Tensor.of(value, one.keyShape()))
                        .build())
                .output()
                .toFloats();
    Supplier<float[]> byStub =
        () ->
            floats(
                stub.computeAttention(
                        Attention.ComputeAttentionRequest.newBuilder()
                            .setQuery(tensor(query, one.queryShape()))
                            .setKey(tensor(key, one.keyShape()))
                            .setValue(tensor(value, one.keyShape()))
                            .build())
                    .getOutput());
    for (int i = 0; i < WARM_UP_CALLS; ++i) {
      if (!sameBits(byClient.get(), byStub.get())) {
        throw new IllegalStateException(one.name + ": the two ways have different answers");
      }
    }
    List<Double> clientMillis = new ArrayList<>();
    List<Double> stubMillis = new ArrayList<>();
    long end = System.nanoTime() + (long) (seconds * 1e9);
    do {
      clientMillis.add(millis(byClient));
      stubMillis.add(millis(byStub));
    } while (System.nanoTime() < end);
    print(one, "client", clientMillis);
    print(one, "stub", stubMillis);
  }

  private static double millis(Supplier<float[]> call) {
    long begin = System.nanoTime();
    call.get();
    return (System.nanoTime() - begin) / 1e6;
  }

  private static void print(Case one, String way, List<Double> millis) {
    double[] sorted = millis.stream().mapToDouble(Double::doubleValue).sorted().toArray();
    System.out.printf(
        Locale.ROOT,
        "{\"case\":\"%s\",\"way\":\"%s\",\"p50_ms\":%.4f,\"calls\":%d}%n",
        one.name,
        way,
        sorted[sorted.length / 2],
        sorted.length);
  }

  private static boolean sameBits(float[] one, float[] other) {
    return Arrays.equals(one, other) && one.length > 0;
  }

  private static float[] numbers(long seed, long... shape) {
    int count = 1;
    for (long axis : shape) {
      count *= (int) axis;
    }
    float[] numbers = new float[count];
    for (int i = 0; i < count; ++i) {
      long mixed = i * 2654435761L + seed * 40503 & 0xffffffffL;
      numbers[i] = ((mixed >> 16) % 255 - 127) / 64f;
    }
    return numbers;
  }

  private static Attention.Tensor tensor(float[] numbers, long... shape) {
    ByteBuffer bytes =
        ByteBuffer.allocate(numbers.length * Float.BYTES).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(numbers);
    Attention.Tensor.Builder tensor =
        Attention.Tensor.newBuilder()
            .setDataType(Attention.DataType.DATA_TYPE_FLOAT32)
            .setData(ByteString.copyFrom(bytes));
    for (long axis : shape) {
      tensor.addShape(axis);
    }
    return tensor.build();
  }

  private static float[] floats(Attention.Tensor tensor) {
    ByteBuffer bytes = tensor.getData().asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
    float[] numbers = new float[bytes.remaining() / Float.BYTES];
    bytes.asFloatBuffer().get(numbers);
    return numbers;
  }
}
