package io.github.attentionservice;

import com.google.protobuf.CodedInputStream;
import com.google.protobuf.ExtensionRegistryLite;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.MessageLite;
import com.google.protobuf.Parser;
import com.google.protobuf.UnsafeByteOperations;
import io.github.attentionservice.proto.attention.AppendKeyValuesResponse;
import io.github.attentionservice.proto.attention.ComputeAttentionResponse;
import io.github.attentionservice.proto.attention.CreateSessionRequest;
import io.github.attentionservice.proto.attention.CreateSessionResponse;
import io.github.attentionservice.proto.attention.DeleteSessionRequest;
import io.github.attentionservice.proto.attention.DeleteSessionResponse;
import io.github.attentionservice.proto.attention.ForkSessionsRequest;
import io.github.attentionservice.proto.attention.ForkSessionsResponse;
import io.github.attentionservice.proto.attention.GetCapabilitiesRequest;
import io.github.attentionservice.proto.attention.GetCapabilitiesResponse;
import io.github.attentionservice.proto.attention.GetSessionRequest;
import io.github.attentionservice.proto.attention.GetSessionResponse;
import io.github.attentionservice.proto.attention.ListSessionsRequest;
import io.github.attentionservice.proto.attention.ListSessionsResponse;
import io.github.attentionservice.proto.attention.StepResponse;
import io.github.attentionservice.proto.attention.StreamAttentionResponse;
import io.github.attentionservice.proto.attention.TruncateSessionRequest;
import io.github.attentionservice.proto.attention.TruncateSessionResponse;
import io.github.attentionservice.proto.grpc.health.HealthCheckRequest;
import io.github.attentionservice.proto.grpc.health.HealthCheckResponse;
import io.grpc.KnownLength;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import java.io.IOException;
import java.io.InputStream;

/** The calls of the service. Those with tensors send a {@link WireMessage}. */
final class Methods {
  private static final String ATTENTION = "attention.v1.AttentionService";
  private static final String SESSIONS = "attention.v1.SessionService";

  static final MethodDescriptor<WireMessage, ComputeAttentionResponse> COMPUTE =
      withTensors(
          MethodType.UNARY, ATTENTION, "ComputeAttention", ComputeAttentionResponse.parser());
  static final MethodDescriptor<WireMessage, StreamAttentionResponse> STREAM =
      withTensors(
          MethodType.BIDI_STREAMING,
          ATTENTION,
          "StreamAttention",
          StreamAttentionResponse.parser());
  static final MethodDescriptor<GetCapabilitiesRequest, GetCapabilitiesResponse> CAPABILITIES =
      small(
          ATTENTION,
          "GetCapabilities",
          GetCapabilitiesRequest.parser(),
          GetCapabilitiesResponse.parser());
  static final MethodDescriptor<HealthCheckRequest, HealthCheckResponse> HEALTH =
      small(
          "grpc.health.v1.Health",
          "Check",
          HealthCheckRequest.parser(),
          HealthCheckResponse.parser());

  static final MethodDescriptor<CreateSessionRequest, CreateSessionResponse> CREATE =
      small(
          SESSIONS, "CreateSession", CreateSessionRequest.parser(), CreateSessionResponse.parser());
  static final MethodDescriptor<GetSessionRequest, GetSessionResponse> GET =
      small(SESSIONS, "GetSession", GetSessionRequest.parser(), GetSessionResponse.parser());
  static final MethodDescriptor<ListSessionsRequest, ListSessionsResponse> LIST =
      small(SESSIONS, "ListSessions", ListSessionsRequest.parser(), ListSessionsResponse.parser());
  static final MethodDescriptor<DeleteSessionRequest, DeleteSessionResponse> DELETE =
      small(
          SESSIONS, "DeleteSession", DeleteSessionRequest.parser(), DeleteSessionResponse.parser());
  static final MethodDescriptor<ForkSessionsRequest, ForkSessionsResponse> FORK =
      small(SESSIONS, "ForkSessions", ForkSessionsRequest.parser(), ForkSessionsResponse.parser());
  static final MethodDescriptor<TruncateSessionRequest, TruncateSessionResponse> TRUNCATE =
      small(
          SESSIONS,
          "TruncateSession",
          TruncateSessionRequest.parser(),
          TruncateSessionResponse.parser());
  static final MethodDescriptor<WireMessage, AppendKeyValuesResponse> APPEND =
      withTensors(MethodType.UNARY, SESSIONS, "AppendKeyValues", AppendKeyValuesResponse.parser());
  static final MethodDescriptor<WireMessage, StepResponse> STEP =
      withTensors(MethodType.BIDI_STREAMING, SESSIONS, "Step", StepResponse.parser());

  private Methods() {}

  private static <R extends MessageLite> MethodDescriptor<WireMessage, R> withTensors(
      MethodType type, String service, String method, Parser<R> answer) {
    return MethodDescriptor.<WireMessage, R>newBuilder()
        .setType(type)
        .setFullMethodName(MethodDescriptor.generateFullMethodName(service, method))
        .setRequestMarshaller(new Outgoing())
        .setResponseMarshaller(new Message<>(answer))
        .build();
  }

  private static <Q extends MessageLite, R extends MessageLite> MethodDescriptor<Q, R> small(
      String service, String method, Parser<Q> request, Parser<R> answer) {
    return MethodDescriptor.<Q, R>newBuilder()
        .setType(MethodType.UNARY)
        .setFullMethodName(MethodDescriptor.generateFullMethodName(service, method))
        .setRequestMarshaller(new Message<>(request))
        .setResponseMarshaller(new Message<>(answer))
        .build();
  }

  private static final class Outgoing implements MethodDescriptor.Marshaller<WireMessage> {
    @Override
    public InputStream stream(WireMessage message) {
      return message.stream();
    }

    @Override
    public WireMessage parse(InputStream stream) {
      throw new UnsupportedOperationException("a client reads no requests");
    }
  }

  /** Reads a message into one array, to which its bytes fields refer. */
  private record Message<T extends MessageLite>(Parser<T> parser)
      implements MethodDescriptor.Marshaller<T> {
    @Override
    public InputStream stream(T message) {
      return message.toByteString().newInput();
    }

    @Override
    public T parse(InputStream stream) {
      try {
        CodedInputStream in = UnsafeByteOperations.unsafeWrap(read(stream)).newCodedInput();
        in.enableAliasing(true);
        T message = parser.parseFrom(in, ExtensionRegistryLite.getEmptyRegistry());
        in.checkLastTagWas(0);
        return message;
      } catch (InvalidProtocolBufferException e) {
        throw Status.INTERNAL
            .withDescription("malformed answer: " + e.getMessage())
            .withCause(e)
            .asRuntimeException();
      } catch (IOException e) {
        throw Status.INTERNAL
            .withDescription("the answer could not be read")
            .withCause(e)
            .asRuntimeException();
      }
    }

    private static byte[] read(InputStream stream) throws IOException {
      if (!(stream instanceof KnownLength)) {
        return stream.readAllBytes();
      }
      byte[] bytes = new byte[stream.available()];
      int read = stream.readNBytes(bytes, 0, bytes.length);
      if (read != bytes.length) {
        throw new IOException("got " + read + " bytes, wanted " + bytes.length);
      }
      return bytes;
    }
  }
}
