"""Parameters to and from other libraries.

Ours, as :func:`lstmjax.unroll_stack` takes them: gates in the order i, f, g, o (LSTM) and r, z, n (GRU), layout
``(in, out)``, one bias, and for a GRU the candidate's recurrent bias apart.

* PyTorch, ``from_torch``, ``to_torch``: a whole stack, a tuple with one entry a layer; of its cells one entry
* safetensors, ``load_safetensors``, ``save_safetensors``: the same, in a file under PyTorch's names
* ONNX, ``from_onnx``, ``to_onnx``: the same, the ``LSTM``, ``GRU`` or ``RNN`` nodes of a model
* cuDNN, ``from_cudnn``, ``to_cudnn``: the same, in one flat vector
* Keras, ``from_keras``, ``to_keras``: one layer, a cell's parameters or a pair of them
* Flax Linen, ``from_linen``, ``to_linen``: one cell's parameters
* Flax NNX, ``from_nnx``, ``to_nnx``: one cell's parameters
* Haiku, ``from_haiku``, ``to_haiku``: one cell's parameters
* Equinox, ``from_equinox``, ``to_equinox``: one cell's parameters

All are pure. Dtypes are kept, and inputs are copied: what comes back shares no memory with what was given. ``from_*``
can be traced, but for ``from_onnx``, and so jitted and differentiated; what ``to_*`` hands out is NumPy, but for
``to_nnx``, ``to_equinox`` and ``to_onnx``. Activations are not weights: where a layer has others than σ and tanh,
convert its weights and give the activations to the cell here. Nor is an initial state, dropout or a direction: those
are for :func:`lstmjax.unroll` and :func:`lstmjax.unroll_stack`. Where a layer itself is given, and not its weights
alone, what it computes is checked.
"""

from lstmjax.convert.cudnn import from_cudnn, to_cudnn
from lstmjax.convert.equinox import from_equinox, to_equinox
from lstmjax.convert.flax import from_linen, from_nnx, to_linen, to_nnx
from lstmjax.convert.haiku import from_haiku, to_haiku
from lstmjax.convert.keras import from_keras, to_keras
from lstmjax.convert.onnx import from_onnx, to_onnx
from lstmjax.convert.safetensors import load_safetensors, save_safetensors
from lstmjax.convert.torch import from_torch, to_torch

__all__ = [
    "from_cudnn",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_onnx",
    "from_torch",
    "load_safetensors",
    "save_safetensors",
    "to_cudnn",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_onnx",
    "to_torch",
]
