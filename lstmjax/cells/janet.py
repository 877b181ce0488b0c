"""JANET, the LSTM with nothing but a forget gate."""

from typing import NamedTuple

from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import DENSE, Cell, Gated, Gates, Recurrence
from lstmjax.cells.build import forget_bias_init, gated_parts, make_cell
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import sigmoid, tanh
from lstmjax.typing import Initializer


class JANETParams(NamedTuple):
    """The weights of JANET, two gates side by side in the order f, g.

    Attributes:
        w_x: ``[I, 2H]`` input weights.
        w_h: ``[H, 2H]`` recurrent weights.
        b: ``[2H]`` biases.
    """

    w_x: Array
    w_h: Array
    b: Array


class JANETState(NamedTuple):
    """The one memory of JANET.

    Attributes:
        h: ``[*B, H]`` hidden state, which is the cell state too.
    """

    h: Array


def _gates(z: Gates, state: JANETState, *, beta: float) -> dict[str, Array]:
    del state
    z_f, z_g = z
    # 1 − σ(z − β) = σ(β − z), which keeps its digits where nearly all is kept.
    return {"input": sigmoid(beta - z_f), "forget": sigmoid(z_f), "candidate": tanh(z_g)}


def _update(gates: dict[str, Array], z: Gates, state: JANETState) -> JANETState:
    del z
    return JANETState(gates["forget"] * state.h + gates["input"] * gates["candidate"])


def janet(
    hidden_size: int,
    *,
    beta: float = 1.0,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """A JANET cell ("just another network"): of an LSTM's gates the forget gate alone.

    ::

        s  = x W_xf + h W_hf + b_f
        g  = tanh(x W_xg + h W_hg + b_g)           candidate
        h' = σ(s) ∘ h + (1 − σ(s − β)) ∘ g

    Args:
        hidden_size: H, the number of hidden units.
        beta: β, how much more is let in than is forgotten; the paper's 1 by default.
        forget_bias: `b_f` at the start, default 1.0; all other biases start at 0.
        w_x_init: draws ``[I, 2H]``.
        w_h_init: draws ``[H, 2H]``; default orthogonal, each gate by itself.
        b_init: draws ``[2H]``, in place of ``forget_bias``. The paper's is chrono, which wants to know the longest lag:
            ``init.chrono(max_lag, gates=2, keeps=0, enters=None)``.

    Returns:
        A :class:`Cell` over :class:`JANETParams` and :class:`JANETState`, h ``[*B, H]``. Its step raises ValueError
        where x, state and params disagree in shape, and TypeError where x is not floating.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.

    Source: van der Westhuizen & Lasenby (2018).

    >>> import jax, jax.numpy as jnp
    >>> cell = janet(2, b_init=initializers.chrono(100, gates=2, keeps=0, enters=None))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> cell.step(params, cell.initial_state((5,)), jnp.ones((5, 3)))[1].shape
    (5, 2)
    """
    size = whole_number("hidden_size", hidden_size)
    parts = gated_parts(size, 2, w_x_init, w_h_init, forget_bias_init(forget_bias, b_init, gates=2, keeps=0))
    step = Recurrence(DENSE, Gated(Partial(_gates, beta=beta), _update), keeps="forget")
    return make_cell(JANETParams, JANETState, size, parts, step)
