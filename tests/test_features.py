"""The README's table of features: every entry, against the library it is about.

What the table says is there, is run. What it says is not, is run and refused, or is wrong, or nothing of that name is
among the options of the library's LSTM and its loop: where a library learns it, the table has to be looked at again.
"""

import inspect
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax

README = Path(__file__).parent.parent / "README.md"
XS = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)  # [B, T, I]
GRID = np.ones((2, 6, 8, 3), np.float32)  # [B, T, 8, I]
STEP_2 = np.tile(np.arange(6) == 2, (2, 1))
KEY = jax.random.key(0)

pytestmark = pytest.mark.filterwarnings("ignore")  # what the others warn of is not looked at here


class MissingError(AttributeError):
    """The library has nothing to try."""


class Library(SimpleNamespace):
    """A library's LSTM of four units on [B, T, 3]: how it is run, which options that takes, where they are named."""

    takes, array = (), staticmethod(jnp.asarray)
    forward_mode = staticmethod(lambda f: jax.eval_shape(lambda s: jax.jvp(f, (s,), (s,))[1], 1.0))
    second_order = staticmethod(lambda f: jax.eval_shape(jax.grad(jax.grad(f)), 1.0))

    def __getattr__(self, name):
        raise MissingError(name)

    def final(self, xs, **options):
        if not options.keys() <= set(self.takes):
            raise MissingError
        return np.asarray(self.h(self.run(self.array(xs), **options)[0]))

    def modules(self):
        return [inspect.getmodule(entry) for entry in self.entries]

    def loss(self, scale):
        return self.run(scale * self.array(XS))[1].sum()

    def export(self):
        shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, t, 3"), jnp.float32)
        return jax.export.export(jax.jit(lambda xs: self.run(xs)[1]))(shape).call


def ours():
    cell = lstmjax.lstm(4)
    params = cell.init(KEY, 3)

    def run(xs, lengths=None, **flags):
        flags = {name: flag.T for name, flag in flags.items()}
        state, ys = lstmjax.unroll(cell, params, xs.swapaxes(0, 1), lengths=lengths, **flags)
        return state, ys.swapaxes(0, 1)

    def memory(block):
        gradient = jax.grad(lambda p: lstmjax.unroll(cell, p, jnp.ones((500, 8, 3)), remat_block=block)[0].h.sum())
        return jax.jit(gradient).lower(params).compile().memory_analysis().temp_size_in_bytes

    layers, projected = [(cell, cell)] * 2, lstmjax.projected_lstm(4, 2)
    weights = lstmjax.init_stack(layers, KEY, 3)
    drawn = lstmjax.draw_masks(KEY, lstmjax.variational_dropout(cell, 0.5), params, XS)
    grid = lstmjax.conv_lstm(4, (8,))
    kernels = grid.init(KEY, GRID.shape[-1])
    return Library(
        run=run, h=lambda state: state.h, takes=("lengths", "mask", "resets"), entries=(lstmjax.unroll, lstmjax.lstm),
        biases=lambda forget: lstmjax.lstm(4, forget_bias=forget).init(KEY, 3).b,
        projected=lambda: lstmjax.unroll(projected, projected.init(KEY, 3), XS)[1],
        several=lambda: lstmjax.unroll_stack(layers, weights, XS, dropout_rate=0.5, dropout_key=KEY)[1],
        dropped=lambda: lstmjax.unroll(*drawn)[1] != lstmjax.unroll(cell, params, XS)[1],
        less_memory=lambda: memory(20) < memory(None) / 2,
        convolution=lambda: lstmjax.unroll(grid, kernels, GRID.swapaxes(0, 1))[1].swapaxes(0, 1),
    )  # fmt: skip


def linen():
    nn = pytest.importorskip("flax.linen")
    rnn, grid = nn.RNN(nn.OptimizedLSTMCell(4), return_carry=True), nn.RNN(nn.ConvLSTMCell(4, (3,)))
    weights = rnn.init(KEY, XS)
    return Library(
        run=lambda xs, lengths=None: rnn.apply(weights, xs, seq_lengths=lengths), h=lambda state: state[1],
        takes=("lengths",), entries=(nn.RNN, nn.RNN.__call__, nn.LSTMCell, nn.OptimizedLSTMCell, nn.Bidirectional),
        convolution=lambda: grid.init_with_output(KEY, GRID)[0],
    )  # fmt: skip


def nnx():
    nnx = pytest.importorskip("flax.nnx")

    def run(xs, lengths=None):  # made anew, with the same weights, inside whatever transformation this is
        return nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)))(xs, seq_lengths=lengths, return_carry=True)

    entries = (nnx.RNN, nnx.RNN.__call__, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.Bidirectional)
    return Library(run=run, h=lambda state: state[1], takes=("lengths",), entries=entries)


def haiku():
    hk = pytest.importorskip("haiku")

    def unrolled(core, xs):
        return hk.dynamic_unroll(core, xs, core.initial_state(jax.tree.leaves(xs)[0].shape[0]), time_major=False)[::-1]

    def network(xs, resets=None):
        return unrolled(hk.LSTM(4), xs) if resets is None else unrolled(hk.ResetCore(hk.LSTM(4)), (xs, resets))

    model = hk.without_apply_rng(hk.transform(network))
    grid = hk.transform(lambda xs: unrolled(hk.Conv1DLSTM((8,), 4, 3), xs)[1])
    weights = model.init(KEY, XS)
    return Library(
        run=lambda xs, **options: model.apply(weights, xs, **options), h=lambda state: state.hidden, takes=("resets",),
        entries=(hk.LSTM, hk.dynamic_unroll), convolution=lambda: grid.apply(grid.init(KEY, GRID), None, GRID),
    )  # fmt: skip


def equinox():
    eqx = pytest.importorskip("equinox")
    cell = eqx.nn.LSTMCell(3, 4, key=KEY)

    def run(xs):  # the loop is ours: it has none
        start = jnp.zeros((xs.shape[0], 4))
        step = lambda state, x: (jax.vmap(cell)(x, state),) * 2  # noqa: E731
        state, (ys, _) = jax.lax.scan(step, (start, start), xs.swapaxes(0, 1))
        return state, ys.swapaxes(0, 1)

    return Library(run=run, h=lambda state: state[0], entries=(eqx.nn.LSTMCell,))


def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    layers = pytest.importorskip("keras").layers

    def made(**options):
        layer = layers.LSTM(4, return_sequences=True, return_state=True, **options)
        layer.build((None, None, 3))
        variables = [[v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)]
        return variables, lambda xs, **call: layer.stateless_call(*variables, xs, **call)[0]

    _, plain = made()
    _, dropping = made(recurrent_dropout=0.5, seed=0)

    def run(xs, mask=None, lengths=None):
        ys, *state = plain(xs, mask=mask if lengths is None else np.arange(6) < lengths[:, None])
        return state, ys

    return Library(
        run=run, h=lambda state: state[0], takes=("lengths", "mask"), entries=(layers.LSTM, layers.LSTM.call),
        biases=lambda forget: made(unit_forget_bias=bool(forget))[0][0][2],
        dropped=lambda: dropping(XS, training=True)[0] != dropping(XS, training=False)[0],
        convolution=lambda: layers.ConvLSTM1D(4, 3, padding="same", return_sequences=True)(GRID),
    )  # fmt: skip


def pytorch():
    torch = pytest.importorskip("torch")
    lstm, xs = torch.nn.LSTM, torch.tensor(XS)
    pack = torch.nn.utils.rnn.pack_padded_sequence
    module = lstm(3, 4, batch_first=True)

    def run(xs, lengths=None):
        if lengths is not None:
            xs = pack(xs, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        return module(xs)[::-1]

    def export():
        sizes = {0: torch.export.Dim("b"), 1: torch.export.Dim("t")}
        return torch.export.export(module, (xs,), dynamic_shapes=(sizes,)).module()

    return Library(
        run=run, h=lambda state: state[0][0].detach(), takes=("lengths",), entries=(torch.nn.RNNBase, lstm.forward),
        array=torch.as_tensor, export=export,
        forward_mode=lambda f: torch.func.jvp(f, (torch.ones(()),), (torch.ones(()),)),
        second_order=lambda f: torch.autograd.functional.hessian(f, torch.ones(()), strict=True),
        projected=lambda: lstm(3, 4, proj_size=2)(xs)[0],
        several=lambda: lstm(3, 4, num_layers=2, dropout=0.5, bidirectional=True)(xs)[0],
    )  # fmt: skip


LIBRARIES = {
    "lstmjax": ours, "Flax Linen": linen, "Flax NNX": nnx, "Haiku": haiku, "Equinox": equinox, "Keras": keras,
    "PyTorch": pytorch,
}  # fmt: skip


def same(mine, wanted):
    return np.allclose(mine, wanted, atol=1e-5)


def own_length(library, length):
    alone = library.final(XS[1:, :length]) if length else np.zeros((1, 4))
    return same(library.final(XS, lengths=np.array([6, length]))[1:], alone)


# feature: how it is tried, and what an option for it would have in its name
FEATURES = {
    "rows of their own length": (lambda of: own_length(of, 3), "length"),
    "… of length 0": (lambda of: own_length(of, 0), "length"),
    "a mask that skips any steps": (lambda of: same(of.final(XS, mask=~STEP_2), of.final(np.delete(XS, 2, 1))), "mask"),
    "resets inside a sequence": (lambda of: same(of.final(XS, resets=STEP_2), of.final(XS[:, 2:])), "reset"),
    "the state's fields have names": (lambda of: hasattr(of.run(of.array(XS))[0], "_fields"), ""),
    "forget bias as an argument": (lambda of: same(of.biases(1.0)[4:8] - of.biases(0.0)[4:8], 1), "forget"),
    "projection of h": (lambda of: of.projected().shape == (2, 6, 2), "proj"),
    "layers, directions, dropout in one call": (lambda of: of.several().shape == (2, 6, 8), "num_layers"),
    "rematerialised in blocks of steps": (lambda of: of.less_memory(), "remat"),
    "forward mode, float32": (lambda of: of.forward_mode(of.loss) is not None, ""),
    "second order, float32": (lambda of: of.second_order(of.loss) is not None, ""),
    "export, batch and time symbolic": (lambda of: of.export()(np.ones((5, 9, 3), np.float32)).shape == (5, 9, 4), ""),
    "cuDNN on NVIDIA GPUs": (lambda of: any("cudnn" in inspect.getsource(module) for module in of.modules()), ""),
    "recurrent dropout": (lambda of: of.dropped().any(), "recurrent_dropout"),
    "convolutional LSTM": (lambda of: of.convolution().shape == (2, 6, 8, 4), "convlstm"),
}  # fmt: skip

REFUSED = {
    ("… of length 0", "PyTorch"): "Length of all samples has to be greater than 0",
    ("forward mode, float32", "PyTorch"): "Trying to use forward AD",
    ("export, batch and time symbolic", "Haiku"): "Symbolic dimension",
    ("export, batch and time symbolic", "PyTorch"): "You marked t as dynamic",
}


def table():
    """What the README says: the columns, and by feature which of them say yes."""
    text = README.read_text().split("<!-- features -->")[1].split("<!-- end of features -->")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    (_, *columns), _, *rows = [[entry.strip() for entry in line] for line in lines]
    return columns, {name: [entry.startswith("✓") for entry in entries] for name, *entries in rows}


# The others change when they are upgraded, and not with this library.
@pytest.fixture(
    scope="module",
    params=[name if name == "lstmjax" else pytest.param(name, marks=pytest.mark.slow) for name in LIBRARIES],
)
def library(request):
    return request.param, LIBRARIES[request.param]()


@pytest.mark.parametrize("feature", FEATURES)
def test_entry(feature, library):
    name, library = library
    columns, rows = table()
    assert (columns, list(rows)) == (list(LIBRARIES), list(FEATURES))
    said = rows[feature][columns.index(name)]
    attempt, word = FEATURES[feature]
    if (feature, name) in REFUSED:
        with pytest.raises(Exception, match=REFUSED[feature, name]):
            attempt(library)
        assert not said
        return
    try:
        assert attempt(library) == said
    except MissingError:
        assert not said
        options = [option for entry in library.entries for option in inspect.signature(entry).parameters]
        around = [name.lower() for module in library.modules() for name in dir(module)]
        assert not [name for name in options + around if word in name]
