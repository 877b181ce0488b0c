"""The convolutional LSTM, whose states are images, in any number of spatial dimensions."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, add_bias, wide
from lstmjax.cells.build import check_kind, draw_params, forget_bias_init
from lstmjax.cells.lstm import LSTMState, recurrence
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.typing import Initializer, Shape

PADDINGS = "SAME", "CIRCULAR"


class ConvLSTMParams(NamedTuple):
    """The kernels of a convolutional LSTM, four gates side by side in the order i, f, g, o.

    Attributes:
        w_x: ``[*K, I, 4H]`` kernel over the input.
        w_h: ``[*K, H, 4H]`` kernel over h.
        b: ``[4H]`` biases, the same at every place.
    """

    w_x: Array
    w_h: Array
    b: Array


def _check(params: ConvLSTMParams, state: LSTMState, x: Any) -> None:
    check_kind(params, ConvLSTMParams)
    channels, features = params.w_x.shape[-2], params.w_h.shape[-2]
    if x.ndim < params.w_x.ndim - 1 or x.shape[-1] != channels:
        raise ValueError(
            f"x has shape {x.shape}; wanted [*B, *S, I] with {params.w_x.ndim - 2} spatial axes and I = {channels} "
            "channels, as params.w_x has"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x has dtype {x.dtype}; wanted a floating dtype")
    wanted = (*x.shape[:-1], features)
    for name, leaf in state._asdict().items():
        if leaf.shape != wanted:
            raise ValueError(
                f"state.{name} has shape {leaf.shape}; wanted {wanted}, the batch and spatial axes of x and H features"
            )


def _convolve(v: Array, kernel: Array, padding: str) -> Array:
    """The convolution of ``[*B, *S, I]`` with a kernel ``[*K, I, N]``: ``[*B, *S, N]``, in float32 at least."""
    sizes = kernel.shape[:-2]
    batch, rest = v.shape[: v.ndim - len(sizes) - 1], v.shape[v.ndim - len(sizes) - 1 :]
    flat = v.reshape(math.prod(batch), *rest)
    around = [((size - 1) // 2, size // 2) for size in sizes]
    if padding == "CIRCULAR":
        flat, around = jnp.pad(flat, [(0, 0), *around, (0, 0)], mode="wrap"), [(0, 0)] * len(sizes)
    space = "XYZ"[: len(sizes)]
    order = (f"N{space}C", f"{space}IO", f"N{space}C")
    out = lax.conv_general_dilated(flat, kernel, (1,) * len(sizes), around, dimension_numbers=order)
    return out.reshape(*batch, *out.shape[1:]).astype(wide(out.dtype))


def _pre(params: ConvLSTMParams, x: Array, h: Array, *, padding: str) -> Array:
    return add_bias(_convolve(x, params.w_x, padding) + _convolve(h, params.w_h, padding), params.b)


def _zeros(batch_shape: Shape = (), dtype=jnp.float32, *, shape: tuple[int, ...]) -> LSTMState:
    return LSTMState(*(jnp.zeros((*batch_shape, *shape), dtype) for _ in range(2)))


def conv_lstm(
    features: int,
    spatial_shape: Sequence[int],
    *,
    kernel_size: Sequence[int] | int = 3,
    padding: str = "SAME",
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """A convolutional LSTM cell for sequences of one, two or three spatial dimensions: signals, images, volumes.

    With `∗` a convolution over space::

        i  = σ(x ∗ W_xi + h ∗ W_hi + b_i)       input gate
        f  = σ(x ∗ W_xf + h ∗ W_hf + b_f)       forget gate
        g  = tanh(x ∗ W_xg + h ∗ W_hg + b_g)    candidate
        o  = σ(x ∗ W_xo + h ∗ W_ho + b_o)       output gate
        c' = f ∘ c + i ∘ g
        h' = o ∘ tanh(c')

    As in Flax and Keras the gates have no peepholes, which the paper's have. A convolution is affine in x and in h, so
    it is unrolled as fast as an LSTM is.

    Args:
        features: H, the number of features at every place.
        spatial_shape: ``S``, the size of the images, ``(height, width)``, without batch and channels. Inputs are
            ``[T, *B, *S, I]``.
        kernel_size: ``K``, the kernels' size, one number for each spatial dimension, or one for all.
        padding: what is beyond the border: ``"SAME"``, zeros; ``"CIRCULAR"``, the other side.
        forget_bias: the forget gate's initial bias, default 1.0; all other biases start at 0.
        w_x_init: draws ``[*K, I, 4H]``.
        w_h_init: draws ``[*K, H, 4H]``; default orthogonal, each gate by itself: ``[*K·H, H]`` as a matrix.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.

    Returns:
        A :class:`Cell` over :class:`ConvLSTMParams` and :class:`LSTMState`, c and h ``[*B, *S, H]``; its
        ``num_feature_axes`` is that of S and one. Its step raises ValueError where x, state and params disagree in
        shape, and TypeError where x is not floating.

    Raises:
        ValueError: a size is not a positive whole number, there are not one to three spatial dimensions or not as many
            kernel sizes, padding is neither of the two, or both forget_bias and b_init are given.

    Source: Shi et al. (2015).

    >>> import jax
    >>> from lstmjax import unroll
    >>> cell = conv_lstm(4, (8, 8))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> final, ys = unroll(cell, params, jnp.ones((5, 2, 8, 8, 3)))
    >>> params.w_h.shape, ys.shape
    ((3, 3, 4, 16), (5, 2, 8, 8, 4))
    """
    size = whole_number("features", features)
    space = tuple(whole_number("a size in spatial_shape", n) for n in spatial_shape)
    if not 1 <= len(space) <= 3:
        raise ValueError(f"spatial_shape is {space}; wanted one, two or three sizes")
    kernel = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,) * len(space)
    kernel = tuple(whole_number("a size in kernel_size", n) for n in kernel)
    if len(kernel) != len(space):
        raise ValueError(f"kernel_size is {kernel}; wanted {len(space)} sizes, as many as spatial_shape has")
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}; wanted 'SAME' or 'CIRCULAR'")
    parts = (
        ("w_x", w_x_init, (*kernel, None, 4 * size)),
        ("w_h", w_h_init or initializers.per_gate(initializers.orthogonal(), 4), (*kernel, size, 4 * size)),
        ("b", forget_bias_init(forget_bias, b_init), (4 * size,)),
    )
    return Cell(
        init=Partial(draw_params, kind=ConvLSTMParams, parts=parts),
        initial_state=Partial(_zeros, shape=(*space, size)),
        step=dataclasses.replace(recurrence(check=_check), pre=Partial(_pre, padding=padding)),
        num_feature_axes=len(space) + 1,
    )
