package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Attributes;
import io.grpc.CallCredentials;
import io.grpc.Grpc;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.SecurityLevel;
import io.grpc.Status;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** TLS, tokens, and where a token may go. */
@Timeout(120)
class SecurityTest {
  private static final String TOKEN = "a-secret-of-tests";
  private static final Tensor EYE = Tensor.of(new float[] {1, 0, 0, 1}, 2, 2);
  private static final CallOptions ONCE = CallOptions.DEFAULT.withMaxAttempts(1);

  @TempDir Path folder;

  private void openssl(String... arguments) throws IOException, InterruptedException {
    List<String> command = new java.util.ArrayList<>(List.of("openssl"));
    command.addAll(List.of(arguments));
    Process process =
        new ProcessBuilder(command)
            .directory(folder.toFile())
            .redirectErrorStream(true)
            .redirectOutput(folder.resolve("openssl.log").toFile())
            .start();
    assertEquals(0, process.waitFor(), () -> read("openssl.log"));
  }

  private String read(String name) {
    try {
      return Files.readString(folder.resolve(name));
    } catch (IOException e) {
      return e.toString();
    }
  }

  private Path file(String name) {
    return folder.resolve(name);
  }

  /** An authority, ca.pem, and name.pem and name.key that it has signed. */
  private void certificates(String... names) throws IOException, InterruptedException {
    openssl(
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=authority",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem");
    Files.writeString(file("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
    for (String name : names) {
      openssl(
          "req",
          "-newkey",
          "ec",
          "-pkeyopt",
          "ec_paramgen_curve:P-256",
          "-nodes",
          "-subj",
          "/CN=" + name,
          "-keyout",
          name + ".key",
          "-out",
          name + ".csr");
      openssl(
          "x509",
          "-req",
          "-in",
          name + ".csr",
          "-CA",
          "ca.pem",
          "-CAkey",
          "ca.key",
          "-CAcreateserial",
          "-days",
          "2",
          "-extfile",
          "names",
          "-out",
          name + ".pem");
    }
  }

  private static void assertWorks(AttentionClient.Builder builder) {
    try (AttentionClient client = builder.build()) {
      assertEquals(4, client.compute(EYE, EYE, EYE).output().size());
    }
  }

  private static AttentionException failure(AttentionClient.Builder builder) {
    try (AttentionClient client = builder.build()) {
      ComputeRequest request = ComputeRequest.builder(EYE, EYE, EYE).build();
      return assertThrows(AttentionException.class, () -> client.compute(request, ONCE));
    }
  }

  private static void assertContains(String wanted, Throwable error) {
    assertTrue(error.getMessage().contains(wanted), error.getMessage());
  }

  @Test
  void targetsThatAreNone() {
    for (String target : List.of("", "http://127.0.0.1:50051", "https://attention.example")) {
      Throwable error =
          assertThrows(
              IllegalArgumentException.class, () -> AttentionClient.connect(target), target);
      assertContains("wanted an address such as 127.0.0.1:50051", error);
    }
  }

  @Test
  void tls() throws Exception {
    certificates("server");
    try (Servers.Started server =
        Servers.start("--tls-cert=" + file("server.pem"), "--tls-key=" + file("server.key"))) {
      assertWorks(AttentionClient.builder(server.address).tlsCa(file("ca.pem")));
      // An authority that Java does not trust.
      AttentionException error = failure(AttentionClient.builder(server.address).tls());
      assertEquals(Status.Code.UNAVAILABLE, error.code());
      assertContains("the server's certificate was refused: ", error);
      // Plain text to a server that wants TLS.
      error = failure(AttentionClient.builder(server.address));
      assertEquals(Status.Code.UNAVAILABLE, error.code());
      assertContains("the server closed the connection at once: it may want TLS", error);
    }
  }

  @Test
  void tlsToAServerInPlainText() throws Exception {
    certificates("server");
    AttentionException error =
        failure(AttentionClient.builder(Servers.address()).tlsCa(file("ca.pem")));
    assertEquals(Status.Code.UNAVAILABLE, error.code());
    assertContains("the server does not speak TLS on this port", error);
  }

  @Test
  void mutualTls() throws Exception {
    certificates("server", "client");
    try (Servers.Started server =
        Servers.start(
            "--tls-cert=" + file("server.pem"),
            "--tls-key=" + file("server.key"),
            "--tls-client-ca=" + file("ca.pem"))) {
      assertWorks(
          AttentionClient.builder(server.address)
              .tlsCa(file("ca.pem"))
              .tlsCertificate(file("client.pem"), file("client.key")));
      assertEquals(
          Status.Code.UNAVAILABLE,
          failure(AttentionClient.builder(server.address).tlsCa(file("ca.pem"))).code());
    }
  }

  @Test
  void filesThatCannotBeRead() throws Exception {
    for (AttentionClient.Builder builder :
        List.of(
            AttentionClient.builder("127.0.0.1:1").tlsCa(file("none")),
            AttentionClient.builder("127.0.0.1:1").tlsCertificate(file("none"), file("none")),
            AttentionClient.builder("127.0.0.1:1").tokenFile(file("none")),
            AttentionClient.builder("127.0.0.1:1").token("two words"),
            AttentionClient.builder("127.0.0.1:1").token(""),
            AttentionClient.builder("127.0.0.1:1").token("a".repeat(4097)),
            AttentionClient.builder("127.0.0.1:1").token("line\nline"),
            AttentionClient.builder("127.0.0.1:1").token(TOKEN).tokenFile(file("none")))) {
      assertThrows(IllegalArgumentException.class, builder::build);
    }
    Files.writeString(file("not.pem"), "no certificate");
    assertThrows(
        IllegalArgumentException.class,
        () -> AttentionClient.builder("127.0.0.1:1").tlsCa(file("not.pem")).build());
    Files.writeString(file("empty"), "\n");
    assertThrows(
        IllegalArgumentException.class,
        () -> AttentionClient.builder("127.0.0.1:1").tokenFile(file("empty")).build());
  }

  @Test
  void tokensInPlainTextGoNowhere() {
    for (String target :
        List.of(
            "192.0.2.1:50051",
            "dns:///192.0.2.1:50051",
            "[2001:db8::1]:50051",
            "dns:192.0.2.1:50051")) {
      IllegalArgumentException error =
          assertThrows(
              IllegalArgumentException.class,
              () -> AttentionClient.builder(target).token(TOKEN).build());
      assertTrue(error.getMessage().contains("plain text"));
      assertFalse(error.getMessage().contains(TOKEN));
      AttentionClient.builder(target).token(TOKEN).tls().build().close();
      AttentionClient.builder(target).token(TOKEN).allowPlaintextToken(true).build().close();
    }
    for (String target : List.of("127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/tmp/none")) {
      AttentionClient.builder(target).token(TOKEN).build().close();
    }
  }

  private record Call(SocketAddress server, SecurityLevel level) {
    Object apply(TokenSource token) {
      AtomicReference<Object> result = new AtomicReference<>();
      token.applyRequestMetadata(
          new CallCredentials.RequestInfo() {
            @Override
            public MethodDescriptor<?, ?> getMethodDescriptor() {
              return Methods.COMPUTE;
            }

            @Override
            public SecurityLevel getSecurityLevel() {
              return level;
            }

            @Override
            public String getAuthority() {
              return "somewhere";
            }

            @Override
            public Attributes getTransportAttrs() {
              return Attributes.newBuilder().set(Grpc.TRANSPORT_ATTR_REMOTE_ADDR, server).build();
            }
          },
          Runnable::run,
          new CallCredentials.MetadataApplier() {
            @Override
            public void apply(Metadata headers) {
              result.set(
                  headers.get(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER)));
            }

            @Override
            public void fail(Status status) {
              result.set(status);
            }
          });
      return result.get();
    }
  }

  /** Of a name only the connection can tell. */
  @Test
  void connectionsThatLeaveTheMachine() {
    TokenSource token = TokenSource.of(TOKEN, false);
    Call elsewhere = new Call(new InetSocketAddress("192.0.2.1", 1), SecurityLevel.NONE);
    Status status = (Status) elsewhere.apply(token);
    assertEquals(Status.Code.FAILED_PRECONDITION, status.getCode());
    assertFalse(status.toString().contains(TOKEN));
    assertEquals(
        Status.Code.FAILED_PRECONDITION,
        ((Status) new Call(null, SecurityLevel.NONE).apply(token)).getCode());
    assertEquals(
        Status.Code.FAILED_PRECONDITION,
        ((Status)
                new Call(new InetSocketAddress("192.0.2.1", 1), SecurityLevel.INTEGRITY)
                    .apply(token))
            .getCode());
    for (Call safe :
        List.of(
            new Call(new InetSocketAddress("127.0.0.9", 1), SecurityLevel.NONE),
            new Call(new InetSocketAddress("::1", 1), SecurityLevel.NONE),
            new Call(new InetSocketAddress("192.0.2.1", 1), SecurityLevel.PRIVACY_AND_INTEGRITY))) {
      assertEquals("Bearer " + TOKEN, safe.apply(token));
    }
    assertEquals("Bearer " + TOKEN, elsewhere.apply(TokenSource.of(TOKEN, true)));
  }

  private String digestOf(String token) {
    return Pattern.sha256(token.getBytes(java.nio.charset.StandardCharsets.UTF_8));
  }

  private Servers.Started serverWithTokens(String... flags) throws IOException {
    Files.writeString(file("tokens"), digestOf(TOKEN) + " tests 1\n");
    List<String> all = new java.util.ArrayList<>(List.of("--tokens=" + file("tokens")));
    all.addAll(List.of(flags));
    return Servers.start(all.toArray(new String[0]));
  }

  @Test
  void tokensAreShownAndNeverTold() throws Exception {
    try (Servers.Started server = serverWithTokens()) {
      assertWorks(AttentionClient.builder(server.address).token(TOKEN));
      AttentionException error = failure(AttentionClient.builder(server.address));
      assertEquals(Status.Code.UNAUTHENTICATED, error.code());
      assertEquals("TOKEN_MISSING", error.reason());
      String other = "another-secret";
      AttentionClient.Builder wrong = AttentionClient.builder(server.address).token(other);
      error = failure(wrong);
      assertEquals("TOKEN_UNKNOWN", error.reason());
      StringWriter text = new StringWriter();
      error.printStackTrace(new PrintWriter(text));
      try (AttentionClient client = wrong.build()) {
        text.append(client.toString())
            .append(wrong.toString())
            .append(wrong.tokenSource().toString());
      }
      assertFalse(text.toString().contains(other));
    }
  }

  @Test
  void tokenFilesMayBeReplaced() throws Exception {
    try (Servers.Started server = serverWithTokens()) {
      Files.writeString(file("token"), "old-token\n");
      ComputeRequest request = ComputeRequest.builder(EYE, EYE, EYE).build();
      try (AttentionClient client =
          AttentionClient.builder(server.address).tokenFile(file("token")).build()) {
        assertEquals(
            "TOKEN_UNKNOWN",
            assertThrows(AttentionException.class, () -> client.compute(request)).reason());
        Files.writeString(file("token.new"), TOKEN + "\n");
        Files.move(file("token.new"), file("token"), StandardCopyOption.REPLACE_EXISTING);
        Thread.sleep(1100);
        client.compute(request);
        // What cannot be read leaves the last one in use.
        Files.delete(file("token"));
        Thread.sleep(1100);
        client.compute(request);
        Files.writeString(file("token"), "no token at all\n");
        Thread.sleep(1100);
        client.compute(request);
        client.computeAsync(request).join();
      }
    }
  }

  @Test
  void unixSockets() throws Exception {
    String socket = "unix:" + file("socket");
    try (Servers.Started server = serverWithTokens("--listen=" + socket)) {
      assertTrue(server.process.isAlive());
      assertWorks(AttentionClient.builder(socket).token(TOKEN));
      try (AttentionClient client = AttentionClient.builder(socket).token(TOKEN).build();
          Session session = client.createSession(SessionConfig.builder(1, 2).build())) {
        Tensor rows = Tensor.of(new float[] {1, 0}, 1, 1, 2);
        session.step(rows, rows, rows);
        assertEquals(1, session.length());
      }
    }
  }

  /** A proxy that is set for the whole JVM is not asked for loopback. */
  @Test
  void noProxyForLoopback() {
    System.setProperty("https.proxyHost", "127.0.0.1");
    System.setProperty("https.proxyPort", "1");
    System.setProperty("http.nonProxyHosts", "");
    try {
      assertWorks(AttentionClient.builder(Servers.address()));
      String port = Servers.address().substring(Servers.address().indexOf(':'));
      assertWorks(AttentionClient.builder("localhost" + port));
    } finally {
      System.clearProperty("https.proxyHost");
      System.clearProperty("https.proxyPort");
      System.clearProperty("http.nonProxyHosts");
    }
  }
}
