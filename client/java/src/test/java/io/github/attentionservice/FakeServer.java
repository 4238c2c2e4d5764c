package io.github.attentionservice;

import com.google.protobuf.MessageLite;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerMethodDefinition;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.StatusProto;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** A gRPC server that answers with the bytes that a test gives it. */
final class FakeServer implements AutoCloseable {
  /** One call. */
  interface Handler {
    /** Called with each message; {@code null} once the client has ended its side. */
    void message(Call call, byte[] message);

    default void started(Call call) {}

    default void cancelled(Call call) {}
  }

  static final class Call {
    final Metadata headers;
    int messages;
    private final ServerCall<byte[], byte[]> call;

    Call(ServerCall<byte[], byte[]> call, Metadata headers) {
      this.call = call;
      this.headers = headers;
    }

    String header(String name) {
      return headers.get(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER));
    }

    void send(MessageLite message) {
      send(message.toByteArray());
    }

    void send(byte[] message) {
      call.sendMessage(message);
    }

    void close(Status status, Metadata trailers) {
      call.close(status, trailers);
    }

    void ok() {
      close(Status.OK, new Metadata());
    }

    /** With ErrorInfo, if there is a reason. */
    void fail(Status.Code code, String reason) {
      var status = com.google.rpc.Status.newBuilder().setCode(code.value()).setMessage("as told");
      if (!reason.isEmpty()) {
        status.addDetails(
            com.google.protobuf.Any.pack(
                com.google.rpc.ErrorInfo.newBuilder()
                    .setReason(reason)
                    .setDomain("attention")
                    .build()));
      }
      var exception = StatusProto.toStatusException(status.build());
      close(exception.getStatus(), exception.getTrailers());
    }
  }

  private static final MethodDescriptor.Marshaller<byte[]> BYTES =
      new MethodDescriptor.Marshaller<>() {
        @Override
        public InputStream stream(byte[] value) {
          return new ByteArrayInputStream(value);
        }

        @Override
        public byte[] parse(InputStream stream) {
          try {
            return stream.readAllBytes();
          } catch (IOException e) {
            throw new UncheckedIOException(e);
          }
        }
      };

  private final Map<String, Handler> handlers = new ConcurrentHashMap<>();
  private final ExecutorService executor = Executors.newCachedThreadPool();
  private final Server server;

  FakeServer() throws IOException {
    server =
        NettyServerBuilder.forAddress(
                new InetSocketAddress(InetAddress.getLoopbackAddress(), 0),
                InsecureServerCredentials.create())
            .maxInboundMessageSize(Integer.MAX_VALUE)
            .executor(executor)
            .fallbackHandlerRegistry(
                new io.grpc.HandlerRegistry() {
                  @Override
                  public ServerMethodDefinition<?, ?> lookupMethod(
                      String method, String authority) {
                    Handler handler = handlers.get(method.substring(method.indexOf('/') + 1));
                    return handler == null ? null : definition(method, handler);
                  }
                })
            .build()
            .start();
  }

  /** By the method's name, without its service. */
  FakeServer on(String method, Handler handler) {
    handlers.put(method, handler);
    return this;
  }

  String address() {
    return "127.0.0.1:" + server.getPort();
  }

  private static ServerMethodDefinition<byte[], byte[]> definition(String method, Handler handler) {
    MethodDescriptor<byte[], byte[]> descriptor =
        MethodDescriptor.<byte[], byte[]>newBuilder()
            .setType(MethodDescriptor.MethodType.BIDI_STREAMING)
            .setFullMethodName(method)
            .setRequestMarshaller(BYTES)
            .setResponseMarshaller(BYTES)
            .build();
    ServerCallHandler<byte[], byte[]> calls =
        (grpcCall, headers) -> {
          Call call = new Call(grpcCall, headers);
          grpcCall.sendHeaders(new Metadata());
          grpcCall.request(1);
          handler.started(call);
          return new ServerCall.Listener<>() {
            @Override
            public void onMessage(byte[] message) {
              ++call.messages;
              handler.message(call, message);
              grpcCall.request(1);
            }

            @Override
            public void onHalfClose() {
              handler.message(call, null);
            }

            @Override
            public void onCancel() {
              handler.cancelled(call);
            }
          };
        };
    return ServerMethodDefinition.create(descriptor, calls);
  }

  @Override
  public void close() {
    server.shutdownNow();
    try {
      server.awaitTermination(5, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
    executor.shutdownNow();
  }
}
