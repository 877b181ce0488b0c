"""Initialisers, each ``(key, shape, dtype) -> array`` as in ``jax.nn.initializers``, which they complete.

How fast a gradient decays is decided here before any training. "Orthogonal" alone names three different decays:
drawn for each gate, every gate's block has singular values of 1; drawn once over the fused ``[H, 4H]`` block, a
gate's block has a root-mean-square singular value of ½; PyTorch's uniform draw gives `1/√3 ≈ .58`. So: say which.

Two initialisers made by the same call are equal, and can be pickled.
"""

import math
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lstmjax.functions import Partial
from lstmjax.typing import Initializer, Key


def orthogonal(scale: float = 1.0) -> Initializer:
    """An orthogonal matrix times ``scale``: every singular value is ``scale``. In any floating dtype.

    ``jax.nn.initializers.orthogonal`` with the decomposition done in float32 at least, since there is none below.

    >>> orthogonal()(jax.random.key(0), (4, 4), jnp.bfloat16).dtype
    dtype(bfloat16)
    """
    return Partial(_orthogonal, scale=scale)


def lecun_normal() -> Initializer:
    """``jax.nn.initializers.lecun_normal``: a truncated normal of variance `1/in`, for ``[in, out]``.

    >>> lecun_normal() == lecun_normal()
    True
    """
    return Partial(_lecun_normal)


def zeros(key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """All zero.

    >>> zeros(jax.random.key(0), (2,)).tolist()
    [0.0, 0.0]
    """
    del key
    return jnp.zeros(shape, dtype)


def per_gate(initializer: Initializer, gates: int) -> Initializer:
    """Draws each gate's block by itself, with its own key, and lays the blocks side by side.

    ``per_gate(orthogonal(), 4)`` is the default for an LSTM; ``orthogonal()`` alone is the fused draw.

    Args:
        initializer: draws one gate's ``[..., H]``.
        gates: how many equal blocks the last axis holds.

    Returns:
        An initialiser for ``[..., gates·H]``. It raises ValueError where the last axis does not divide.

    >>> w = per_gate(orthogonal(), 4)(jax.random.key(0), (8, 32), jnp.float32)
    >>> bool(jnp.allclose(jnp.linalg.svd(w[:, :8])[1], 1.0, atol=1e-5))
    True
    """
    return Partial(_per_gate, initializer=initializer, gates=gates)


def forget_bias(value: float) -> Initializer:
    """LSTM biases ``[4H]``: ``value`` for the forget gate, 0 for the rest (Gers et al. 2000, Jozefowicz et al. 2015).

    A bias b keeps `σ(b)` of the long-term memory a step: half of it for 0, 73 % for 1, 99.3 % for 5, that is half-lives
    of 1, 2.2 and 103 steps.

    >>> forget_bias(1.0)(jax.random.key(0), (8,), jnp.float32).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    return gate_bias(value, gate=1, gates=4)


def gate_bias(value: float, *, gate: int, gates: int) -> Initializer:
    """Biases ``[gates·H]`` of any cell: ``value`` for one gate's block, 0 for the rest.

    Args:
        value: that gate's bias.
        gate: which block it is, from 0.
        gates: how many equal blocks the last axis holds.

    Raises:
        ValueError: there is no such block.

    >>> gate_bias(1.0, gate=1, gates=3)(jax.random.key(0), (6,), jnp.float32).tolist()  # a GRU's update gate
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    """
    _check_block("gate", gate, gates)
    return Partial(_gate_bias, value=value, gate=gate, gates=gates)


def chrono(max_lag: int, *, keeps: int | None = 1, enters: int | None = 0, gates: int = 4) -> Initializer:
    """Biases ``[gates·H]`` that spread memory over all time scales up to ``max_lag`` steps; default an LSTM's.

    ::

        b_f = ln u,  u ~ U[1, max_lag − 1];   b_i = −b_f;   the rest 0

    so that `1/(1 − f) = 1 + u` is itself uniform. f is the gate that says how much of the state is kept. Where the same
    gate says how much enters, as in a GRU, there is no `b_i`: ``gru(64, b_init=chrono(1000, keeps=1, enters=None,
    gates=3))``. Source: Tallec & Ollivier (2018), who state both.

    Args:
        max_lag: `T_max`, the longest dependency expected, in steps; at least 3.
        keeps: which block of biases is that of the gate that keeps the state, from 0; None: there is no such gate.
        enters: which block is that of the gate that lets in what is new; None: there is no such gate.
        gates: how many equal blocks the last axis holds.

    Raises:
        ValueError: max_lag is below 3, where the interval is empty; or there is no such block.

    >>> b = chrono(1000)(jax.random.key(0), (4 * 64,), jnp.float32)
    >>> bool((b[:64] == -b[64:128]).all()), bool((b[64:128] <= math.log(999)).all())
    (True, True)
    """
    if max_lag < 3:
        raise ValueError(f"max_lag is {max_lag}; wanted at least 3 steps, since U[1, max_lag − 1] is empty below")
    for name, block in (("keeps", keeps), ("enters", enters)):
        if block is not None:
            _check_block(name, block, gates)
    return Partial(_chrono, max_lag=max_lag, keeps=keeps, enters=enters, gates=gates)


def uniform(low: float, high: float) -> Initializer:
    """`U[low, high)`, whatever the shape.

    >>> bool((uniform(0.0, 1.0)(jax.random.key(0), (9,), jnp.float32) >= 0).all())
    True
    """
    return Partial(_between, low=low, high=high)


def identity(scale: float = 1.0) -> Initializer:
    """``scale`` times the identity matrix, for the ReLU network of Le, Jaitly & Hinton (2015).

    >>> identity(0.5)(jax.random.key(0), (2, 2), jnp.float32).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    return Partial(_identity, scale=scale)


def pytorch_uniform(hidden_size: int, *, draws: int = 1) -> Initializer:
    """`U(−1/√H, 1/√H)`, PyTorch's draw for every weight and bias of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``.

    Args:
        hidden_size: H, the number of hidden units.
        draws: how many independent draws are added: 2 for ``b``, since PyTorch keeps two biases that add.

    >>> cell_kwargs = dict(w_x_init=pytorch_uniform(64), w_h_init=pytorch_uniform(64),
    ...                    b_init=pytorch_uniform(64, draws=2))
    >>> from lstmjax import lstm
    >>> params = lstm(64, **cell_kwargs).init(jax.random.key(0), 3)
    >>> bool(jnp.abs(params.w_h).max() <= 1 / 8), bool(jnp.abs(params.b).max() > 1 / 8)
    (True, True)
    """
    return Partial(_uniform, bound=1 / math.sqrt(hidden_size), draws=draws)


def is_own(initializer: Any) -> bool:
    """Whether an initialiser is made of this library's functions and plain numbers alone.

    What it draws then hangs on its arguments only, and it may be compiled once for many draws.

    >>> is_own(per_gate(orthogonal(), 4)), is_own(per_gate(lambda key, shape, dtype: jnp.ones(shape, dtype), 4))
    (True, False)
    """
    if isinstance(initializer, Partial):
        return not initializer.args and all(map(is_own, (initializer.func, *initializer.keywords.values())))
    if isinstance(initializer, types.FunctionType):
        module = initializer.__module__ or ""
        return module.startswith("lstmjax.") and vars(sys.modules[module]).get(initializer.__name__) is initializer
    return initializer is None or type(initializer) in (int, float)


def _orthogonal(key: Key, shape: tuple[int, ...], dtype=jnp.float32, *, scale: float) -> Array:
    return jax.nn.initializers.orthogonal(scale)(key, shape, np.promote_types(dtype, jnp.float32)).astype(dtype)


def _lecun_normal(key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    if 0 in shape:  # JAX divides by the number of inputs
        return jnp.zeros(shape, dtype)
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)


def _per_gate(key: Key, shape: tuple[int, ...], dtype=jnp.float32, *, initializer: Initializer, gates: int) -> Array:
    size = _block_size(shape, gates)
    draws = [initializer(k, (*shape[:-1], size), dtype) for k in jax.random.split(key, gates)]
    return jnp.concatenate(draws, axis=-1)


def _gate_bias(key: Key, shape: tuple[int, ...], dtype=jnp.float32, *, value: float, gate: int, gates: int) -> Array:
    del key
    size = _block_size(shape, gates)
    return jnp.zeros(shape, dtype).at[gate * size : (gate + 1) * size].set(value)


def _chrono(
    key: Key,
    shape: tuple[int, ...],
    dtype=jnp.float32,
    *,
    max_lag: int,
    keeps: int | None,
    enters: int | None,
    gates: int,
) -> Array:
    size = _block_size(shape, gates)
    b_f = jnp.log(jax.random.uniform(key, (size,), minval=1.0, maxval=max_lag - 1.0))
    blocks = {enters: -b_f, keeps: b_f}
    return jnp.concatenate([blocks.get(n, jnp.zeros_like(b_f)) for n in range(gates)]).astype(dtype)


def _between(key: Key, shape: tuple[int, ...], dtype=jnp.float32, *, low: float, high: float) -> Array:
    return jax.random.uniform(key, shape, dtype, low, high)


def _identity(key: Key, shape: tuple[int, ...], dtype=jnp.float32, *, scale: float) -> Array:
    del key
    return scale * jnp.eye(*shape, dtype=dtype)


def _uniform(key: Key, shape: tuple[int, ...], dtype=jnp.float32, *, bound: float, draws: int) -> Array:
    return jax.random.uniform(key, (draws, *shape), dtype, -bound, bound).sum(0)


def _check_block(name: str, block: int, blocks: int) -> None:
    if not 0 <= block < blocks:
        raise ValueError(f"{name} is {block}; wanted one of the blocks 0 to {blocks - 1}, since gates is {blocks}")


def _block_size(shape: tuple[int, ...], gates: int) -> int:
    if shape[-1] % gates:
        raise ValueError(f"shape is {shape}; wanted a last axis that {gates} gates share equally")
    return shape[-1] // gates
