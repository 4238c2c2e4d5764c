package io.github.attentionservice;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** The servers that tests need, by the variables that tests/polyglot/README.md lists. */
final class Servers {
  private Servers() {}

  private static String variable(String name) {
    String value = System.getenv(name);
    assumeTrue(value != null && !value.isEmpty(), name + " is not set");
    return value;
  }

  static String address() {
    return variable("ATTENTION_TEST_SERVER");
  }

  static String misbehaving() {
    return variable("ATTENTION_TEST_MISBEHAVING");
  }

  /** What the misbehaving server was asked with this token. */
  static JsonArray attempts(String token) throws IOException, InterruptedException {
    String http = variable("ATTENTION_TEST_MISBEHAVING_HTTP");
    HttpRequest request =
        HttpRequest.newBuilder(URI.create("http://" + http + "/attempts?token=" + token)).build();
    return JsonParser.parseString(
            HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body())
        .getAsJsonArray();
  }

  static List<JsonObject> cases(String file) {
    Path path = Path.of(variable("ATTENTION_TEST_VECTORS"), file);
    try {
      List<JsonObject> cases = new ArrayList<>();
      JsonParser.parseString(Files.readString(path))
          .getAsJsonObject()
          .getAsJsonArray("cases")
          .forEach(one -> cases.add(one.getAsJsonObject()));
      return cases;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** A server with flags of its own. */
  static Started start(String... flags) throws IOException {
    List<String> command = new ArrayList<>();
    command.add(variable("ATTENTION_TEST_SERVER_BINARY"));
    boolean listens = false;
    for (String flag : flags) {
      listens |= flag.startsWith("--listen=");
    }
    if (!listens) {
      command.add("--listen=127.0.0.1:0");
    }
    command.addAll(List.of(flags));
    return new Started(
        new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.DISCARD).start());
  }

  static final class Started implements AutoCloseable {
    final Process process;
    final String address;

    private Started(Process process) throws IOException {
      this.process = process;
      String line =
          new BufferedReader(
                  new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8))
              .readLine();
      if (line == null) {
        throw new IOException("the server did not start");
      }
      this.address = line.substring(line.lastIndexOf(' ') + 1);
    }

    /** Lets it drain, as an orchestrator does. */
    void terminate() {
      process.destroy();
    }

    void kill() throws InterruptedException {
      process.destroyForcibly().waitFor();
    }

    @Override
    public void close() {
      process.destroyForcibly();
      try {
        process.waitFor(10, TimeUnit.SECONDS);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }
  }
}
