"""A server in this process that answers as a test says."""

from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health_pb2

from attention_client import Client
from attention_client import attention_pb2 as pb
from attention_client import session_pb2 as session_pb

METHODS = {
    "attention.v1.AttentionService": {
        "ComputeAttention": pb.ComputeAttentionRequest,
        "GetCapabilities": pb.GetCapabilitiesRequest,
    },
    "attention.v1.SessionService": {
        "CreateSession": session_pb.CreateSessionRequest,
        "GetSession": session_pb.GetSessionRequest,
        "ListSessions": session_pb.ListSessionsRequest,
        "DeleteSession": session_pb.DeleteSessionRequest,
        "ForkSessions": session_pb.ForkSessionsRequest,
        "TruncateSession": session_pb.TruncateSessionRequest,
        "AppendKeyValues": session_pb.AppendKeyValuesRequest,
        "Attend": session_pb.AttendRequest,
        "Step": session_pb.StepRequest,
    },
    "grpc.health.v1.Health": {"Check": health_pb2.HealthCheckRequest},
}


class FakeServer:
    """`answers` maps a method's name to a function of (request, context), and
    `serializers` to one that makes bytes of what that returns, if it is not a
    message; it keeps the last request and context. The answer of Step takes and
    makes an iterator."""

    def __init__(self, address="127.0.0.1:0", credentials=None):
        self.answers = {}
        self.serializers = {}
        self.request = None
        self.context = None
        self._server = grpc.server(
            futures.ThreadPoolExecutor(4),
            options=[("grpc.max_receive_message_length", -1)],
        )
        for service, methods in METHODS.items():
            handlers = {
                name: self._handler(name, request_type)
                for name, request_type in methods.items()
            }
            self._server.add_generic_rpc_handlers(
                [grpc.method_handlers_generic_handler(service, handlers)]
            )
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self):
        self._server.stop(None).wait()

    def _handler(self, name, request_type):
        def handle(request, context):
            self.request = request
            self.context = context
            return self.answers[name](request, context)

        kind = (
            grpc.stream_stream_rpc_method_handler
            if name == "Step"
            else grpc.unary_unary_rpc_method_handler
        )
        return kind(
            handle,
            request_deserializer=request_type.FromString,
            response_serializer=lambda response: self.serializers.get(
                name, lambda message: message.SerializeToString()
            )(response),
        )


@pytest.fixture(params=["native", "pure"], autouse=True)
def core(request, monkeypatch):
    """Each test runs twice: the clients that it makes send their calls by this
    core. Fails where the native one was not built (./dev test python)."""
    monkeypatch.setenv("ATTENTION_CLIENT_CORE", request.param)
    return request.param


@pytest.fixture
def client(core, server_address):
    """A client of the real server."""
    with Client(server_address, timeout=60) as client:
        yield client


@pytest.fixture
def start_server():
    """Starts servers, with the arguments of FakeServer, that end with the
    test."""
    servers = []

    def start(*arguments):
        servers.append(FakeServer(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(start_server):
    return start_server()


@pytest.fixture
def fake_client(server):
    with Client(server.address, timeout=60) as client:
        yield client
