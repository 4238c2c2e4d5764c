"""The client. Start here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

from attention_client import attention_pb2 as pb
from attention_client import errors, tensors
from attention_client.results import AttentionResult, Capabilities, Timing

_SERVICE = "/attention.v1.AttentionService/"
# protobuf cannot hold more in one message.
_MAX_MESSAGE_BYTES = 2**31 - 1
# Tells the server how large the message is before it is sent, so that it can
# keep memory for it or refuse it.
_REQUEST_BYTES_HEADER = "attention-request-bytes"


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
        credentials: grpc.ChannelCredentials | None = None,
        channel_options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Does not connect yet.

        Args:
            target: an address as gRPC takes it: "host:port", "unix:/path",
                "dns:///name:port".
            timeout: seconds that a call may take unless it says otherwise;
                None is no limit.
            credentials: for TLS; None is plain text.
            channel_options: further gRPC channel arguments.
        """
        self._target = target
        self._timeout = timeout
        # Answers may be of any size: the caller asked for them.
        options = [("grpc.max_receive_message_length", -1), *channel_options]
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options)
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
            TypeError, ValueError: an argument cannot be put into a request.
        """
        options = pb.AttentionOptions(
            layout=_enum(pb.Layout, "layout", layout),
            query_heads=query_heads or 0,
            kv_heads=kv_heads or 0,
            scale=scale,
            softcap=softcap,
            causal=_enum(pb.Causal, "causal", causal),
            window=_window(window),
            alibi_slopes=_numbers(alibi_slopes),
            sinks=_numbers(sinks),
            math_mode=_enum(pb.MathMode, "math_mode", math_mode),
            return_log_sum_exp=return_log_sum_exp,
            return_scores=_enum(pb.Scores, "return_scores", return_scores),
            return_present=return_present,
        )
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
            valid_lengths=_numbers(valid_lengths),
            query_starts=_numbers(query_starts),
            key_starts=_numbers(key_starts),
            options=options,
            **{
                name: tensors.to_wire(array, name)
                for name, array in arrays.items()
                if array is not None
            },
        )
        response = self._call(self._compute, request, timeout, announced=True)
        return _result(response)

    def capabilities(self, *, timeout: float | None = None) -> Capabilities:
        """What the server can do, and its limits."""
        response = self._call(
            self._get_capabilities, pb.GetCapabilitiesRequest(), timeout
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
        request = health_pb2.HealthCheckRequest(service=service)
        response = self._call(self._check, request, timeout)
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
        size = ((_REQUEST_BYTES_HEADER, str(len(message))),)
        try:
            return method(
                message,
                timeout=self._timeout if timeout is None else timeout,
                metadata=size if announced else None,
            )
        except grpc.RpcError as error:
            raise errors.from_rpc_error(error, self._target) from None


def _enum(enum: Any, argument: str, name: str | None) -> int:
    """The value of `enum` for a name such as "top_left"; 0 for None."""
    if name is None:
        return 0
    # UNSPECIFIED comes first and gives every name's prefix.
    prefix = enum.keys()[0][: -len("UNSPECIFIED")]
    names = [key[len(prefix) :].lower() for key in enum.keys()[1:]]
    if name not in names:
        raise ValueError(
            f"{argument}: got {name!r}, wanted None or one of "
            f"{', '.join(map(repr, names))}"
        )
    return enum.Value(prefix + name.upper())


def _window(
    window: tuple[int | None, int | None] | None,
) -> pb.Window | None:
    if window is None:
        return None
    try:
        left, right = window
    except (TypeError, ValueError):
        raise TypeError(
            f"window: got {window!r}, wanted (left, right), each a number of "
            "keys or None"
        ) from None
    return pb.Window(left=left, right=right)


def _numbers(values: Sequence | None) -> list:
    return [] if values is None else np.asarray(values).tolist()


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
