"""A server that answers as it is told to: ./README.md says what for.

    PYTHONPATH=tests build/venv/bin/python -m polyglot.misbehaving_server

prints "listening on HOST:PORT" and "listening on http://HOST:PORT", and ends when
standard input does. The token of a call, NAME.NONCE, chooses the case of
tests/vectors/retries.json whose `replies` it gets, one after another, the last
one again and again; only calls of the case's method get them, and the others
are answered well.
"""

import json
import sys
import threading
import time
import urllib.parse
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from attention_client import attention_pb2 as pb
from attention_client import session_pb2

CASES = {
    case["name"]: case
    for case in json.loads(
        (Path(__file__).parents[1] / "vectors/retries.json").read_text()
    )["cases"]
}
# Seconds that a call hangs if its client does not end it.
LONGEST_HANG = 30


class Attempts:
    """The calls of each token, and how often its case was asked."""

    def __init__(self):
        self._lock = threading.Lock()
        self._of = {}

    def add(self, token, method, request_id):
        """The reply, of the case that the token names."""
        name = token.rpartition(".")[0]
        case = CASES.get(name)
        with self._lock:
            calls = self._of.setdefault(token, [])
            seen = sum(call["method"] == method for call in calls)
            calls.append(
                {
                    "method": method,
                    "at": time.monotonic(),
                    "request_id": request_id,
                }
            )
        if case is None or case["method"] != method:
            return {"ok": True}
        return case["replies"][min(seen, len(case["replies"]) - 1)]

    def of(self, token):
        """For people and programs: milliseconds count from the first call."""
        with self._lock:
            calls = list(self._of.get(token, []))
        return [
            {
                "method": call["method"],
                "ms": 1000 * (call["at"] - calls[0]["at"]),
                "request_id": call["request_id"],
            }
            for call in calls
        ]


def status_of(reply):
    """The google.rpc.Status of a reply that is an error."""
    code = grpc.StatusCode[reply["code"]]
    status = status_pb2.Status(
        code=code.value[0], message=f"{reply['code']}, as the test asks"
    )

    def add(detail):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)

    if "reason" in reply:
        info = error_details_pb2.ErrorInfo(
            reason=reply["reason"], domain=reply.get("domain", "attention")
        )
        if "length" in reply:
            info.metadata["length"] = str(reply["length"])
        add(info)
    if "retry_delay_ms" in reply:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(reply["retry_delay_ms"])
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    if "retry_delay_s" in reply:
        delay = duration_pb2.Duration(seconds=reply["retry_delay_s"])
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def result_of(reply):
    """The same of an item of a Step message."""
    status = status_of(reply)
    return session_pb2.StepResult(
        code=status.code,
        message=status.message,
        status_details=status.SerializeToString(),
    )


def spoil(answer, reply):
    """Gives the answer's output one axis more, if that is the reply."""
    if reply.get("malformed"):
        answer.output.shape.append(1)
    return answer


def fail(context, reply):
    status = status_of(reply)
    trailers = []
    if status.details:
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    if "pushback" in reply:
        trailers.append(("grpc-retry-pushback-ms", reply["pushback"]))
    context.set_trailing_metadata(trailers)
    context.abort(grpc.StatusCode[reply["code"]], status.message)


def token_of(context):
    headers = dict(context.invocation_metadata())
    return headers.get("authorization", "").removeprefix("Bearer ")


def hang(context):
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(LONGEST_HANG)
    context.abort(grpc.StatusCode.UNKNOWN, "nobody ended this call")


class Sessions:
    """Answers of calls that go well. Sessions are not kept: each has the tokens
    that a request expects."""

    @staticmethod
    def session(request):
        session = session_pb2.Session(id=request.id or "chosen", incarnation=7)
        config = getattr(request, "config", None)
        if config is None:
            config = session_pb2.SessionConfig(kv_heads=2, head_size=16)
        session.config.CopyFrom(config)
        session.config.num_layers = max(session.config.num_layers, 1)
        session.config.lease.seconds = 60
        length = getattr(request, "length", 0)
        session.lengths.extend([length] * session.config.num_layers)
        return session

    @staticmethod
    def tokens(item):
        return item.key.shape[1] if item.key.shape else 0

    def create(self, request):
        return session_pb2.CreateSessionResponse(session=self.session(request))

    def get(self, request):
        return session_pb2.GetSessionResponse(session=self.session(request))

    def listed(self, _):
        return session_pb2.ListSessionsResponse()

    def delete(self, _):
        return session_pb2.DeleteSessionResponse()

    def truncate(self, request):
        return session_pb2.TruncateSessionResponse(
            session=self.session(request)
        )

    def fork(self, request):
        made = session_pb2.ForkSessionsResponse()
        for number, fork in enumerate(request.forks):
            wanted = session_pb2.GetSessionRequest(
                id=fork.target or f"fork-{number}"
            )
            made.sessions.append(self.session(wanted))
        return made

    def append(self, request):
        return session_pb2.AppendKeyValuesResponse(
            length=request.expected_length + self.tokens(request)
        )

    @staticmethod
    def attend(request):
        return session_pb2.AttendResponse(
            output=request.query, length=request.expected_length
        )

    def step(self, request):
        answer = session_pb2.StepResponse()
        for item in request.items:
            result = answer.results.add(
                length=item.expected_length + self.tokens(item)
            )
            if item.HasField("query"):
                result.output.CopyFrom(item.query)
        return answer


def compute(request):
    """The query, as if it were the answer."""
    return pb.ComputeAttentionResponse(output=request.query)


def stream(requests):
    """The same of StreamAttention, once all keys are there."""
    query = None
    for request in requests:
        if request.HasField("header"):
            query = request.header.query
    yield pb.StreamAttentionResponse(output=query)
    yield pb.StreamAttentionResponse(timing=pb.Timing())


def capabilities(_):
    return pb.GetCapabilitiesResponse(
        max_request_bytes=1 << 30, max_response_bytes=1 << 30
    )


def healthy(_):
    return health_pb2.HealthCheckResponse(
        status=health_pb2.HealthCheckResponse.SERVING
    )


class Handlers(grpc.GenericRpcHandler):
    def __init__(self, attempts):
        self._attempts = attempts
        sessions = Sessions()
        attention = "/attention.v1.AttentionService/"
        session = "/attention.v1.SessionService/"
        health = "/grpc.health.v1.Health/"
        self._of = {
            attention + "StreamAttention": self._stream(),
            session + "Step": self._step(sessions),
        }
        for path, request, answer in (
            (
                attention + "ComputeAttention",
                pb.ComputeAttentionRequest,
                compute,
            ),
            (
                attention + "GetCapabilities",
                pb.GetCapabilitiesRequest,
                capabilities,
            ),
            (health + "Check", health_pb2.HealthCheckRequest, healthy),
            (
                session + "CreateSession",
                session_pb2.CreateSessionRequest,
                sessions.create,
            ),
            (
                session + "GetSession",
                session_pb2.GetSessionRequest,
                sessions.get,
            ),
            (
                session + "ListSessions",
                session_pb2.ListSessionsRequest,
                sessions.listed,
            ),
            (
                session + "DeleteSession",
                session_pb2.DeleteSessionRequest,
                sessions.delete,
            ),
            (
                session + "TruncateSession",
                session_pb2.TruncateSessionRequest,
                sessions.truncate,
            ),
            (
                session + "ForkSessions",
                session_pb2.ForkSessionsRequest,
                sessions.fork,
            ),
            (
                session + "AppendKeyValues",
                session_pb2.AppendKeyValuesRequest,
                sessions.append,
            ),
            (session + "Attend", session_pb2.AttendRequest, sessions.attend),
        ):
            self._of[path] = self._unary(path, request, answer)

    def service(self, handler_call_details):
        return self._of.get(handler_call_details.method)

    def _reply(self, path, context, request_id=""):
        method = path.rpartition("/")[2]
        return self._attempts.add(token_of(context), method, request_id)

    def _unary(self, path, request_type, answer):
        def call(request, context):
            reply = self._reply(
                path, context, getattr(request, "request_id", "")
            )
            if "hang" in reply:
                hang(context)
            if "ok" not in reply:
                fail(context, reply)
            return spoil(answer(request), reply)

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=request_type.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _stream(self):
        def call(requests, context):
            # As a try of ComputeAttention, in whose place it comes.
            reply = self._reply("ComputeAttention", context)
            if "hang" in reply:
                hang(context)
            if "ok" not in reply:
                fail(context, reply)
            yield from stream(requests)

        return grpc.stream_stream_rpc_method_handler(
            call,
            request_deserializer=pb.StreamAttentionRequest.FromString,
            response_serializer=pb.StreamAttentionResponse.SerializeToString,
        )

    def _step(self, sessions):
        def call(requests, context):
            for request in requests:
                ids = ",".join(item.request_id for item in request.items)
                # A step without queries comes in the place of an append.
                appends = not any(
                    item.HasField("query") for item in request.items
                )
                reply = self._reply(
                    "AppendKeyValues" if appends else "Step", context, ids
                )
                if "hang" in reply:
                    hang(context)
                if appends and "reason" in reply:
                    # What is said of it is said of the item.
                    reply = {"items": [reply]}
                if "code" in reply:
                    fail(context, reply)
                answer = sessions.step(request)
                for result, error in zip(
                    answer.results, reply.get("items", []), strict=False
                ):
                    if error:
                        result.CopyFrom(result_of(error))
                spoil(answer.results[0], reply)
                yield answer

        return grpc.stream_stream_rpc_method_handler(
            call,
            request_deserializer=session_pb2.StepRequest.FromString,
            response_serializer=session_pb2.StepResponse.SerializeToString,
        )


def http_server(attempts):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            token = urllib.parse.parse_qs(url.query).get("token", [""])[0]
            known = url.path == "/attempts"
            body = json.dumps(attempts.of(token) if known else []).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def main():
    attempts = Attempts()
    server = grpc.server(
        futures.ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 0)]
    )
    server.add_generic_rpc_handlers([Handlers(attempts)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    http = http_server(attempts)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    print(f"listening on http://127.0.0.1:{http.server_port}", flush=True)
    sys.stdin.read()
    http.shutdown()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
