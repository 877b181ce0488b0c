"""The cells: one file each, all of the shape :class:`Cell`."""

from jax import export

from lstmjax.cells.base import Cell, Products, Recurrence
from lstmjax.cells.gru import GRUParams, GRUState, gru, gru_step
from lstmjax.cells.lstm import LSTMParams, LSTMState, lstm, lstm_step
from lstmjax.cells.projected import ProjectedLSTMParams, projected_lstm, projected_lstm_step
from lstmjax.cells.rnn import RNNParams, RNNState, rnn, rnn_step

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
    "gru",
    "gru_step",
    "lstm",
    "lstm_step",
    "projected_lstm",
    "projected_lstm_step",
    "rnn",
    "rnn_step",
]

# So that an exported program that takes or returns them can be serialised.
for _kind in (GRUParams, GRUState, LSTMParams, LSTMState, ProjectedLSTMParams, RNNParams, RNNState):
    export.register_namedtuple_serialization(_kind, serialized_name=f"lstmjax.{_kind.__name__}")
