"""Attention over the network, with numpy arrays.

    >>> import numpy as np
    >>> from attention_client import Client
    >>> with Client("127.0.0.1:50051") as client:
    ...     result = client.compute(np.eye(2, dtype=np.float32),
    ...                             np.eye(2, dtype=np.float32),
    ...                             np.eye(2, dtype=np.float32))
    >>> result.output
    array([[0.66976154, 0.33023846],
           [0.33023846, 0.66976154]], dtype=float32)

Start with Client; aio has one for asyncio. What a call computes is specified in attention.proto.
"""

import importlib.metadata

from attention_client.client import Client
from attention_client.errors import (
    Aborted,
    AlreadyExists,
    AttentionError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from attention_client.results import AttentionResult, Capabilities, Timing
from attention_client.sessions import (
    Session,
    SessionConfig,
    SessionInfo,
    StepItem,
)
from attention_client.sharded import (
    ShardedResult,
    ShardedSession,
    missing_tokens,
)
from attention_client.tensors import PackedMask

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AttentionError",
    "AttentionResult",
    "Cancelled",
    "Capabilities",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PackedMask",
    "PermissionDenied",
    "ResourceExhausted",
    "Session",
    "SessionConfig",
    "SessionInfo",
    "ShardedResult",
    "ShardedSession",
    "StepItem",
    "Timing",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "__version__",
    "missing_tokens",
]

__version__ = importlib.metadata.version("attention-client")
