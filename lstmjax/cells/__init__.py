"""The cells: one file each, all of the shape :class:`Cell`."""

from jax import export

from lstmjax.cells.additive import cfn, nbrc, ran, star
from lstmjax.cells.base import Cell, Gated, Products, Recurrence
from lstmjax.cells.build import GatedParams
from lstmjax.cells.convolutional import ConvLSTMParams, conv_lstm
from lstmjax.cells.coupled import CoupledLSTMParams, coupled_lstm
from lstmjax.cells.dynamical import (
    ContinuousTimeRNNParams,
    CoRNNParams,
    CoRNNState,
    LEMParams,
    LEMState,
    antisymmetric_rnn,
    co_rnn,
    continuous_time_rnn,
    leaky_rnn,
    lem,
)
from lstmjax.cells.gated import FastGRNNParams, MGUParams, fast_grnn, gru_reset_before, light_gru, mgu, ugrnn
from lstmjax.cells.gru import GRUParams, GRUState, gru, gru_step
from lstmjax.cells.independent import IndRNNParams, ind_rnn
from lstmjax.cells.janet import JANETParams, JANETState, janet
from lstmjax.cells.layer_norm import LayerNormLSTMParams, layer_norm_lstm
from lstmjax.cells.lstm import LSTMParams, LSTMState, lstm, lstm_step
from lstmjax.cells.lstm_1997 import LSTM1997Params, lstm_1997
from lstmjax.cells.minimal import MinimalParams, min_gru, min_lstm
from lstmjax.cells.multiplicative import MultiplicativeLSTMParams, multiplicative_lstm
from lstmjax.cells.peephole import PeepholeLSTMParams, peephole_lstm
from lstmjax.cells.projected import ProjectedLSTMParams, projected_lstm, projected_lstm_step
from lstmjax.cells.rnn import RNNParams, RNNState, rnn, rnn_step
from lstmjax.cells.slstm import SLSTMParams, SLSTMState, slstm
from lstmjax.cells.wrappers import (
    LearnedParams,
    candidate_dropout,
    draw_masks,
    learned_state,
    variational_dropout,
    weight_drop,
    zoneout,
)

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
    "Gated",
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
    "LearnedParams",
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
    "candidate_dropout",
    "cfn",
    "co_rnn",
    "continuous_time_rnn",
    "conv_lstm",
    "coupled_lstm",
    "draw_masks",
    "fast_grnn",
    "gru",
    "gru_reset_before",
    "gru_step",
    "ind_rnn",
    "janet",
    "layer_norm_lstm",
    "leaky_rnn",
    "learned_state",
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
    "ugrnn",
    "variational_dropout",
    "weight_drop",
    "zoneout",
]

# So that an exported program that takes or returns them can be serialised.
for _name in __all__:
    if _name.endswith(("Params", "State")):
        export.register_namedtuple_serialization(globals()[_name], serialized_name=f"lstmjax.{_name}")
