"""The two companies of the slides: four days of a share's value, the fifth to be told, and the unit that tells it.

The companies differ on day 1 alone, and their fifth day is what their first was: to tell it, a unit has to carry day 1
over three days that are the same for both.

Source: StatQuest, "Long Short-Term Memory, clearly explained", and its public notebook to chapter 8. Weights of the
trained unit are given there to two decimals, initial weights to four. Here are inputs only; what follows from them is
computed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lstmjax.cells.lstm import LSTMParams


class Company(NamedTuple):
    """One company.

    Attributes:
        days: values on days 1 to 4.
        target: the value on day 5.
    """

    days: tuple[float, ...]
    target: float


class GateWeights(NamedTuple):
    """One gate of a unit with one input: `z = w_x x + w_h h + b`."""

    w_x: float
    w_h: float
    b: float = 0.0


class Training(NamedTuple):
    """How the slides' unit was trained: squared error of the last hidden state, one company a batch, A then B, Adam.

    Attributes:
        order: companies in the order of an epoch, not shuffled.
        epochs: passes over both.
        learning_rate: of Adam.
        b1: decay of Adam's first moment.
        b2: decay of its second moment.
        eps: Adam's ε.
    """

    order: tuple[str, ...] = ("A", "B")
    epochs: int = 5000
    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


COMPANIES = {
    "A": Company(days=(0.0, 0.5, 0.25, 1.0), target=0.0),
    "B": Company(days=(1.0, 0.5, 0.25, 1.0), target=1.0),
}
"""The two companies by name, ``"A"`` and ``"B"``: each has ``days``, its values on days 1 to 4, and the ``target``."""

# The gates in the order of LSTMParams.
SLIDE_WEIGHTS = {
    "input": GateWeights(w_x=1.65, w_h=2.00, b=0.62),
    "forget": GateWeights(w_x=1.63, w_h=2.70, b=1.62),
    "candidate": GateWeights(w_x=0.94, w_h=1.41, b=-0.32),
    "output": GateWeights(w_x=-0.19, w_h=4.38, b=0.59),
}
"""The trained unit's weights, ``w_x``, ``w_h`` and ``b`` by gate, as published, to two decimals."""

INITIAL_WEIGHTS = {
    "input": GateWeights(w_x=0.2303, w_h=0.2345),
    "forget": GateWeights(w_x=0.1288, w_h=0.3367),
    "candidate": GateWeights(w_x=-0.1863, w_h=-1.1229),
    "output": GateWeights(w_x=-0.6380, w_h=2.2082),
}
"""The same unit's weights before training; every bias is 0."""

TRAINING = Training()
"""How it was trained: ``order`` of companies, ``epochs``, and Adam's ``learning_rate``, ``b1``, ``b2``, ``eps``."""


def slide_unit(weights: Mapping[str, GateWeights] = SLIDE_WEIGHTS, dtype: Any = jnp.float32) -> LSTMParams:
    """The slides' unit, one input and one hidden unit, as parameters.

    Args:
        weights: ``SLIDE_WEIGHTS``, as trained, or ``INITIAL_WEIGHTS``, as before training.
        dtype: of the parameters.

    Returns:
        Parameters with `I = H = 1`.

    Raises:
        TypeError: dtype is not floating.

    >>> from lstmjax import LSTMState, lstm_step
    >>> state, _ = lstm_step(slide_unit(), LSTMState(c=jnp.array([2.0]), h=jnp.array([1.0])), jnp.array([1.0]))
    >>> round(float(state.c[0]), 4), round(float(state.h[0]), 4)
    (2.9476, 0.9862)
    """
    gates = [weights[name] for name in SLIDE_WEIGHTS]
    dtype = _floating(dtype)

    def row(values: list[float]) -> Array:
        return jnp.array([values], dtype)

    return LSTMParams(
        w_x=row([gate.w_x for gate in gates]),
        w_h=row([gate.w_h for gate in gates]),
        b=row([gate.b for gate in gates])[0],
    )


def company_values(name: str, dtype: Any = jnp.float32) -> Array:
    """A company's days 1 to 4 as a sequence to unroll over.

    Args:
        name: ``"A"`` or ``"B"``.
        dtype: of the values.

    Returns:
        ``[4, 1]``.

    Raises:
        ValueError: there is no such company.
        TypeError: dtype is not floating.

    >>> from lstmjax import lstm, unroll
    >>> for name, company in COMPANIES.items():
    ...     told, _ = unroll(lstm(1), slide_unit(), company_values(name))
    ...     print(f"company {name}: {told.h[0]:.4f}, wanted {company.target:.0f}")
    company A: 0.0064, wanted 0
    company B: 0.9694, wanted 1
    """
    if name not in COMPANIES:
        raise ValueError(f"name is {name!r}; wanted one of {', '.join(COMPANIES)}")
    return jnp.array(COMPANIES[name].days, _floating(dtype))[:, None]


def _floating(dtype: Any) -> Any:
    """The dtype, where it holds fractions: whole numbers would cut them off without a word."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype is {jnp.dtype(dtype)}; wanted a floating dtype")
    return dtype
