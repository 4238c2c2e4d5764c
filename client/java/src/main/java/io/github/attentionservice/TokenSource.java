package io.github.attentionservice;

import io.grpc.Attributes;
import io.grpc.CallCredentials;
import io.grpc.Grpc;
import io.grpc.Metadata;
import io.grpc.SecurityLevel;
import io.grpc.Status;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executor;
import java.util.regex.Pattern;

/**
 * Gives each call the token, and lets it travel in plain text only where nobody else can read it.
 */
final class TokenSource extends CallCredentials {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
  private static final Pattern TOKEN = Pattern.compile("[A-Za-z0-9._~+/-]+=*");
  private static final int MOST_CHARACTERS = 4096;
  private static final long READ_AGAIN_NANOS = 1_000_000_000;

  // Null: the token never changes.
  private final Path file;
  private final boolean plaintextAllowed;
  private volatile String header;
  private volatile long lastRead;

  private TokenSource(Path file, String token, boolean plaintextAllowed) {
    this.file = file;
    this.plaintextAllowed = plaintextAllowed;
    this.header = "Bearer " + token;
    this.lastRead = System.nanoTime();
  }

  static TokenSource of(String token, boolean plaintextAllowed) {
    if (!isToken(token)) {
      throw new IllegalArgumentException(
          "token: wanted up to 4096 letters, digits and -._~+/, with = at the end");
    }
    return new TokenSource(null, token, plaintextAllowed);
  }

  static TokenSource ofFile(Path file, boolean plaintextAllowed) {
    String token;
    try {
      token = read(file);
    } catch (IOException e) {
      throw new IllegalArgumentException("tokenFile: cannot read " + file, e);
    }
    if (token == null) {
      throw new IllegalArgumentException("tokenFile: no token on one line in " + file);
    }
    return new TokenSource(file, token, plaintextAllowed);
  }

  private static boolean isToken(String text) {
    return text.length() <= MOST_CHARACTERS && TOKEN.matcher(text).matches();
  }

  /** Null if the file holds no token. */
  private static String read(Path file) throws IOException {
    byte[] bytes;
    try (InputStream in = Files.newInputStream(file)) {
      bytes = in.readNBytes(2 * MOST_CHARACTERS);
    }
    String token = new String(bytes, StandardCharsets.ISO_8859_1).strip();
    return isToken(token) ? token : null;
  }

  @Override
  public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
    if (!plaintextAllowed && !isSafe(call)) {
      applier.fail(
          Status.FAILED_PRECONDITION.withDescription(
              "the token would travel in plain text beyond this machine: use TLS, or"
                  + " allowPlaintextToken"));
      return;
    }
    if (file == null || System.nanoTime() - lastRead < READ_AGAIN_NANOS) {
      apply(applier);
      return;
    }
    // Files can be slow, and this may be the thread of the connection.
    executor.execute(
        () -> {
          refresh();
          apply(applier);
        });
  }

  private void apply(MetadataApplier applier) {
    Metadata headers = new Metadata();
    headers.put(AUTHORIZATION, header);
    applier.apply(headers);
  }

  /** A file that cannot be read, or holds no token, leaves the last one in use. */
  private synchronized void refresh() {
    if (System.nanoTime() - lastRead < READ_AGAIN_NANOS) {
      return;
    }
    try {
      String token = read(file);
      if (token != null) {
        header = "Bearer " + token;
      }
    } catch (IOException e) {
      // It may be about to be replaced.
    }
    lastRead = System.nanoTime();
  }

  private static boolean isSafe(RequestInfo call) {
    if (call.getSecurityLevel() == SecurityLevel.PRIVACY_AND_INTEGRITY) {
      return true;
    }
    Attributes transport = call.getTransportAttrs();
    SocketAddress server = transport.get(Grpc.TRANSPORT_ATTR_REMOTE_ADDR);
    if (server instanceof InetSocketAddress inet) {
      return !inet.isUnresolved() && inet.getAddress().isLoopbackAddress();
    }
    // Whatever else a connection of Netty's can be is a Unix socket.
    return server != null && server.getClass().getSimpleName().equals("DomainSocketAddress");
  }

  /** Holds no token. */
  @Override
  public String toString() {
    return "TokenSource";
  }
}
