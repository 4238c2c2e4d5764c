package io.github.attentionservice;

import io.grpc.ChannelCredentials;
import io.grpc.ClientCall;
import io.grpc.Grpc;
import io.grpc.HttpConnectProxiedSocketAddress;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.ManagedChannelRegistry;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ProxiedSocketAddress;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.socket.nio.NioSocketChannel;
import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.ProxySelector;
import java.net.SocketAddress;
import java.net.URI;
import java.net.URISyntaxException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;

/** A channel to the server, and what each call on it carries. */
final class Connection {
  static final Metadata.Key<String> REQUEST_BYTES =
      Metadata.Key.of("attention-request-bytes", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> MAX_RESPONSE_BYTES =
      Metadata.Key.of("attention-max-response-bytes", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> REQUEST_ID =
      Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER);

  private static final int MOST_HEADER_BYTES = 64 << 10;
  // Where it starts; Netty widens it for connections that are fast and long.
  private static final int FIRST_WINDOW_BYTES = 4 << 20;
  // What a stream holds ready while the connection takes what came before.
  private static final int READY_BYTES = 4 << 20;
  private static final long KEEPALIVE_SECONDS = 30;
  private static final long KEEPALIVE_TIMEOUT_SECONDS = 20;

  private final ManagedChannel channel;
  // Null: no token.
  private final TokenSource token;
  // 0: no limit.
  private final int maxReceiveBytes;

  Connection(String target, AttentionClient.Builder options, ClientThreads threads) {
    this.token = options.tokenSource();
    this.maxReceiveBytes = options.maxReceiveBytes;
    if (!Targets.canBeOne(target)) {
      throw new IllegalArgumentException(
          "target: got \"" + target + "\", wanted an address such as 127.0.0.1:50051");
    }
    ChannelCredentials credentials = options.credentials();
    boolean plaintext = credentials instanceof InsecureChannelCredentials;
    boolean mustNotLeave = token != null && plaintext && !options.allowPlaintextToken;
    if (mustNotLeave && Targets.isElsewhere(target)) {
      throw new IllegalArgumentException(
          "the token would travel in plain text to "
              + target
              + ": use TLS, or allowPlaintextToken");
    }
    ManagedChannelBuilder<?> builder;
    try {
      builder = Grpc.newChannelBuilder(target, credentials);
    } catch (ManagedChannelRegistry.ProviderNotFoundException e) {
      // A name that gRPC does not know, or files that hold no certificate or key.
      throw new IllegalArgumentException(target + ": " + e.getMessage(), e);
    }
    if (builder instanceof NettyChannelBuilder netty) {
      netty.eventLoopGroup(threads.io()).initialFlowControlWindow(FIRST_WINDOW_BYTES);
      if (!target.startsWith("unix:")) {
        netty.channelType(
            threads.isEpoll() ? EpollSocketChannel.class : NioSocketChannel.class,
            InetSocketAddress.class);
      }
    }
    boolean useProxy = options.useProxy && !mustNotLeave;
    builder
        .executor(threads.workers())
        .offloadExecutor(threads.workers())
        .maxInboundMessageSize(maxReceiveBytes == 0 ? Integer.MAX_VALUE : maxReceiveBytes)
        .maxInboundMetadataSize(MOST_HEADER_BYTES)
        .keepAliveTime(KEEPALIVE_SECONDS, TimeUnit.SECONDS)
        .keepAliveTimeout(KEEPALIVE_TIMEOUT_SECONDS, TimeUnit.SECONDS)
        .keepAliveWithoutCalls(false)
        // The client tries again by itself.
        .disableRetry()
        .disableServiceConfigLookUp()
        .proxyDetector(address -> useProxy ? proxyFor(address) : null)
        .userAgent(AttentionClient.userAgent());
    if (options.channelOptions != null) {
      options.channelOptions.accept(builder);
    }
    this.channel = builder.build();
  }

  /** As the JVM is told to: `-Dhttps.proxyHost`. Never for loopback. */
  private static ProxiedSocketAddress proxyFor(SocketAddress address) {
    if (!(address instanceof InetSocketAddress server) || Targets.isLoopback(server)) {
      return null;
    }
    ProxySelector selector = ProxySelector.getDefault();
    if (selector == null) {
      return null;
    }
    URI uri;
    try {
      uri = new URI("https", null, server.getHostString(), server.getPort(), null, null, null);
    } catch (URISyntaxException e) {
      return null;
    }
    for (Proxy proxy : selector.select(uri)) {
      if (proxy.type() == Proxy.Type.HTTP && proxy.address() instanceof InetSocketAddress at) {
        InetSocketAddress resolved =
            at.isUnresolved() ? new InetSocketAddress(at.getHostString(), at.getPort()) : at;
        return HttpConnectProxiedSocketAddress.newBuilder()
            .setProxyAddress(resolved)
            .setTargetAddress(server)
            .build();
      }
    }
    return null;
  }

  /** Of an answer; 0: no limit. */
  int maxReceiveBytes() {
    return maxReceiveBytes;
  }

  /** A connection that failed is tried again at once by the next call, not after gRPC's pause. */
  void forgetFailure() {
    channel.resetConnectBackoff();
  }

  Metadata headers(CallContext context) {
    Metadata headers = new Metadata();
    if (maxReceiveBytes > 0) {
      headers.put(MAX_RESPONSE_BYTES, Integer.toString(maxReceiveBytes));
    }
    if (context != null && context.requestId() != null) {
      headers.put(REQUEST_ID, context.requestId());
    }
    return headers;
  }

  /** A call of which the callbacks run on this executor; no deadline if there is no context. */
  <Q, R> ClientCall<Q, R> newCall(
      MethodDescriptor<Q, R> method, Executor executor, CallContext context) {
    io.grpc.CallOptions options =
        io.grpc.CallOptions.DEFAULT
            .withExecutor(executor)
            .withOnReadyThreshold(READY_BYTES)
            .withCallCredentials(token);
    if (context != null) {
      options =
          options.withDeadlineAfter(Math.max(context.remainingNanos(), 0), TimeUnit.NANOSECONDS);
    }
    return channel.newCall(method, options);
  }

  /** One try of a call with one request and one answer. */
  <Q, R> CompletableFuture<R> unary(
      MethodDescriptor<Q, R> method, Q request, Metadata headers, CallContext context) {
    ClientCall<Q, R> call = newCall(method, context.executor(), context);
    UnaryListener<R> listener = new UnaryListener<>();
    context.underWay(
        error -> {
          listener.endedWith = error;
          call.cancel(error.description(), null);
        });
    try {
      call.start(listener, headers);
      call.request(2);
      call.sendMessage(request);
      call.halfClose();
    } catch (RuntimeException | Error e) {
      call.cancel("the request could not be sent", e);
      AttentionException endedWith = listener.endedWith;
      listener.answered.completeExceptionally(endedWith == null ? e : endedWith);
    }
    return listener.answered;
  }

  /** The error of a call that has ended, in the client's own words if it ended it. */
  static AttentionException errorOf(
      Status status, Metadata trailers, AttentionException endedWith) {
    return endedWith != null && status.getCode() == Status.Code.CANCELLED
        ? endedWith
        : AttentionException.of(status, trailers);
  }

  private static final class UnaryListener<R> extends ClientCall.Listener<R> {
    final CompletableFuture<R> answered = new CompletableFuture<>();
    volatile AttentionException endedWith;
    private R answer;

    @Override
    public void onMessage(R message) {
      answer = message;
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      if (!status.isOk()) {
        answered.completeExceptionally(errorOf(status, trailers, endedWith));
      } else if (answer == null) {
        answered.completeExceptionally(AttentionException.malformed("no message"));
      } else {
        answered.complete(answer);
      }
    }
  }

  /** Ends all calls, and waits for the connection to be gone. */
  void close(long timeoutNanos) throws InterruptedException {
    channel.shutdownNow();
    channel.awaitTermination(timeoutNanos, TimeUnit.NANOSECONDS);
  }
}
