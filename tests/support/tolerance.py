"""How far an answer may be from the reference, and why.

On unit-normal inputs float32 agrees within 1e-6 + 1e-5 of the value, float16
and bfloat16 within two units in the last place. What cannot be avoided grows
with the largest score that rounding touches, |scale| |q| |k| + |bias|, as a
weight is known no better than its score; and an output that cancels keeps the
absolute error of its summands, so that 1e-6 scales with |v| too.
"""

import ml_dtypes
import numpy as np

# (absolute, relative), in units that the docstring explains.
_BOUNDS = {
    np.dtype(np.float64): (1e-14, 1e-13),
    np.dtype(np.float32): (1e-6, 1e-5),
}
_HALF_TYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

# |q| |k| / sqrt(D) of unit-normal rows at D = 64.
_USUAL_MAGNITUDE = 8


def growth(query, key, *, scale=None, extra=0.0):
    """Factor by which the absolute bound grows, at least 1.

    `query` and `key` have D as their last axis; `extra` is the largest finite
    |bias|. NaN and infinity are passed over.
    """
    if query.size == 0 or key.size == 0:
        return 1.0
    if scale is None:
        scale = query.shape[-1] ** -0.5
    magnitude = abs(scale) * _largest_norm(query) * _largest_norm(key) + extra
    return max(1.0, magnitude / _USUAL_MAGNITUDE)


def _largest_norm(x):
    norms = np.linalg.norm(np.asarray(x, np.float64), axis=-1)
    return largest(norms)


def largest(x):
    """The largest finite |x|, 0 if there is none."""
    x = np.abs(np.asarray(x, np.float64))
    return x[np.isfinite(x)].max(initial=0.0)


def ulp(x, dtype):
    """Distance from |x| to the next number of a float type."""
    info = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(x), float(info.tiny)))
    return np.ldexp(1.0, exponent - 1 - info.nmant)


def assert_close(actual, expected, *, unit=1.0, computed_in=np.float32):
    """Compares an answer with the double-precision `expected`.

    `unit` scales the absolute bound. NaN and infinities must stand where they
    are expected. `computed_in` is the type of the sums behind a half type.
    """
    assert actual.shape == expected.shape
    dtype = actual.dtype
    actual = np.asarray(actual, np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])

    actual, expected = actual[finite], expected[finite]
    absolute, relative = _BOUNDS[np.dtype(computed_in)]
    if dtype in _HALF_TYPES:
        bound = absolute * unit + 2 * ulp(expected, dtype)
    else:
        absolute, relative = _BOUNDS[dtype]
        bound = absolute * unit + relative * np.abs(expected)
    # "Not within" rather than "beyond": a NaN is neither.
    wrong = np.flatnonzero(~(np.abs(actual - expected) <= bound))
    if wrong.size:
        index = np.argwhere(finite)[wrong[0]].tolist()
        raise AssertionError(
            f"{wrong.size} of {finite.size} elements are wrong, the first at "
            f"{index}: got {actual[wrong[0]]!r}, wanted "
            f"{expected[wrong[0]]!r} within {bound[wrong[0]]:.3g}"
        )
