"""Masks of transformers that say what an option of the service says.

transformers writes causal masks, sliding windows and chunks out, as a number for
each query and key. The service has options for them, which need not be sent along
with every layer and let it skip what is hidden.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


def options_for(mask: NDArray[Any], begin: int = 0) -> dict[str, Any] | None:
    """Options of Client.compute() and StepItem that hide what a mask hides, and
    nothing else; None where no options do.

    Args:
        mask: (B, Hq, S, T), any axis but the last may be 1. Bools, or numbers to
            be added: 0 where a key is seen; -inf, or the least number of the
            type, where it is hidden. The last query stands at the last key.
        begin: the position of the first column's key. The keys before it are
            hidden.
    """
    if mask.ndim != 4 or mask.dtype.kind in "iu":
        return None
    seen = mask
    if mask.dtype != np.bool_:
        seen = mask == 0
        least = ml_dtypes.finfo(mask.dtype).min  # type: ignore[no-untyped-call]
        hidden = mask <= least
        if not (seen | hidden).all():
            return None
    rows = seen[0, 0]
    queries, keys = rows.shape
    count = rows.sum(axis=1)
    # Of rows that see nothing transformers makes other numbers than the service.
    if queries > keys or not count.all() or not (seen == rows).all():
        return None
    first = begin + rows.argmax(axis=1)
    last = begin + keys - 1 - rows[:, ::-1].argmax(axis=1)
    if (count != last - first + 1).any():
        return None

    end = begin + keys
    position = np.arange(end - queries, end)
    if (first == 0).all() and (last == end - 1).all():
        return {}
    if (last == position).all():
        return _causal(first, position)
    # Without a causal mask the service counts positions from the first key.
    if queries != keys or begin != 0:
        return None
    left = int((position - first).max())
    right = int((last - position).max())
    if (first != np.maximum(position - left, 0)).any() or (
        last != np.minimum(position + right, end - 1)
    ).any():
        return None
    return {"window": (left, right)}


def _causal(
    first: NDArray[Any], position: NDArray[Any]
) -> dict[str, Any] | None:
    """Of queries that see all keys from `first` to their own position."""
    causal = {"causal": "bottom_right"}
    if (first == 0).all():
        return causal
    left = int((position - first).max())
    if (first == np.maximum(position - left, 0)).all():
        return {**causal, "window": (left, None)}
    # Where chunks begin; the queries of one chunk alone do not tell its size.
    begins = np.unique(first)
    size = int(np.diff(begins).min() if len(begins) > 1 else begins[0])
    if (first == position // size * size).all():
        return {**causal, "chunk_size": size}
    return None
