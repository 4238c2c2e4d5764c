"""The client. Start here."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from attention_client import (
    arguments,
    connect_failure,
    connection,
    errors,
    proxy,
    targets,
    tensors,
)
from attention_client import attention_pb2 as pb
from attention_client.results import AttentionResult, Capabilities, Timing

_SERVICE = "/attention.v1.AttentionService/"
# protobuf cannot hold more in one message.
_MAX_MESSAGE_BYTES = 2**31 - 1
# Unless the caller says otherwise: of two, gRPC takes the first.
_CHANNEL_OPTIONS = {
    # Answers may be of any size: the caller asked for them.
    "grpc.max_receive_message_length": -1,
    # gRPC's own limit, 8 KiB, is little for the trailers of an error that a
    # proxy has added to.
    "grpc.max_metadata_size": 64 << 10,
}
# Tells the server how large the message is before it is sent, so that it can
# keep memory for it or refuse it.
_REQUEST_BYTES_HEADER = "attention-request-bytes"
_NO_PROXY = ("grpc.enable_http_proxy", 0)


class Client:
    """A connection to one attention server.

    Thread-safe: any number of threads may call at once. It connects with the
    first call, and again by itself after a server was away.

        with Client("127.0.0.1:50051", timeout=10) as client:
            result = client.compute(query, key, value, causal="top_left")
        result.output

    A call that fails, here for a key whose head size is not the query's:

        try:
            client.compute(np.ones((2, 4)), np.ones((3, 8)), np.ones((3, 4)))
        except InvalidArgument as error:
            error.field_violations[0].field      # "key.shape"
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        token: str | None = None,
        token_file: str | os.PathLike | None = None,
        tls: bool = False,
        tls_ca: str | os.PathLike | None = None,
        tls_cert: str | os.PathLike | None = None,
        tls_key: str | os.PathLike | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        allow_plaintext_token: bool = False,
        channel_options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Does not connect yet.

        Plain text, unless one of tls, tls_ca, tls_cert and tls_key or
        credentials is given. The files are PEM, and are read now.

        Args:
            target: an address as gRPC takes it: "host:port", "unix:/path",
                "dns:///name:port".
            timeout: seconds that a call may take unless it says otherwise;
                None is no limit.
            token: who calls; sent with each call as "authorization: Bearer
                TOKEN". Nothing that this package says or shows holds it.
            token_file: instead of token, a file that holds it on one line. It
                is read now, and again with a call when the last time is a
                second ago, so that it may be replaced.
            tls: whether to encrypt, and trust the authorities that gRPC trusts
                by default.
            tls_ca: encrypt, and trust the authorities in this file instead.
            tls_cert, tls_key: the client's own certificate (with its chain)
                and key, for servers that ask for one; both or neither.
            credentials: gRPC's own, in place of the four above.
            allow_plaintext_token: whether the token may travel without TLS
                where others can read it. False: only to loopback addresses
                and Unix sockets, by what gRPC connects to and not by its name,
                and through no HTTP proxy. Anything else is a ValueError here,
                or FailedPrecondition from a call, and nothing is sent.
            channel_options: further gRPC channel arguments. With
                ("grpc.enable_http_proxy", 0) no call goes through the proxy
                that grpc_proxy, https_proxy or http_proxy names; those to
                this machine never do.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: an argument, or what its file holds, cannot be used.
        """
        self._target = arguments.address(target, "target")
        self._timeout = arguments.seconds(timeout, "timeout")
        self._security = connection.Security(
            credentials=arguments.credentials(credentials, "credentials"),
            tls=arguments.flag(tls, "tls")
            or any(file is not None for file in (tls_ca, tls_cert, tls_key)),
            tls_ca=arguments.path(tls_ca, "tls_ca"),
            tls_cert=arguments.path(tls_cert, "tls_cert"),
            tls_key=arguments.path(tls_key, "tls_key"),
            token=connection.token_source(
                arguments.secret(token, "token"),
                arguments.path(token_file, "token_file"),
            ),
            allow_plaintext_token=arguments.flag(
                allow_plaintext_token, "allow_plaintext_token"
            ),
        )
        options = [
            *arguments.channel_options(channel_options, "channel_options"),
            *_CHANNEL_OPTIONS.items(),
        ]
        # No proxy can reach what is on this machine.
        if targets.is_local(self._target):
            options.append(_NO_PROXY)
        self._proxy = (
            ""
            if _NO_PROXY in options or self._security.token_stays_local
            else proxy.proxy_of(self._target)
        )
        connected = connection.connect(self._target, self._security, options)
        self._channel = connected.channel
        self._metadata = connected.metadata
        self._compute = self._method(
            _SERVICE + "ComputeAttention", pb.ComputeAttentionResponse
        )
        self._get_capabilities = self._method(
            _SERVICE + "GetCapabilities", pb.GetCapabilitiesResponse
        )
        self._check = self._method(
            "/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse
        )

    def __enter__(self) -> Client:  # noqa: PYI034
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and cancels running calls. May be repeated."""
        self._channel.close()

    def compute(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        mask: Any = None,
        past_key: Any = None,
        past_value: Any = None,
        valid_lengths: Sequence[int] | None = None,
        query_starts: Sequence[int] | None = None,
        key_starts: Sequence[int] | None = None,
        layout: str | None = None,
        query_heads: int | None = None,
        kv_heads: int | None = None,
        scale: float | None = None,
        softcap: float = 0,
        causal: str | None = None,
        window: tuple[int | None, int | None] | None = None,
        alibi_slopes: Sequence[float] | None = None,
        sinks: Sequence[float] | None = None,
        math_mode: str | None = None,
        softmax_precision: Any = None,
        return_log_sum_exp: bool = False,
        return_scores: str | None = None,
        return_present: bool = False,
        timeout: float | None = None,
    ) -> AttentionResult:
        """softmax(scale * query key^T + bias) value, on the server.

        Letters: B batch, Hq query heads, Hkv key/value heads (Hq is a multiple
        of Hkv), S query length, L new key/value length, P past length,
        T = P + L, D head size of query and key, Dv head size of value.

        Arrays may have any strides and byte order; float32, float16, bfloat16
        (of ml_dtypes) or float64. Lists of numbers become float32.

        Args:
            query, key, value: shape by the layout:
                "matrix" (S, D), (L, D), (L, Dv);
                "packed" (B, S, Hq*D), (B, L, Hkv*D), (B, L, Hkv*Dv);
                "bhsd" (B, Hq, S, D), (B, Hkv, L, D), (B, Hkv, L, Dv);
                "bshd" (B, S, Hq, D), (B, L, Hkv, D), (B, L, Hkv, Dv);
                "ragged" (sum S, Hq, D), (sum L, Hkv, D), (sum L, Hkv, Dv).
                key has the query's type; value may have another.
            mask: bool (True attends) or numbers of any integer or float type,
                which are added to the scores: integers 0 and 1 hide nothing
                (a warning says so), .astype(bool) makes them a mask that does.
                Broadcast to (B, Hq, S, T) by numpy's rules. A last axis
                shorter than T is padded with masked keys.
            past_key, past_value: (B, Hkv, P, D) and (B, Hkv, P, Dv), before
                key and value; both or neither.
            valid_lengths: B numbers in [0, T]; later keys are masked.
            query_starts, key_starts: ragged only, B + 1 numbers each; sequence
                b owns rows [starts[b], starts[b + 1]).
            layout: one of the names above; None is by rank: 2 matrix,
                3 packed, 4 bhsd.
            query_heads, kv_heads: Hq and Hkv; needed with "packed".
            scale: factor of the dot products; None is 1 / sqrt(D).
            softcap: scores become softcap * tanh(score / softcap); 0 is none.
            causal: "top_left" (query i sees keys j <= i + P, PyTorch's and
                ONNX's), "bottom_right" (the last query sees the last key,
                FlashAttention's) or None.
            window: (left, right), how many keys before and after its own
                position a query sees; None or -1 is no bound.
            alibi_slopes: Hq numbers.
            sinks: Hq logits that take part in the softmax's sum.
            math_mode: "reproducible" (same bits on every server; the default)
                or "fast".
            softmax_precision: least type to compute in: "float32", "float64".
            return_log_sum_exp: whether to return log_sum_exp.
            return_scores: a stage to return as scores: "raw", "capped",
                "biased" or "weights".
            return_present: whether to return present_key and present_value.
            timeout: seconds; None is the client's.

        Raises:
            AttentionError: a subclass for each code, see errors.
            TypeError: an argument is of a type that means nothing there: a
                string for a number, a masked or sparse array. The text names
                the argument, what came and what was wanted; so it does for
            ValueError: of the right type, but nothing that can be sent: an
                unknown name, rows of different length.
        """
        limit = arguments.seconds(timeout, "timeout")
        options = pb.AttentionOptions(
            layout=arguments.enum(layout, "layout", pb.Layout),
            query_heads=arguments.whole_number(query_heads, "query_heads"),
            kv_heads=arguments.whole_number(kv_heads, "kv_heads"),
            scale=arguments.number(scale, "scale"),
            softcap=arguments.number(softcap, "softcap"),
            causal=arguments.enum(causal, "causal", pb.Causal),
            alibi_slopes=arguments.numbers(alibi_slopes, "alibi_slopes"),
            sinks=arguments.numbers(sinks, "sinks"),
            math_mode=arguments.enum(math_mode, "math_mode", pb.MathMode),
            return_log_sum_exp=arguments.flag(
                return_log_sum_exp, "return_log_sum_exp"
            ),
            return_scores=arguments.enum(
                return_scores, "return_scores", pb.Scores
            ),
            return_present=arguments.flag(return_present, "return_present"),
        )
        sides = arguments.window(window, "window")
        if sides is not None:
            options.window.CopyFrom(pb.Window(left=sides[0], right=sides[1]))
        if softmax_precision is not None:
            options.softmax_precision = tensors.wire_type(
                softmax_precision, "softmax_precision"
            )
        arrays = {
            "query": query,
            "key": key,
            "value": value,
            "mask": tensors.exact_mask(mask),
            "past_key": past_key,
            "past_value": past_value,
        }
        request = pb.ComputeAttentionRequest(
            valid_lengths=arguments.whole_numbers(
                valid_lengths, "valid_lengths"
            ),
            query_starts=arguments.whole_numbers(query_starts, "query_starts"),
            key_starts=arguments.whole_numbers(key_starts, "key_starts"),
            options=options,
            **{
                name: tensors.to_wire(array, name)
                for name, array in arrays.items()
                if array is not None or name in ("query", "key", "value")
            },
        )
        response = self._call(self._compute, request, limit, announced=True)
        return _result(response)

    def capabilities(self, *, timeout: float | None = None) -> Capabilities:
        """What the server can do, and its limits."""
        response = self._call(
            self._get_capabilities,
            pb.GetCapabilitiesRequest(),
            arguments.seconds(timeout, "timeout"),
        )
        return Capabilities(
            version=response.version,
            simd_target=response.simd_target,
            threads=response.threads,
            data_types=tuple(map(tensors.type_name, response.data_types)),
            math_modes=tuple(
                pb.MathMode.Name(mode)[len("MATH_MODE_") :].lower()
                for mode in response.math_modes
            ),
            max_request_bytes=response.max_request_bytes,
            max_response_bytes=response.max_response_bytes,
            key_block=response.key_block,
            max_head_size=response.max_head_size,
            max_heads=response.max_heads,
            max_batch=response.max_batch,
            max_batch_heads=response.max_batch_heads,
            max_work=response.max_work,
        )

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """The health of a service by its full name, or of the whole server:
        "SERVING" or "NOT_SERVING".

        Raises:
            NotFound: the server has no such service.
        """
        request = health_pb2.HealthCheckRequest(
            service=arguments.text(service, "service")
        )
        response = self._call(
            self._check, request, arguments.seconds(timeout, "timeout")
        )
        return health_pb2.HealthCheckResponse.ServingStatus.Name(
            response.status
        )

    def _method(self, path: str, response: Any) -> grpc.UnaryUnaryMultiCallable:
        return self._channel.unary_unary(
            path, response_deserializer=response.FromString
        )

    def _call(
        self,
        method: Any,
        request: Any,
        timeout: float | None,
        *,
        announced: bool = False,
    ) -> Any:
        # Only once: ByteSize() would serialize too.
        message = request.SerializeToString()
        if len(message) > _MAX_MESSAGE_BYTES:
            raise ValueError(
                f"request: got {len(message)} bytes, wanted at most "
                f"{_MAX_MESSAGE_BYTES}, the largest message of protobuf"
            )
        metadata = self._metadata()
        if announced:
            metadata += ((_REQUEST_BYTES_HEADER, str(len(message))),)
        limit = self._timeout if timeout is None else timeout
        try:
            return method(
                message,
                timeout=None if limit == math.inf else limit,
                metadata=metadata,
            )
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: grpc.RpcError) -> errors.AttentionError:
        if connect_failure.misplaced_token(error):
            return errors.FailedPrecondition(
                grpc.StatusCode.FAILED_PRECONDITION,
                connection.plaintext_token(self._target),
                target=self._target,
            )
        cause = connect_failure.cause(error, self._security)
        return errors.from_rpc_error(error, self._target, cause, self._proxy)


def _result(response: pb.ComputeAttentionResponse) -> AttentionResult:
    fields = (
        "output",
        "log_sum_exp",
        "scores",
        "present_key",
        "present_value",
    )
    timing = response.timing
    return AttentionResult(
        **{field: tensors.from_wire(response, field) for field in fields},
        timing=Timing(
            queue_us=timing.queue_us,
            decode_us=timing.decode_us,
            compute_us=timing.compute_us,
            encode_us=timing.encode_us,
        ),
    )
