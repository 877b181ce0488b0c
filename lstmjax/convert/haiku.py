"""Haiku: parameters of ``hk.LSTM``. Its GRU is another than ours: there the reset gate acts before the product.

w   [I + H, 4H]   w_x over w_h, gates in the order i, g, f, o
b   [4H]          b in that order; every step adds 1 to the forget gate's, which here is in b
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmjax.cells.lstm import LSTMParams
from lstmjax.convert.base import (
    RESET_BEFORE,
    as_arrays,
    check_keys,
    check_mapping,
    check_params,
    check_shapes,
    listed,
    matrix,
    own,
    reorder,
)

LSTM = re.compile(r"(.*/)?lstm(_\d+)?/linear")
NAMED = re.compile(r".*[^~]/linear")
"""An LSTM with a name of its own; what a module builds when it is made itself stands after a ``~``."""

GRU = {"w_i", "w_h", "b"}


def from_haiku(params: Mapping[str, Any]) -> LSTMParams:
    """The parameters of an ``hk.LSTM``.

    Our forget bias is Haiku's plus 1, so it rounds where `b + 1` has no room for the digits of b, which matters to
    nothing but equality: the way there and back is exact for those b whose `b + 1` is, such as Haiku's initial 0, and
    all multiples of `2⁻²³` (float32; `2⁻⁷` in bfloat16) from −1 to 1.

    Args:
        params: the LSTM's own ``{"w": …, "b": …}``, or a dict of modules that holds one LSTM, known by its name:
            ``{"lstm/linear": {"w": …, "b": …}}``. An LSTM with a name of its own is taken where it is alone.

    Returns:
        :class:`~lstmjax.LSTMParams`.

    Raises:
        ValueError: there is no LSTM or more than one, a key is unknown or missing, or a shape does not fit; or these
            are an ``hk.GRU``'s.
        TypeError: params is no dict; a value is no array, not floating, float64 while JAX's 64-bit mode is off, or of
            another dtype than the other.

    >>> params = from_haiku({"lstm/linear": {"w": np.zeros((8, 20), np.float32), "b": np.zeros(20, np.float32)}})
    >>> params.w_x.shape, params.w_h.shape, float(params.b[5])
    ((3, 20), (5, 20), 1.0)
    """
    what, own_dict = _lstm_in(params)
    check_keys(what, own_dict, ("w", "b"))
    arrays = as_arrays(own_dict)
    rows, fused = matrix("w", arrays["w"])
    hidden = fused // 4
    if fused % 4 or not 0 < hidden <= rows:
        raise ValueError(f"w has shape {(rows, fused)}; wanted [I + H, 4H]")
    check_shapes(arrays, {"b": (fused,)})
    w, b = (reorder(arrays[name], given="igfo", wanted="ifgo") for name in ("w", "b"))
    return LSTMParams(w_x=w[:-hidden], w_h=w[-hidden:], b=b.at[hidden : 2 * hidden].add(1))


def to_haiku(params: LSTMParams) -> dict[str, np.ndarray]:
    """The parameters of the ``hk.LSTM`` with these weights: ``{"w": …, "b": …}``, the module's own.

    Haiku's forget bias is ours minus 1; see :func:`from_haiku` for how that rounds. Ours come back bit for bit where
    that difference is exact, as for every forget bias from ½ to 2.

    Args:
        params: weights of an LSTM.

    Returns:
        For ``model.apply({"lstm/linear": to_haiku(params)}, …)``, under the name that the module has there.

    Raises:
        ValueError: parameters do not fit one another.
        TypeError: the parameters are not an LSTM's, or dtypes are not floating or not the same.

    >>> import jax, lstmjax
    >>> theirs = to_haiku(lstmjax.lstm(5).init(jax.random.key(0), 3))
    >>> theirs["w"].shape, theirs["b"][10:15].tolist()
    ((8, 20), [0.0, 0.0, 0.0, 0.0, 0.0])
    """
    check_params("params", params, LSTMParams)
    hidden = params.w_h.shape[0]
    w, b = np.concatenate([params.w_x, params.w_h]), np.array(params.b)
    b[hidden : 2 * hidden] -= 1
    return own({name: reorder(a, given="ifgo", wanted="igfo") for name, a in (("w", w), ("b", b))})


def _lstm_in(params: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The LSTM's own parameters, and what to call them."""
    check_mapping("params", params, "a dict of arrays, or of modules")
    modules = {name: value for name, value in params.items() if isinstance(value, Mapping)}
    found = [name for name in modules if (NAMED if len(modules) == 1 else LSTM).fullmatch(name)]
    if not found:
        for what, own_dict in {"params": params, **{f"params[{name!r}]": own for name, own in modules.items()}}.items():
            if set(own_dict) == GRU:
                raise ValueError(f"{what} is an hk.GRU's; wanted an hk.LSTM's: {RESET_BEFORE}")
    if not modules:
        return "params", params
    if len(found) != 1:
        raise ValueError(
            f"params holds {len(found)} modules named as an LSTM's; wanted one: give that module's own dict, one of "
            f"{listed(modules)}"
        )
    return f"params[{found[0]!r}]", modules[found[0]]
