"""lstmjax: a functional LSTM for JAX, and an instrument for watching gradients survive a long lag.

* The unit: :mod:`lstmjax.gates`, ``lstm_step``, ``gru_step``, ``rnn_step``
* Cells: ``lstm``, ``gru``, ``rnn``, each a ``Cell`` of pure functions; one of your own: a ``Cell`` of any step, or of a
  ``Recurrence``, a step in two parts
* The LSTM's variants: ``projected_lstm``, ``peephole_lstm``, ``coupled_lstm``, ``lstm_1997``, ``janet``,
  ``layer_norm_lstm``, ``multiplicative_lstm``, ``conv_lstm``, ``slstm``
* The GRU's kin: ``gru_reset_before``, ``mgu``, ``light_gru``, ``ugrnn``, ``fast_grnn``; with gates that read the input
  alone ``min_gru``, ``min_lstm``; with a candidate that does ``ran``, ``cfn``, ``star``, ``nbrc``
* Other cells: ``ind_rnn``, ``leaky_rnn``, ``continuous_time_rnn``, ``antisymmetric_rnn``, ``co_rnn``, ``lem``
* Over time: ``unroll``, ``state_history``; in layers and directions, ``init_stack``, ``unroll_stack``
* Gradients: :mod:`lstmjax.gradients`
* Weights: :mod:`lstmjax.convert`, to and from other libraries

With an ``import`` of their own:

* Training: :mod:`lstmjax.training`, on Optax: steps, runs that survive being cut off, many devices
* Data: :mod:`lstmjax.tasks`, to run and to learn on
* Explained: :mod:`lstmjax.explain`, one unit with all its numbers
* The program: ``lstmjax``, or ``python -m lstmjax``: :mod:`lstmjax.program`
* Figures: :mod:`lstmjax.plot`, of measurements; :mod:`lstmjax.drawing`, of the unit
* Flax: :mod:`lstmjax.nn.nnx`, :mod:`lstmjax.nn.linen`
"""

from lstmjax import convert, gates, gradients, init
from lstmjax.cells import (
    Cell,
    ContinuousTimeRNNParams,
    ConvLSTMParams,
    CoRNNParams,
    CoRNNState,
    CoupledLSTMParams,
    FastGRNNParams,
    GatedParams,
    GRUParams,
    GRUState,
    IndRNNParams,
    JANETParams,
    JANETState,
    LayerNormLSTMParams,
    LEMParams,
    LEMState,
    LSTM1997Params,
    LSTMParams,
    LSTMState,
    MGUParams,
    MinimalParams,
    MultiplicativeLSTMParams,
    PeepholeLSTMParams,
    Products,
    ProjectedLSTMParams,
    Recurrence,
    RNNParams,
    RNNState,
    SLSTMParams,
    SLSTMState,
    antisymmetric_rnn,
    cfn,
    co_rnn,
    continuous_time_rnn,
    conv_lstm,
    coupled_lstm,
    fast_grnn,
    gru,
    gru_reset_before,
    gru_step,
    ind_rnn,
    janet,
    layer_norm_lstm,
    leaky_rnn,
    lem,
    light_gru,
    lstm,
    lstm_1997,
    lstm_step,
    mgu,
    min_gru,
    min_lstm,
    multiplicative_lstm,
    nbrc,
    peephole_lstm,
    projected_lstm,
    projected_lstm_step,
    ran,
    rnn,
    rnn_step,
    slstm,
    star,
    ugrnn,
)
from lstmjax.stack import init_stack, unroll_stack
from lstmjax.unroll import state_history, unroll

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "CoRNNParams",
    "CoRNNState",
    "ContinuousTimeRNNParams",
    "ConvLSTMParams",
    "CoupledLSTMParams",
    "FastGRNNParams",
    "GRUParams",
    "GRUState",
    "GatedParams",
    "IndRNNParams",
    "JANETParams",
    "JANETState",
    "LEMParams",
    "LEMState",
    "LSTM1997Params",
    "LSTMParams",
    "LSTMState",
    "LayerNormLSTMParams",
    "MGUParams",
    "MinimalParams",
    "MultiplicativeLSTMParams",
    "PeepholeLSTMParams",
    "Products",
    "ProjectedLSTMParams",
    "RNNParams",
    "RNNState",
    "Recurrence",
    "SLSTMParams",
    "SLSTMState",
    "antisymmetric_rnn",
    "cfn",
    "co_rnn",
    "continuous_time_rnn",
    "conv_lstm",
    "convert",
    "coupled_lstm",
    "fast_grnn",
    "gates",
    "gradients",
    "gru",
    "gru_reset_before",
    "gru_step",
    "ind_rnn",
    "init",
    "init_stack",
    "janet",
    "layer_norm_lstm",
    "leaky_rnn",
    "lem",
    "light_gru",
    "lstm",
    "lstm_1997",
    "lstm_step",
    "mgu",
    "min_gru",
    "min_lstm",
    "multiplicative_lstm",
    "nbrc",
    "peephole_lstm",
    "projected_lstm",
    "projected_lstm_step",
    "ran",
    "rnn",
    "rnn_step",
    "slstm",
    "star",
    "state_history",
    "ugrnn",
    "unroll",
    "unroll_stack",
]
