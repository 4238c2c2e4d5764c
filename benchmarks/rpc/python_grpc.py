"""grpcio and generated classes with bytes fields: what one writes first."""

from concurrent import futures

import grpc
import numpy as np

messages, services = grpc.protos_and_services("benchmarks/rpc/plain.proto")

UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
THREADS = 8


def array_of(data, shape):
    return np.frombuffer(data, np.float32).reshape(shape)


class Attention(services.AttentionServicer):
    def __init__(self, attend):
        self._attend = attend

    def Compute(self, request, context):
        output = self._attend(
            array_of(request.query, request.query_shape),
            array_of(request.key, request.key_shape),
            array_of(request.value, request.key_shape),
            request.causal,
        )
        return messages.Response(output=output.tobytes())


def serve(attend, listening):
    server = grpc.server(futures.ThreadPoolExecutor(THREADS), options=UNLIMITED)
    services.add_AttentionServicer_to_server(Attention(attend), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    listening(f"127.0.0.1:{port}")
    server.wait_for_termination()


class Caller:
    def __init__(self, address):
        channel = grpc.insecure_channel(address, UNLIMITED)
        self._stub = services.AttentionStub(channel)

    def prepare(self, query, key, value, causal):
        def call():
            request = messages.Request(
                query_shape=query.shape,
                key_shape=key.shape,
                causal=causal,
                query=query.tobytes(),
                key=key.tobytes(),
                value=value.tobytes(),
            )
            answer = self._stub.Compute(request)
            return array_of(answer.output, query.shape)

        return call
