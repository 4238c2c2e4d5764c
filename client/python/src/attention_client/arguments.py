"""Checks of arguments, before anything of them is put into a request.

Each function takes a value and its argument's name, and returns what the
request is made of. A value of the wrong type raises TypeError, one of the right
type that cannot be sent ValueError; both name the argument, what came and what
was wanted. What only the server can judge (shapes, ranges) is left to it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
import numpy as np
from numpy.typing import NDArray

from attention_client import dlpack

_INT64 = range(-(2**63), 2**63)
_MAX_INT32 = 2**31 - 1
# Seconds of the longest google.protobuf.Duration.
_LONGEST = 315576000000
# More than any array has; a list that holds itself ends there.
_MOST_LEVELS = 32
# Seconds.
_LONGEST_LIMIT = 1e9


def text(value: Any, argument: str) -> str:
    if not isinstance(value, str):
        wrong_type(value, argument, "a string")
    return value


def address(value: Any, argument: str) -> str:
    wanted = "an address such as '127.0.0.1:50051'"
    if not isinstance(value, str):
        wrong_type(value, argument, wanted)
    if not value.strip() or value.startswith(("http://", "https://")):
        raise ValueError(f"{argument}: got {value!r}, wanted {wanted}")
    return value


def secret(value: Any, argument: str) -> str | None:
    """As text or None; no error shows the value."""
    if value is not None and not isinstance(value, str):
        raise TypeError(
            f"{argument}: got {_article(type(value).__name__)}, wanted a string"
        )
    return value


def path(value: Any, argument: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        wrong_type(value, argument, "the name of a file")
    if not os.fspath(value):
        raise ValueError(f"{argument}: got '', wanted the name of a file")
    return os.fsdecode(value)


def flag(value: Any, argument: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        wrong_type(value, argument, "True or False")
    return bool(value)


def whole_number(value: Any, argument: str) -> int:
    """An int, or one of numpy's; not a bool."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        wrong_type(value, argument, "a whole number")
    return _int64(int(value), argument)


def attempts(value: Any, argument: str) -> int:
    """How often something is tried."""
    tries = whole_number(value, argument)
    if tries < 1:
        raise ValueError(
            f"{argument}: got {tries}, wanted at least 1, which is one try"
        )
    if tries > _MAX_INT32:
        raise ValueError(
            f"{argument}: got {tries}, wanted at most {_MAX_INT32}"
        )
    return tries


def number(value: Any, argument: str) -> float:
    """Any number but a complex one; not a bool."""
    if type(value) in (float, int):  # Nothing to ask; most calls' way.
        return _float(value, argument)
    refused = (str, bytes, bool, np.bool_, complex, np.complexfloating)
    if (
        isinstance(value, refused)
        or not hasattr(type(value), "__float__")
        or getattr(value, "ndim", 0) != 0
        or isinstance(value, np.ma.MaskedArray)
    ):
        wrong_type(value, argument, "a number")
    return _float(value, argument)


def seconds(value: Any, argument: str) -> float | None:
    """A time limit; None where none was given. One that has passed is 0, and
    one of decades is none: cores differ in how far they count."""
    if value is None:
        return None
    limit = number(value, argument)
    if math.isnan(limit):
        raise ValueError(f"{argument}: got nan, wanted a number of seconds")
    return math.inf if limit > _LONGEST_LIMIT else max(limit, 0.0)


def nanoseconds(value: Any, argument: str) -> int:
    """A number of seconds as whole nanoseconds."""
    length = number(value, argument)
    if not -_LONGEST <= length <= _LONGEST:
        raise ValueError(
            f"{argument}: got {length}, wanted a number of seconds of at most "
            f"{_LONGEST}"
        )
    return round(length * 1e9)


def names_of(kind: Any) -> dict[str, Any]:
    """The values of a protobuf enum by names such as "top_left"."""
    # UNSPECIFIED comes first and gives every name's prefix.
    prefix = kind.keys()[0][: -len("UNSPECIFIED")]
    return {key[len(prefix) :].lower(): n for key, n in kind.items()[1:]}


def enum(value: Any, argument: str, names: dict[str, Any]) -> Any:
    """The value of an enum for one of its `names`."""
    wanted = "None or one of "
    if not isinstance(value, str):
        wrong_type(value, argument, wanted + ", ".join(map(repr, names)))
    if value not in names:
        raise ValueError(
            f"{argument}: got {value!r}, wanted "
            f"{wanted}{', '.join(map(repr, names))}"
        )
    return names[value]


def window(value: Any, argument: str) -> tuple[int | None, int | None]:
    wanted = "(left, right), each a number of keys or None"
    if not isinstance(value, (tuple, list, np.ndarray)):
        wrong_type(value, argument, wanted)
    if len(np.shape(value)) != 1 or len(value) != 2:
        raise ValueError(f"{argument}: got {shown(value)}, wanted {wanted}")
    left, right = (
        None if side is None else whole_number(side, f"{argument}[{i}]")
        for i, side in enumerate(value)
    )
    return left, right


def whole_numbers(values: Any, argument: str) -> list[int]:
    """A list of ints."""
    listed = _list(values, argument, "a list of whole numbers", "iu")
    return [
        whole_number(item, f"{argument}[{i}]") for i, item in enumerate(listed)
    ]


def numbers(values: Any, argument: str) -> list[float]:
    """A list of numbers."""
    listed = _list(values, argument, "a list of numbers", "iuf")
    return [number(item, f"{argument}[{i}]") for i, item in enumerate(listed)]


def array(value: Any, argument: str) -> NDArray[Any]:
    """What to send for a tensor: lists of numbers become float32, of bools
    bool; everything else is as numpy sees it."""
    if type(value) is np.ndarray:
        return value
    wanted = "an array, or lists of numbers"
    refuse_other_than_plain(value, argument)
    if isinstance(value, (list, tuple)):
        _check_items(value, argument)
    elif isinstance(value, (str, bytes, bool, int, float, complex, np.generic)):
        wrong_type(value, argument, wanted)
    plain = _as_numpy(value, argument, wanted)
    if plain.ndim == 0 and plain.dtype == object:
        wrong_type(value, argument, wanted)
    if isinstance(value, (list, tuple, range)) and plain.dtype.kind in "iuf":
        plain = plain.astype(np.float32)
    return plain


def channel_options(value: Any, argument: str) -> tuple[tuple[str, Any], ...]:
    wanted = "pairs (name, value) of gRPC's channel arguments"
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Sequence):
        wrong_type(value, argument, wanted)
    for i, pair in enumerate(value):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            wrong_type(pair, f"{argument}[{i}]", "a pair (name, value)")
        text(pair[0], f"{argument}[{i}][0]")
        if not isinstance(pair[1], (int, str, bytes)):
            wrong_type(pair[1], f"{argument}[{i}][1]", "a number or a string")
    return tuple((name, setting) for name, setting in value)


def credentials(value: Any, argument: str) -> grpc.ChannelCredentials | None:
    if value is None or isinstance(value, grpc.ChannelCredentials):
        return value
    wrong_type(
        value,
        argument,
        "grpc.ChannelCredentials, such as those of "
        "grpc.ssl_channel_credentials()",
    )


def _float(value: Any, argument: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{argument}: got {shown(value)}, wanted a number that fits float64"
        ) from None
    except (TypeError, ValueError, RuntimeError):
        wrong_type(value, argument, "a number")


def wrong_type(value: Any, argument: str, wanted: str) -> NoReturn:
    raise TypeError(f"{argument}: got {shown(value)}, wanted {wanted}")


def shown(value: Any) -> str:
    """`value` in a few words, whatever it is."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, (str, bytes)):
        kind = "string" if isinstance(value, str) else "bytes"
        return f"the {kind} {_cut(repr(value))}"
    if isinstance(value, (int, float, complex, np.number)):
        return f"the number {_cut(str(value))}"
    kind = "array" if type(value) is np.ndarray else type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{_article(kind)} of shape {shape}"
    if isinstance(value, (list, tuple)):
        return f"{_article(kind)} of {len(value)}"
    return _article(kind)


def _cut(words: str) -> str:
    return words if len(words) <= 40 else words[:37] + "..."


def _article(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _int64(value: int, argument: str) -> int:
    if value not in _INT64:
        raise ValueError(
            f"{argument}: got {_cut(str(value))}, wanted a number of 64 bits"
        )
    return value


def _list(values: Any, argument: str, wanted: str, kinds: str) -> list[Any]:
    """The items of a one-dimensional list or array of numpy's `kinds`."""
    refuse_other_than_plain(values, argument)
    if isinstance(values, (list, tuple)):
        _check_items(values, argument)
    plain = _as_numpy(values, argument, wanted)
    if plain.ndim == 0:
        wrong_type(values, argument, wanted)
    if plain.ndim != 1:
        raise ValueError(
            f"{argument}: got shape {plain.shape}, wanted {wanted}"
        )
    if plain.size == 0:
        return []
    if plain.dtype.name == "bfloat16":
        plain = plain.astype(np.float64)
    if plain.dtype.kind not in kinds:
        raise TypeError(
            f"{argument}: got type {plain.dtype.name}, wanted {wanted}"
        )
    items: list[Any] = plain.tolist()
    return items


def _as_numpy(value: Any, argument: str, wanted: str) -> NDArray[Any]:
    listed = isinstance(value, (list, tuple))
    try:
        plain = np.asarray(value)
        if listed and plain.dtype == object:
            # Whole numbers beyond any type of numpy's own.
            plain = plain.astype(np.float64)
    except OverflowError:
        raise ValueError(
            f"{argument}: got a number that does not fit float64, wanted "
            f"{wanted}"
        ) from None
    except Exception as error:  # Whatever another library raises.
        if listed and isinstance(error, (TypeError, ValueError)):
            raise ValueError(
                f"{argument}: got rows of different length or depth, wanted "
                f"{wanted}"
            ) from None
        raise cannot_read(value, argument, error) from error
    return plain


def cannot_read(value: Any, argument: str, error: Exception) -> TypeError:
    return TypeError(
        f"{argument}: got {shown(value)}, which numpy cannot read: {error}"
    )


def refuse_other_than_plain(value: Any, argument: str) -> None:
    """Arrays that numpy would read in part, or not at all."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{argument}: got a masked array, whose mask would be lost: pass "
            "value.filled(0), and say in the argument mask which keys count"
        )
    if getattr(value, "requires_grad", False) is True:
        raise TypeError(
            f"{argument}: got a tensor that requires grad, and no gradients "
            "come back: pass value.detach()"
        )
    if _is_sparse(value):
        raise TypeError(
            f"{argument}: got a sparse {type(value).__name__}, wanted a dense "
            "array: pass value.toarray(), of PyTorch value.to_dense()"
        )
    kind = getattr(getattr(value, "device", None), "type", "cpu")
    if isinstance(kind, str) and kind != "cpu":
        raise TypeError(
            f"{argument}: got a tensor on device {kind}, wanted one in the "
            "CPU's memory: pass value.cpu()"
        )


def _is_sparse(value: Any) -> bool:
    modules = {kind.__module__.partition(".")[0] for kind in type(value).mro()}
    if "scipy" in modules or "sparse" in modules:
        return hasattr(value, "nnz")
    return getattr(value, "is_sparse", False) is True or str(
        getattr(value, "layout", "")
    ).startswith("torch.sparse")


def _check_items(items: Sequence[Any], argument: str) -> None:
    """Refuses lists that hold anything but numbers, lists and arrays."""
    levels = [(items, argument, 0)]
    while levels:
        level, name, depth = levels.pop()
        for i, item in enumerate(level):
            if isinstance(item, (bool, int, float, np.number, np.bool_)):
                continue
            at = f"{name}[{i}]"
            if isinstance(item, (list, tuple)) and depth < _MOST_LEVELS:
                levels.append((item, at, depth + 1))
                continue
            refuse_other_than_plain(item, at)
            if dlpack.has_bfloat16(item):
                wrong_type(item, at, "numbers, or a tensor that numpy can read")
            if not hasattr(type(item), "__array__"):
                wrong_type(item, at, "numbers")
