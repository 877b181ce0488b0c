"""The cells: one file each, all of the shape :class:`Cell`."""

from lstmjax.cells.base import Cell
from lstmjax.cells.gru import GRUParams, GRUState, gru, gru_step
from lstmjax.cells.lstm import LSTMParams, LSTMState, lstm, lstm_step
from lstmjax.cells.rnn import RNNParams, RNNState, rnn, rnn_step

__all__ = [
    "Cell",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
    "RNNParams",
    "RNNState",
    "gru",
    "gru_step",
    "lstm",
    "lstm_step",
    "rnn",
    "rnn_step",
]
