"""lstmjax: a functional LSTM for JAX, and an instrument for watching gradients survive a long lag.

* The unit: :mod:`lstmjax.gates`, ``lstm_step``, ``gru_step``, ``rnn_step``
* Cells: ``lstm``, ``projected_lstm``, ``gru``, ``rnn``, each a ``Cell`` of pure functions; one of your own: a ``Cell``
  of any step, or of a ``Recurrence``, a step in two parts
* Over time: ``unroll``, ``state_history``; in layers and directions, ``init_stack``, ``unroll_stack``
* Gradients: :mod:`lstmjax.gradients`
* Weights: :mod:`lstmjax.convert`, to and from other libraries

With an ``import`` of their own:

* Training: :mod:`lstmjax.training`, on Optax: steps, runs that survive being cut off, many devices
* Data: :mod:`lstmjax.tasks`, to run and to learn on
* Explained: :mod:`lstmjax.explain`, one unit with all its numbers; also a program: ``python -m lstmjax.explain``
* Figures: :mod:`lstmjax.plot`, of measurements; :mod:`lstmjax.drawing`, of the unit
* Flax: :mod:`lstmjax.nn.nnx`, :mod:`lstmjax.nn.linen`
"""

from lstmjax import convert, gates, gradients, init
from lstmjax.cells import (
    Cell,
    GRUParams,
    GRUState,
    LSTMParams,
    LSTMState,
    Products,
    ProjectedLSTMParams,
    Recurrence,
    RNNParams,
    RNNState,
    gru,
    gru_step,
    lstm,
    lstm_step,
    projected_lstm,
    projected_lstm_step,
    rnn,
    rnn_step,
)
from lstmjax.stack import init_stack, unroll_stack
from lstmjax.unroll import state_history, unroll

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
    "Products",
    "ProjectedLSTMParams",
    "RNNParams",
    "RNNState",
    "Recurrence",
    "convert",
    "gates",
    "gradients",
    "gru",
    "gru_step",
    "init",
    "init_stack",
    "lstm",
    "lstm_step",
    "projected_lstm",
    "projected_lstm_step",
    "rnn",
    "rnn_step",
    "state_history",
    "unroll",
    "unroll_stack",
]
