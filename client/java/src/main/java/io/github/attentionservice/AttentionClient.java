package io.github.attentionservice;

import io.github.attentionservice.proto.attention.GetCapabilitiesRequest;
import io.github.attentionservice.proto.grpc.health.HealthCheckRequest;
import io.grpc.ChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Function;

/**
 * Attention over the network. Start here.
 *
 * <pre>{@code
 * try (AttentionClient client = AttentionClient.connect("127.0.0.1:50051")) {
 *   Tensor eye = Tensor.of(new float[] {1, 0, 0, 1}, 2, 2);
 *   float[] output = client.compute(eye, eye, eye).output().toFloats();
 * }
 * }</pre>
 *
 * <p>What is computed, every option and every error are specified in {@code
 * attention/v1/attention.proto}; sessions, which keep keys and values in the server, in {@code
 * attention/v1/session.proto}.
 *
 * <p><b>Threads.</b> Any number of threads may use a client at once; they share its connection. The
 * client's own threads are daemons, and end with {@link #close}.
 *
 * <p><b>Waiting.</b> Methods block until they are answered, for a minute at most if nothing else is
 * said. A thread that is interrupted meanwhile cancels its call, which fails with CANCELLED; the
 * thread stays interrupted. Those named {@code ...Async} return a future instead: to cancel it, or
 * to let {@code orTimeout} end it, cancels the call at the server. What depends on such a future
 * goes on at the client's executor.
 *
 * <p><b>Memory.</b> Tensors are sent from the arrays and buffers that they are in, which must stay
 * as they are until the call has returned, or its future is done. Large requests for few rows, as
 * in decoding, are sent in pieces and computed meanwhile; the answer has the same bits.
 *
 * <p><b>Errors.</b> A call that fails throws {@link AttentionException}, and a future ends with it.
 * What a client can know to be wrong without asking is an {@link IllegalArgumentException}. Calls
 * are tried again where that is safe and may help: at most four times within the time limit, after
 * the pause that the server asks for.
 */
public final class AttentionClient implements AutoCloseable {
  private static final Duration DEFAULT_TIMEOUT = Duration.ofSeconds(60);
  private static final int DEFAULT_MAX_ATTEMPTS = 4;
  private static final long CLOSE_NANOS = TimeUnit.SECONDS.toNanos(5);
  private static final int MOST_STEP_ITEMS = 1024;

  private final String target;
  private final Duration timeout;
  private final int maxAttempts;
  private final ClientThreads threads;
  private final Connection connection;
  private final Compute compute;
  private final Sessions sessions;
  // Calls under way, to be ended by close().
  private final Set<CallContext> calls = ConcurrentHashMap.newKeySet();
  private volatile boolean closed;

  private AttentionClient(Builder builder) {
    target = builder.target;
    timeout = builder.timeout;
    maxAttempts = builder.maxAttempts;
    threads = new ClientThreads(builder.executor);
    connection = connect(builder, threads);
    compute = new Compute(connection);
    sessions = new Sessions(this, connection, threads);
  }

  /**
   * A client of a server in plain text, with every default. It connects with its first call.
   *
   * @param target {@code host:port}, {@code unix:/path} or another name that gRPC knows
   * @return a client, to be closed
   */
  public static AttentionClient connect(String target) {
    return builder(target).build();
  }

  /**
   * A builder of a client.
   *
   * @param target {@code host:port}, {@code unix:/path} or another name that gRPC knows
   * @return a new builder
   */
  public static Builder builder(String target) {
    return new Builder(target);
  }

  /** What the threads hold open is closed again where the options cannot be used. */
  private static Connection connect(Builder builder, ClientThreads threads) {
    try {
      return new Connection(builder.target, builder, threads);
    } catch (RuntimeException e) {
      try {
        threads.close(CLOSE_NANOS);
      } catch (InterruptedException interrupted) {
        Thread.currentThread().interrupt();
      }
      throw e;
    }
  }

  /** With the version, if the classes come from the jar that has it in its manifest. */
  static String userAgent() {
    String version = AttentionClient.class.getPackage().getImplementationVersion();
    return version == null ? "attention-java" : "attention-java/" + version;
  }

  /**
   * Computes attention with every default.
   *
   * @param query FLOAT32, FLOAT16, BFLOAT16 or FLOAT64
   * @param key of the query's type
   * @param value of any of these types
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public ComputeResult compute(Tensor query, Tensor key, Tensor value) {
    return compute(ComputeRequest.builder(query, key, value).build());
  }

  /**
   * Computes attention.
   *
   * @param query FLOAT32, FLOAT16, BFLOAT16 or FLOAT64
   * @param key of the query's type
   * @param value of any of these types
   * @param options what to compute
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public ComputeResult compute(Tensor query, Tensor key, Tensor value, AttentionOptions options) {
    return compute(ComputeRequest.builder(query, key, value).options(options).build());
  }

  /**
   * Computes attention.
   *
   * @param request tensors and options
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public ComputeResult compute(ComputeRequest request) {
    return compute(request, CallOptions.DEFAULT);
  }

  /**
   * Computes attention.
   *
   * @param request tensors and options
   * @param options of the call
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public ComputeResult compute(ComputeRequest request, CallOptions options) {
    Objects.requireNonNull(request, "request");
    return block(options, context -> compute.run(request, context));
  }

  /**
   * Computes attention without waiting.
   *
   * @param request tensors and options
   * @return the answer; to cancel it cancels the call
   */
  public CompletableFuture<ComputeResult> computeAsync(ComputeRequest request) {
    return computeAsync(request, CallOptions.DEFAULT);
  }

  /**
   * Computes attention without waiting.
   *
   * @param request tensors and options
   * @param options of the call
   * @return the answer; to cancel it cancels the call
   */
  public CompletableFuture<ComputeResult> computeAsync(
      ComputeRequest request, CallOptions options) {
    Objects.requireNonNull(request, "request");
    return startAsync(options, context -> compute.run(request, context));
  }

  /**
   * The server's limits, types and build.
   *
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public Capabilities capabilities() {
    return capabilities(CallOptions.DEFAULT);
  }

  /**
   * The server's limits, types and build.
   *
   * @param options of the call
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public Capabilities capabilities(CallOptions options) {
    return block(
        options,
        context ->
            new Retry(Retry.Kind.REPEATABLE, context, connection::forgetFailure)
                .run(
                    () ->
                        connection.unary(
                            Methods.CAPABILITIES,
                            GetCapabilitiesRequest.getDefaultInstance(),
                            connection.headers(context),
                            context))
                .thenApply(Capabilities::of));
  }

  /**
   * Whether the server takes calls.
   *
   * @return the answer
   * @throws AttentionException if the call fails
   */
  public Health health() {
    return health("", CallOptions.DEFAULT);
  }

  /**
   * The standard gRPC health check.
   *
   * @param service its full name, such as {@code attention.v1.AttentionService}; empty: the whole
   *     server
   * @param options of the call
   * @return the answer
   * @throws AttentionException if the call fails; NOT_FOUND if the server does not know the service
   */
  public Health health(String service, CallOptions options) {
    HealthCheckRequest request = HealthCheckRequest.newBuilder().setService(service).build();
    return block(
        options,
        context ->
            new Retry(Retry.Kind.REPEATABLE, context, connection::forgetFailure)
                .run(
                    () ->
                        connection.unary(
                            Methods.HEALTH, request, connection.headers(context), context))
                .thenApply(
                    answer ->
                        switch (answer.getStatus()) {
                          case SERVING -> Health.SERVING;
                          case NOT_SERVING -> Health.NOT_SERVING;
                          default -> Health.UNKNOWN;
                        }));
  }

  /**
   * Makes a session without tokens, with an id that nobody can guess.
   *
   * @param config what it holds
   * @return the session
   * @throws AttentionException if the call fails
   */
  public Session createSession(SessionConfig config) {
    return createSession(config, "", CallOptions.DEFAULT);
  }

  /**
   * Makes a session without tokens. Where there is a session with this id and the same
   * configuration, it is the answer, with its tokens.
   *
   * @param config what it holds
   * @param id 1 to 128 printable ASCII characters; empty: one that nobody can guess
   * @param options of the call
   * @return the session
   * @throws AttentionException if the call fails; ALREADY_EXISTS if one with this id has another
   *     configuration
   */
  public Session createSession(SessionConfig config, String id, CallOptions options) {
    Objects.requireNonNull(config, "config");
    Objects.requireNonNull(id, "id");
    return block(options, context -> sessions.create(config, id, context));
  }

  /**
   * A session that exists.
   *
   * @param id its id
   * @return an object of it
   * @throws AttentionException if the call fails; NOT_FOUND if there is none
   */
  public Session openSession(String id) {
    return openSession(id, CallOptions.DEFAULT);
  }

  /**
   * A session that exists.
   *
   * @param id its id
   * @param options of the call
   * @return an object of it
   * @throws AttentionException if the call fails; NOT_FOUND if there is none
   */
  public Session openSession(String id, CallOptions options) {
    return block(options, context -> sessions.open(id, context));
  }

  /**
   * Tells of a session, and renews its lease.
   *
   * @param id its id
   * @param options of the call
   * @return the answer
   * @throws AttentionException if the call fails; NOT_FOUND if there is none
   */
  public SessionInfo getSession(String id, CallOptions options) {
    return block(options, context -> sessions.info(id, context));
  }

  /**
   * Tells of the caller's sessions, and renews no lease.
   *
   * @return all of them, in the order of their ids
   * @throws AttentionException if the call fails
   */
  public List<SessionInfo> listSessions() {
    return listSessions(CallOptions.DEFAULT);
  }

  /**
   * Tells of the caller's sessions, and renews no lease.
   *
   * @param options of the call, for all pages together
   * @return all of them, in the order of their ids
   * @throws AttentionException if the call fails
   */
  public List<SessionInfo> listSessions(CallOptions options) {
    return block(options, sessions::list);
  }

  /**
   * Ends a session. No error where there is none.
   *
   * @param id its id
   * @param options of the call
   * @throws AttentionException if the call fails
   */
  public void deleteSession(String id, CallOptions options) {
    block(options, context -> sessions.delete(id, 0, context));
  }

  /**
   * Makes new sessions with the tokens of others: all of them or, on an error, none.
   *
   * @param forks 1 to 128; a source may have several targets
   * @param options of the call
   * @return the new sessions, in the order of the forks
   * @throws AttentionException if the call fails
   */
  public List<Session> forkSessions(List<Fork> forks, CallOptions options) {
    List<Fork> all = List.copyOf(forks);
    all.forEach(fork -> checkMine(fork.source()));
    return block(options, context -> sessions.fork(all, context));
  }

  /**
   * Appends to and attends over layers of several sessions, in one message, each item for itself.
   *
   * @param items at most 1024; a layer may be named twice only by items that do not append
   * @return one outcome per item, in their order
   */
  public List<StepOutcome> step(List<StepItem> items) {
    return step(items, CallOptions.DEFAULT);
  }

  /**
   * Appends to and attends over layers of several sessions, in one message, each item for itself.
   *
   * @param items at most 1024; a layer may be named twice only by items that do not append
   * @param options of the call
   * @return one outcome per item, in their order; where the message as a whole failed, all have its
   *     error
   */
  public List<StepOutcome> step(List<StepItem> items, CallOptions options) {
    List<StepItem> all = checked(items);
    return block(options, context -> sessions.step(all, context));
  }

  /**
   * The same without waiting.
   *
   * @param items at most 1024; a layer may be named twice only by items that do not append
   * @param options of the call
   * @return one outcome per item, in their order; to cancel it cancels the call
   */
  public CompletableFuture<List<StepOutcome>> stepAsync(List<StepItem> items, CallOptions options) {
    List<StepItem> all = checked(items);
    return startAsync(options, context -> sessions.step(all, context));
  }

  private List<StepItem> checked(List<StepItem> items) {
    if (items.size() > MOST_STEP_ITEMS) {
      throw new IllegalArgumentException(
          "items: got " + items.size() + ", wanted at most " + MOST_STEP_ITEMS);
    }
    items.forEach(item -> checkMine(item.session));
    return List.copyOf(items);
  }

  private void checkMine(Session session) {
    if (session.client() != this) {
      throw new IllegalArgumentException("session " + session.id() + " is of another client");
    }
  }

  boolean isClosed() {
    return closed;
  }

  /** Makes a call on the calling thread. */
  <T> T block(CallOptions options, Function<CallContext, CompletableFuture<T>> call) {
    CallerExecutor executor = new CallerExecutor();
    CallContext context = newContext(options, executor);
    try {
      return executor.await(call.apply(context), context);
    } finally {
      calls.remove(context);
    }
  }

  /** Makes a call of which the future is handed out. */
  <T> CompletableFuture<T> startAsync(
      CallOptions options, Function<CallContext, CompletableFuture<T>> call) {
    CallContext context = newContext(options, threads.workers());
    CompletableFuture<T> ended;
    try {
      ended = call.apply(context);
    } catch (AttentionException e) {
      ended = CompletableFuture.failedFuture(e);
    }
    return context.handOut(ended.whenComplete((value, error) -> calls.remove(context)));
  }

  private CallContext newContext(CallOptions options, Executor executor) {
    CallContext context =
        new CallContext(
            options.timeoutOr(timeout),
            options.maxAttemptsOr(maxAttempts),
            options.requestId(),
            executor,
            threads.timer());
    calls.add(context);
    if (closed) {
      calls.remove(context);
      throw new IllegalStateException("the client is closed");
    }
    return context;
  }

  /**
   * Ends all calls, which fail with CANCELLED, the connection, and the client's threads. Sessions
   * stay at the server until their leases are over. May be called twice.
   */
  @Override
  public void close() {
    synchronized (this) {
      if (closed) {
        return;
      }
      closed = true;
    }
    AttentionException error =
        AttentionException.of(Status.Code.CANCELLED, "", "the client was closed");
    calls.forEach(context -> context.end(error));
    sessions.close();
    try {
      connection.close(CLOSE_NANOS);
      awaitCalls();
      threads.close(CLOSE_NANOS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  /** Threads that send must have seen that the connection is gone before its thread ends. */
  private void awaitCalls() throws InterruptedException {
    long end = System.nanoTime() + CLOSE_NANOS;
    while (!calls.isEmpty() && System.nanoTime() < end) {
      Thread.sleep(1);
    }
  }

  /** Names the server. Holds no token. */
  @Override
  public String toString() {
    return "AttentionClient " + target;
  }

  /** Collects how a client connects. Not thread-safe. */
  public static final class Builder {
    private final String target;
    private Duration timeout = DEFAULT_TIMEOUT;
    private int maxAttempts = DEFAULT_MAX_ATTEMPTS;
    private boolean tls;
    private Path tlsCa;
    private Path tlsCertificate;
    private Path tlsKey;
    private ChannelCredentials credentials;
    private String token;
    private Path tokenFile;
    private Executor executor;
    boolean allowPlaintextToken;
    int maxReceiveBytes;
    boolean useProxy = true;
    Consumer<ManagedChannelBuilder<?>> channelOptions;

    private Builder(String target) {
      this.target = Objects.requireNonNull(target, "target");
    }

    /**
     * How long a call may take, all its tries together. Default: a minute.
     *
     * @param newTimeout above zero
     * @return this
     */
    public Builder timeout(Duration newTimeout) {
      if (newTimeout.isNegative() || newTimeout.isZero()) {
        throw new IllegalArgumentException("timeout: got " + newTimeout + ", wanted > 0");
      }
      timeout = newTimeout;
      return this;
    }

    /**
     * How often a call is tried. Default: 4.
     *
     * @param attempts at least 1; 1 means that no call is tried again
     * @return this
     */
    public Builder maxAttempts(int attempts) {
      if (attempts < 1) {
        throw new IllegalArgumentException("maxAttempts: got " + attempts + ", wanted >= 1");
      }
      maxAttempts = attempts;
      return this;
    }

    /**
     * Encrypts, and trusts the authorities that Java trusts.
     *
     * @return this
     */
    public Builder tls() {
      tls = true;
      return this;
    }

    /**
     * Encrypts, and trusts the authorities in a file instead.
     *
     * @param ca a PEM file, which is read by {@link #build}
     * @return this
     */
    public Builder tlsCa(Path ca) {
      tls = true;
      tlsCa = Objects.requireNonNull(ca, "tlsCa");
      return this;
    }

    /**
     * Encrypts, and shows a certificate to a server that asks for one.
     *
     * @param certificate a PEM file: the certificate, with its chain
     * @param key a PEM file: its private key, in PKCS#8
     * @return this
     */
    public Builder tlsCertificate(Path certificate, Path key) {
      tls = true;
      tlsCertificate = Objects.requireNonNull(certificate, "certificate");
      tlsKey = Objects.requireNonNull(key, "key");
      return this;
    }

    /**
     * Secures the connection by other means of gRPC's, in place of those above.
     *
     * @param newCredentials such as {@link TlsChannelCredentials}
     * @return this
     */
    public Builder credentials(ChannelCredentials newCredentials) {
      credentials = Objects.requireNonNull(newCredentials, "credentials");
      return this;
    }

    /**
     * Who calls: sent with each call as the header {@code authorization}. No text of the client's
     * holds it.
     *
     * @param newToken up to 4096 letters, digits and {@code -._~+/}, with {@code =} at the end
     * @return this
     */
    public Builder token(String newToken) {
      token = Objects.requireNonNull(newToken, "token");
      return this;
    }

    /**
     * The same from a file, which is read by {@link #build}, and again with a call when the last
     * time is a second ago. One that cannot be read then leaves the last token in use.
     *
     * @param file with the token on one line
     * @return this
     */
    public Builder tokenFile(Path file) {
      tokenFile = Objects.requireNonNull(file, "tokenFile");
      return this;
    }

    /**
     * Whether the token may travel without TLS where others can read it. Default: no; then it goes
     * no further than loopback and Unix sockets, and calls to elsewhere fail with
     * FAILED_PRECONDITION.
     *
     * @param allowed whether it may
     * @return this
     */
    public Builder allowPlaintextToken(boolean allowed) {
      allowPlaintextToken = allowed;
      return this;
    }

    /**
     * The largest answer that is taken. Default: no limit. Set one where the server is not trusted.
     *
     * @param bytes of a message, at least 1; a larger one fails with RESOURCE_EXHAUSTED
     * @return this
     */
    public Builder maxReceiveBytes(int bytes) {
      if (bytes < 1) {
        throw new IllegalArgumentException("maxReceiveBytes: got " + bytes + ", wanted >= 1");
      }
      maxReceiveBytes = bytes;
      return this;
    }

    /**
     * Whether the HTTP proxy is used that the JVM is told of ({@code -Dhttps.proxyHost}). Default:
     * yes. Never for loopback or Unix sockets, nor where a token must not leave the machine.
     *
     * @param whether so
     * @return this
     */
    public Builder useProxy(boolean whether) {
      useProxy = whether;
      return this;
    }

    /**
     * Where answers of asynchronous calls are read, and what depends on their futures goes on.
     * Default: a few daemon threads of the client's.
     *
     * @param newExecutor must run what it is given; the client does not shut it down
     * @return this
     */
    public Builder executor(Executor newExecutor) {
      executor = Objects.requireNonNull(newExecutor, "executor");
      return this;
    }

    /**
     * Anything else that gRPC lets be set, such as {@code overrideAuthority}.
     *
     * @param configure is called by {@link #build}, after the client has set its own
     * @return this
     */
    public Builder configureChannel(Consumer<ManagedChannelBuilder<?>> configure) {
      channelOptions = Objects.requireNonNull(configure, "configure");
      return this;
    }

    /**
     * A client. It connects with its first call.
     *
     * @return a client, to be closed
     * @throws IllegalArgumentException if the options cannot be used: a file that cannot be read,
     *     or a token that would travel in plain text
     */
    public AttentionClient build() {
      return new AttentionClient(this);
    }

    /** Null if there is none. */
    TokenSource tokenSource() {
      if (token != null && tokenFile != null) {
        throw new IllegalArgumentException("token: wanted token or tokenFile, not both");
      }
      if (tokenFile != null) {
        return TokenSource.ofFile(tokenFile, allowPlaintextToken);
      }
      return token == null ? null : TokenSource.of(token, allowPlaintextToken);
    }

    ChannelCredentials credentials() {
      if (credentials != null) {
        return credentials;
      }
      if (!tls) {
        return InsecureChannelCredentials.create();
      }
      TlsChannelCredentials.Builder builder = TlsChannelCredentials.newBuilder();
      if (tlsCa != null) {
        try {
          builder.trustManager(tlsCa.toFile());
        } catch (IOException e) {
          throw new IllegalArgumentException("tlsCa: cannot read " + tlsCa, e);
        }
      }
      if (tlsCertificate != null) {
        try {
          builder.keyManager(tlsCertificate.toFile(), tlsKey.toFile());
        } catch (IOException e) {
          throw new IllegalArgumentException(
              "tlsCertificate: cannot read " + tlsCertificate + " or " + tlsKey, e);
        }
      }
      return builder.build();
    }
  }
}
