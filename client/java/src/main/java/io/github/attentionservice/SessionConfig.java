package io.github.attentionservice;

import java.time.Duration;
import java.util.List;

/**
 * What a session holds. Unchanged while it lives. Immutable; made by {@link #builder}.
 *
 * <p>Each option means what the field of this name means in {@code attention/v1/session.proto}.
 */
public final class SessionConfig {
  private final io.github.attentionservice.proto.attention.SessionConfig message;

  SessionConfig(io.github.attentionservice.proto.attention.SessionConfig message) {
    this.message = message;
  }

  /**
   * A builder.
   *
   * @param kvHeads Hkv, at least 1
   * @param headSize D, at least 1
   * @return a new builder
   */
  public static Builder builder(long kvHeads, long headSize) {
    return new Builder().kvHeads(kvHeads).headSize(headSize);
  }

  io.github.attentionservice.proto.attention.SessionConfig message() {
    return message;
  }

  /**
   * The layers of the model.
   *
   * @return their number; 0 means 1 where the server has not answered yet
   */
  public int layers() {
    return (int) message.getNumLayers();
  }

  /**
   * Hkv.
   *
   * @return key/value heads
   */
  public long kvHeads() {
    return message.getKvHeads();
  }

  /**
   * D.
   *
   * @return the head size of keys
   */
  public long headSize() {
    return message.getHeadSize();
  }

  /**
   * Dv.
   *
   * @return the head size of values; 0 means D where the server has not answered yet
   */
  public long valueHeadSize() {
    return message.getValueHeadSize();
  }

  /**
   * What keys and values are stored as.
   *
   * @return a type; FLOAT32 where none was chosen
   */
  public DataType dataType() {
    DataType type = DataType.of(message.getDataTypeValue());
    return type == null ? DataType.FLOAT32 : type;
  }

  /**
   * Whether values are the first Dv columns of keys.
   *
   * @return whether appends have no values
   */
  public boolean valueIsKeyPrefix() {
    return message.getValueIsKeyPrefix();
  }

  /**
   * How long the session lives unused.
   *
   * @return zero where none was chosen and the server has not answered yet
   */
  public Duration lease() {
    return Duration.ofSeconds(message.getLease().getSeconds(), message.getLease().getNanos());
  }

  /**
   * How many of the last tokens queries see.
   *
   * @return one number for every layer, one for each of them, or none
   */
  public List<Long> retainWindow() {
    return message.getRetainWindowList();
  }

  /**
   * How far layers with a window can be truncated, at least.
   *
   * @return tokens
   */
  public long rollbackTokens() {
    return message.hasRollbackTokens() ? message.getRollbackTokens() : 256;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof SessionConfig config && config.message.equals(message);
  }

  @Override
  public int hashCode() {
    return message.hashCode();
  }

  /** As the specification's text form. */
  @Override
  public String toString() {
    return message.toString();
  }

  /** Collects a configuration. Not thread-safe. */
  public static final class Builder {
    private final io.github.attentionservice.proto.attention.SessionConfig.Builder message =
        io.github.attentionservice.proto.attention.SessionConfig.newBuilder();

    private Builder() {}

    private Builder kvHeads(long heads) {
      message.setKvHeads(heads);
      return this;
    }

    private Builder headSize(long size) {
      message.setHeadSize(size);
      return this;
    }

    /**
     * The layers of the model. Default: 1.
     *
     * @param layers 1 to 1024
     * @return this
     */
    public Builder layers(int layers) {
      message.setNumLayers(layers);
      return this;
    }

    /**
     * Dv. Default: D.
     *
     * @param size at least 1
     * @return this
     */
    public Builder valueHeadSize(long size) {
      message.setValueHeadSize(size);
      return this;
    }

    /**
     * What keys and values are stored as. Default: FLOAT32.
     *
     * @param type a type of floats, INT8 or FLOAT8_E4M3
     * @return this
     */
    public Builder dataType(DataType type) {
      message.setDataTypeValue(type.number());
      return this;
    }

    /**
     * Whether values are the first Dv columns of keys, as in DeepSeek's latent attention. Default:
     * no.
     *
     * @param whether so
     * @return this
     */
    public Builder valueIsKeyPrefix(boolean whether) {
      message.setValueIsKeyPrefix(whether);
      return this;
    }

    /**
     * How long the session lives unused. Default: a minute. The client renews it while it knows the
     * session.
     *
     * @param lease at least a second
     * @return this
     */
    public Builder lease(Duration lease) {
      message.setLease(
          com.google.protobuf.Duration.newBuilder()
              .setSeconds(lease.getSeconds())
              .setNanos(lease.getNano()));
      return this;
    }

    /**
     * For layers that never look further back: how many of the last tokens a query sees, its own
     * among them. Default: all.
     *
     * @param tokens one number for every layer, or one for each of them; 0: all
     * @return this
     */
    public Builder retainWindow(long... tokens) {
      message.clearRetainWindow();
      for (long number : tokens) {
        message.addRetainWindow(number);
      }
      return this;
    }

    /**
     * How far layers with a window can be truncated, at least. Default: 256.
     *
     * @param tokens at least 0
     * @return this
     */
    public Builder rollbackTokens(long tokens) {
      message.setRollbackTokens(tokens);
      return this;
    }

    /**
     * The configuration. The server checks it.
     *
     * @return an immutable configuration
     */
    public SessionConfig build() {
      return new SessionConfig(message.build());
    }
  }
}
