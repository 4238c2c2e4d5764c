package io.github.attentionservice;

import io.grpc.Status;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.Map;

/**
 * What a session object knows. Thread-safe.
 *
 * <p>Invariants:
 *
 * <ol>
 *   <li>At most one append per layer is under way.
 *   <li>A layer's request id stays the same until an append with it was answered well, or the
 *       layer's length is told anew: an append whose outcome is not known has the same id when it
 *       is tried again.
 *   <li>Once the session is gone it stays so.
 * </ol>
 */
final class SessionState {
  /** An append in several calls of which the first ones went well. */
  private record Unfinished(byte[] digest, long tokens, long done) {}

  private static final class Layer {
    long length;
    // Answered appends, and lengths told anew: part of the request id.
    long appends;
    boolean appending;
    // Null if there is none.
    Unfinished unfinished;
  }

  private final String id;
  private final long incarnation;
  private final SessionConfig config;
  // What begins every request id: no other object has the same.
  private final String nonce = RandomIds.next();
  private final Layer[] layers;
  private long lastUsed = System.nanoTime();
  private AttentionException gone;

  SessionState(io.github.attentionservice.proto.attention.Session session) {
    id = session.getId();
    incarnation = session.getIncarnation();
    config = new SessionConfig(session.getConfig());
    layers = new Layer[session.getLengthsCount()];
    for (int i = 0; i < layers.length; ++i) {
      layers[i] = new Layer();
      layers[i].length = session.getLengths(i);
    }
  }

  String id() {
    return id;
  }

  long incarnation() {
    return incarnation;
  }

  SessionConfig config() {
    return config;
  }

  private Layer find(int layer) {
    return layer >= 0 && layer < layers.length ? layers[layer] : null;
  }

  synchronized long length(int layer) {
    Layer found = find(layer);
    if (found == null) {
      throw new IndexOutOfBoundsException("layer " + layer + " of " + layers.length);
    }
    return found.length;
  }

  synchronized long[] lengths() {
    long[] lengths = new long[layers.length];
    Arrays.setAll(lengths, i -> layers[i].length);
    return lengths;
  }

  /** What an attend may expect: -1 while nobody knows how an append ends. */
  synchronized long expectedByAttend(int layer) {
    Layer found = find(layer);
    return found == null || found.appending ? -1 : found.length;
  }

  /** Throws once the session is known to be gone. */
  synchronized void check() {
    if (gone != null) {
      throw gone.with(gone.description(), gone.fieldViolations());
    }
  }

  synchronized boolean isGone() {
    return gone != null;
  }

  synchronized void used(long at) {
    if (at - lastUsed > 0) {
      lastUsed = at;
    }
  }

  synchronized long lastUsed() {
    return lastUsed;
  }

  synchronized void failed(AttentionException error) {
    if (gone == null && error.hasReason("SESSION_UNKNOWN")) {
      gone = error;
    }
  }

  void deleted() {
    failed(
        AttentionException.of(
            Status.Code.NOT_FOUND, "SESSION_UNKNOWN", "session '" + id + "': it was deleted"));
  }

  synchronized void setLengths(io.github.attentionservice.proto.attention.Session session) {
    for (int i = 0; i < Math.min(layers.length, session.getLengthsCount()); ++i) {
      // What is under way will say itself how it ended.
      if (layers[i].appending) {
        continue;
      }
      layers[i].length = session.getLengths(i);
      ++layers[i].appends;
      layers[i].unfinished = null;
    }
  }

  /**
   * Throws while another append to the layer is under way. A layer that is unknown the server
   * tells.
   */
  synchronized Claim claim(int layer) {
    check();
    Layer found = find(layer);
    if (found != null) {
      if (found.appending) {
        throw AttentionException.of(
            Status.Code.ABORTED,
            "LENGTH_CONFLICT",
            "layer " + layer + ": another append to it is under way in this client",
            Map.of("length", Long.toString(found.length)));
      }
      found.appending = true;
    }
    return new Claim(found, layer);
  }

  /** The right to append to a layer, until it is released. */
  final class Claim {
    // Null where the session has no such layer.
    private final Layer layer;
    private final int number;
    private boolean released;

    private Claim(Layer layer, int number) {
      this.layer = layer;
      this.number = number;
    }

    /** -1: none. */
    long expectedLength() {
      synchronized (SessionState.this) {
        return layer == null ? -1 : layer.length;
      }
    }

    String requestId() {
      synchronized (SessionState.this) {
        return layer == null ? "" : nonce + "-" + number + "-" + layer.appends;
      }
    }

    void appended(long length) {
      synchronized (SessionState.this) {
        if (layer != null) {
          layer.length = length;
          ++layer.appends;
          layer.unfinished = null;
        }
      }
    }

    void leaveUnfinished(Tensor key, Tensor value, long tokens, long done) {
      Unfinished unfinished = new Unfinished(digest(key, value), tokens, done);
      synchronized (SessionState.this) {
        if (layer != null) {
          layer.unfinished = unfinished;
        }
      }
    }

    /** How many of these tokens are in the layer already, from an append that failed half-way. */
    long alreadyDone(Tensor key, Tensor value, long tokens) {
      Unfinished unfinished;
      synchronized (SessionState.this) {
        unfinished = layer == null ? null : layer.unfinished;
      }
      boolean same =
          unfinished != null
              && unfinished.tokens == tokens
              && Arrays.equals(unfinished.digest, digest(key, value));
      return same ? unfinished.done : 0;
    }

    void release() {
      synchronized (SessionState.this) {
        if (layer != null && !released) {
          layer.appending = false;
        }
        released = true;
      }
    }
  }

  private static byte[] digest(Tensor key, Tensor value) {
    try {
      MessageDigest digest = MessageDigest.getInstance("SHA-256");
      byte[] buffer = new byte[64 << 10];
      for (Tensor tensor : new Tensor[] {key, value}) {
        if (tensor == null) {
          continue;
        }
        digest.update((byte) tensor.dataType().number());
        for (long at = 0; at < tensor.byteSize(); at += buffer.length) {
          int count = (int) Math.min(buffer.length, tensor.byteSize() - at);
          tensor.copyBytes(at, buffer, 0, count);
          digest.update(buffer, 0, count);
        }
      }
      return digest.digest();
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every Java has SHA-256", e);
    }
  }
}
