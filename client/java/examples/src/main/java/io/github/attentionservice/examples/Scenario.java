package io.github.attentionservice.examples;

import io.github.attentionservice.AttendResult;
import io.github.attentionservice.AttentionClient;
import io.github.attentionservice.AttentionException;
import io.github.attentionservice.Bfloat16;
import io.github.attentionservice.Causal;
import io.github.attentionservice.ComputeRequest;
import io.github.attentionservice.ComputeResult;
import io.github.attentionservice.Session;
import io.github.attentionservice.SessionConfig;
import io.github.attentionservice.Tensor;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.UUID;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;

/** What the client does, in ten lines: tests/polyglot/README.md says what each of them is. */
public final class Scenario {
  private final Flags flags;

  private Scenario(Flags flags) {
    this.flags = flags;
  }

  /**
   * Runs the scenario.
   *
   * @param arguments --server, --misbehaving and --misbehaving-http
   * @throws Exception if anything goes otherwise than it should
   */
  public static void main(String[] arguments) throws Exception {
    Scenario scenario = new Scenario(new Flags(arguments));
    try (AttentionClient client = AttentionClient.connect(scenario.flags.get("server"))) {
      compute(client);
      refused(client);
      scenario.busy();
      session(client);
    }
    scenario.cancel();
  }

  private static void compute(AttentionClient client) {
    ComputeRequest request =
        ComputeRequest.builder(
                tensor(1, 2, 8, 33, 64), tensor(2, 2, 2, 57, 64), tensor(3, 2, 2, 57, 64))
            .options(o -> o.causal(Causal.BOTTOM_RIGHT).windowLeft(40))
            .build();
    System.out.println("compute f32 " + digest(client.compute(request).output()));
    ComputeResult result = client.compute(bfloat16(4), bfloat16(5), bfloat16(6));
    System.out.println("compute bf16 " + digest(result.output()));
  }

  private static Tensor bfloat16(long seed) {
    float[] numbers = tensor(seed, 1, 4, 16, 32).toFloats();
    return Tensor.ofBfloat16(Bfloat16.fromFloats(numbers), 1, 4, 16, 32);
  }

  private static void refused(AttentionClient client) {
    try {
      client.compute(tensor(1, 2, 2), tensor(2, 3, 4), tensor(3, 2, 2));
    } catch (AttentionException e) {
      String field = e.fieldViolations().get(0).field();
      System.out.println("refused " + e.code() + " " + e.reason() + " " + field);
    }
  }

  private void busy() throws IOException, InterruptedException {
    String token = "busy_then_ok." + UUID.randomUUID();
    Tensor row = tensor(1, 1, 4);
    try (AttentionClient client =
        AttentionClient.builder(flags.get("misbehaving")).token(token).build()) {
      client.compute(row, row, row);
    }
    URI attempts =
        URI.create("http://" + flags.get("misbehaving-http") + "/attempts?token=" + token);
    String calls =
        HttpClient.newHttpClient()
            .send(HttpRequest.newBuilder(attempts).build(), HttpResponse.BodyHandlers.ofString())
            .body();
    System.out.println("busy OK " + (calls.split("\"method\"", -1).length - 1));
  }

  private static void session(AttentionClient client) {
    try (Session first = client.createSession(SessionConfig.builder(2, 16).build())) {
      long length = first.append(tensor(7, 2, 7, 16), tensor(8, 2, 7, 16));
      System.out.println("session append " + length);
      AttendResult result =
          first.step(tensor(9, 2, 1, 16), tensor(10, 2, 1, 16), tensor(11, 4, 1, 16));
      System.out.println("session step " + first.length() + " " + digest(result.output()));

      Tensor query = tensor(12, 4, 1, 16);
      try (Session fork = first.fork()) {
        long before = fork.length();
        fork.truncate(5);
        Tensor output = fork.attend(query).output();
        System.out.println(
            "session fork " + before + " truncate " + fork.length() + " " + digest(output));
      }

      Session second = client.openSession(first.id());
      second.append(tensor(13, 2, 1, 16), tensor(14, 2, 1, 16));
      try {
        first.append(tensor(15, 2, 1, 16), tensor(16, 2, 1, 16));
      } catch (AttentionException e) {
        System.out.println(
            "session conflict " + e.code() + " " + e.reason() + " " + e.length().getAsLong());
      }
      first.refresh();
      Tensor output = first.attend(query).output();
      System.out.println("session parent " + first.length() + " " + digest(output));
    }
  }

  private void cancel() throws InterruptedException {
    String token = "hang." + UUID.randomUUID();
    Tensor row = tensor(1, 1, 4);
    try (AttentionClient client =
        AttentionClient.builder(flags.get("misbehaving")).token(token).build()) {
      CompletableFuture<ComputeResult> call =
          client.computeAsync(ComputeRequest.builder(row, row, row).build());
      Thread.sleep(100);
      call.cancel(true);
      try {
        call.join();
      } catch (CancellationException e) {
        System.out.println("cancel CANCELLED");
      }
    }
  }

  /** Numbers that every language makes alike. */
  private static Tensor tensor(long seed, long... shape) {
    int count = 1;
    for (long axis : shape) {
      count *= (int) axis;
    }
    float[] numbers = new float[count];
    for (int i = 0; i < count; ++i) {
      long mixed = i * 2654435761L + seed * 40503 & 0xffffffffL;
      numbers[i] = ((mixed >> 16) % 255 - 127) / 64f;
    }
    return Tensor.of(numbers, shape);
  }

  private static String digest(Tensor tensor) {
    try {
      MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
      return HexFormat.of().formatHex(sha256.digest(tensor.toBytes()));
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }
}
