"""What only the NNX modules have: variables, transforms, optimisers, checkpoints."""

import copy
import inspect

import chex
import flax.errors
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx

import lstmjax
from lstmjax.nn.nnx import GRU, LSTM, RNN, GRUCell, LSTMCell, OptimizedLSTMCell, Recurrent, SimpleCell

T, B, I, H = 4, 2, 3, 4
RNGS = nnx.Rngs(0)
XS = jax.random.normal(jax.random.key(1), (B, T, I), jnp.float32)
CELLS = [LSTMCell, GRUCell, SimpleCell]


def test_the_two_names_of_the_lstm_are_one():
    assert OptimizedLSTMCell is LSTMCell


def test_arguments_are_flax_s():
    for cell in CELLS:
        ours, theirs = (inspect.signature(c.__init__).parameters for c in (cell, getattr(nnx, cell.__name__)))
        kinds = [{name: argument.kind for name, argument in arguments.items()} for arguments in (ours, theirs)]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("cell_type", CELLS)
class TestCell:
    def test_variables(self, cell_type):
        cell = cell_type(I, H, rngs=nnx.Rngs(0))
        names = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(cell))}
        assert names == set(type(cell.params)._fields)
        assert all(isinstance(variable, nnx.Param) for _, variable in nnx.to_flat_state(nnx.state(cell)))

    def test_a_carry_wants_keys_only_to_draw(self, cell_type):
        cell = cell_type(I, H, rngs=nnx.Rngs(0))
        normal = jax.nn.initializers.normal()
        assert not any(leaf.any() for leaf in jax.tree.leaves(cell.initialize_carry((B, I))))
        with pytest.raises(ValueError, match="no rngs, and carry_init wants a key"):
            cell.initialize_carry((B, I), carry_init=normal)
        for rngs in (nnx.Rngs(0), nnx.Rngs(0).carry):
            carry = cell.initialize_carry((B, I), rngs, carry_init=normal)
            assert all(leaf.all() for leaf in jax.tree.leaves(carry))
        keeping = cell_type(I, H, rngs=nnx.Rngs(0), keep_rngs=True, carry_init=normal)
        first, second = (jax.tree.leaves(keeping.initialize_carry((B, I)))[0] for _ in range(2))
        assert (first != second).all()

    def test_metadata_and_promotion(self, cell_type):
        calls = []

        def promote(arrays, *, dtype):
            calls.append(dtype)
            return arrays

        cell = cell_type(
            I, H, rngs=nnx.Rngs(0), promote_dtype=promote, dtype=jnp.float32, kernel_metadata={"place": "x"},
            recurrent_kernel_metadata={"place": "h"}, bias_metadata={"place": "b"},
        )  # fmt: skip
        assert [v.get_metadata()["place"] for v in (cell.w_x, cell.w_h, cell.b)] == ["x", "h", "b"]
        cell(cell.initialize_carry((B, I)), XS[:, 0])
        assert calls == [jnp.float32]

    def test_in_a_scan_with_remat_and_under_vmap(self, cell_type):
        cell = cell_type(I, H, rngs=nnx.Rngs(0))
        expected = nnx.RNN(cell, return_carry=True)(XS)

        @nnx.scan(in_axes=(None, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
        def scan(cell, carry, x):
            return nnx.remat(lambda cell, carry, x: cell(carry, x))(cell, carry, x)

        chex.assert_trees_all_close(scan(cell, cell.initialize_carry((B, I)), XS), expected, atol=1e-6)
        over_batch = nnx.vmap(lambda cell, xs: nnx.RNN(cell)(xs), in_axes=(None, 0))
        chex.assert_trees_all_close(over_batch(cell, XS), expected[1], atol=1e-6)

    def test_an_ensemble(self, cell_type):
        @nnx.vmap
        def ensemble(rngs):
            return cell_type(I, H, rngs=rngs)

        cells = ensemble(nnx.Rngs(0).split(3))
        assert cells.params.w_h.shape[0] == 3
        assert len(np.unique(cells.params.w_x[:, 0, 0])) == 3
        _, y = nnx.vmap(lambda cell: cell(cell.initialize_carry((B, I)), XS[:, 0]))(cells)
        assert y.shape == (3, B, H)


def test_simple_cells_compute_in_float32_unless_told():
    assert SimpleCell(I, H, rngs=nnx.Rngs(0)).dtype == jnp.float32  # as nnx.SimpleCell
    assert LSTMCell(I, H, rngs=nnx.Rngs(0)).dtype is None
    with pytest.raises(TypeError, match="gate_fn"):
        SimpleCell(I, H, gate_fn=jax.nn.sigmoid, rngs=nnx.Rngs(0))


# name: (exception, what the message must hold, the call)
BAD_CALLS = {
    "size": (ValueError, "^hidden_features is 0; wanted a whole number of at least 1", lambda: LSTM(I, 0, rngs=RNGS)),
    "size of a cell": (ValueError, "^hidden_features is 2.5; wanted", lambda: GRUCell(I, 2.5, rngs=RNGS)),
    "inputs": (ValueError, "^in_features is -1; wanted a whole number of at least 0", lambda: GRU(-1, H, rngs=RNGS)),
    "typo": (
        TypeError, "^LSTM: .*'num_layer'; wanted in_features, hidden_features, .*num_layers, .*forget_bias",
        lambda: LSTM(I, H, num_layer=2, rngs=RNGS),
    ),
    "typo in another": (TypeError, "^RNN: .*'gate'; wanted .*, activation", lambda: RNN(I, H, gate=abs, rngs=RNGS)),
    "typo in a cell": (TypeError, "^GRUCell: .*'bias'; wanted .*, bias_init", lambda: GRUCell(I, H, bias=2, rngs=RNGS)),
    "another cell's": (
        TypeError, "^SimpleCell: .*'gate_fn'; wanted .*, residual", lambda: SimpleCell(I, H, gate_fn=abs, rngs=RNGS)
    ),
    "of the cell alone": (TypeError, "^LSTM: .*'carry_init'", lambda: LSTM(I, H, carry_init=abs, rngs=RNGS)),
    "no activation": (TypeError, "activation is None; wanted an", lambda: RNN(I, H, activation=None, rngs=RNGS)),
    "no rngs": (TypeError, "^GRU: missing .*'rngs'; wanted", lambda: GRU(I, H)),
    "no size": (TypeError, "^LSTMCell: missing .*'hidden_features'; wanted", lambda: LSTMCell(I, rngs=RNGS)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    exception, message, call = BAD_CALLS[name]
    with pytest.raises(exception, match=message):
        call()


def test_a_class_built_on_ours_has_its_own_arguments(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # NumPy's numbers are none of Python's

    class Encoder(LSTM):
        def __init__(self, size, *, rngs):
            super().__init__(I, size, rngs=rngs)

    assert Encoder(np.int64(H), rngs=nnx.Rngs(0))(XS)[1].shape == (B, T, H)
    with pytest.raises(TypeError, match=r"^Encoder: .*'num_layers'; wanted size, rngs$"):
        Encoder(H, num_layers=2, rngs=nnx.Rngs(0))


def test_copies_compute_the_same(model):
    for module in (model, LSTMCell(I, H, rngs=nnx.Rngs(0))):
        for again in (copy.deepcopy(module), nnx.clone(module), nnx.merge(*nnx.split(module))):
            chex.assert_trees_all_equal(again.params, module.params)


@pytest.fixture
def model():
    return LSTM(I, H, num_layers=2, rngs=nnx.Rngs(0))


def test_random_state_is_kept_where_there_is_noise(model):
    assert not jax.tree.leaves(nnx.state(model, nnx.RngState))
    assert len(nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Param)))) == 0
    dropping = LSTM(I, H, num_layers=2, dropout_rate=0.5, rngs=nnx.Rngs(0))
    noisy = Recurrent(lstmjax.zoneout(lstmjax.gru(H), 0.5), I, rngs=nnx.Rngs(0))
    for module in (dropping, noisy):
        assert jax.tree.leaves(nnx.state(module, nnx.RngState))
        first, second = module(XS)[1], module(XS)[1]
        assert (first != second).any()
        module.eval()  # Flax's own switch
        chex.assert_trees_all_equal(module(XS), module(XS))
        module.train()
        assert (module(XS)[1] != module(XS)[1]).any()
        twice = [nnx.jit(lambda module: module(XS)[1])(module) for _ in range(2)]
        assert (twice[0] != twice[1]).any()


def test_equal_modules_share_a_graph(model):
    other = LSTM(I, H, num_layers=2, rngs=nnx.Rngs(1))
    assert nnx.graphdef(model) == nnx.graphdef(other)
    other.params = model.params
    assert nnx.graphdef(model) == nnx.graphdef(other)
    chex.assert_trees_all_equal(model(XS), other(XS))


def test_new_parameters_go_into_the_variables_there_are(model):
    variable = model.forward[0].w_x
    model.params = jax.tree.map(jnp.zeros_like, model.params)
    assert model.forward[0].w_x is variable
    assert not variable[...].any()


def test_split_merge_jit_grad(model):
    graph, state = nnx.split(model)
    merged = nnx.merge(graph, state)
    expected = model(XS)
    chex.assert_trees_all_equal(merged(XS), expected)
    chex.assert_trees_all_close(nnx.jit(lambda model, xs: model(xs))(model, XS), expected, atol=1e-6)

    grads = nnx.grad(lambda model: jnp.sin(model(XS)[1]).sum())(model)
    cell = lstmjax.lstm(H)

    def loss(params):
        return jnp.sin(lstmjax.unroll_stack([cell] * 2, params, XS.swapaxes(0, 1))[1]).sum()

    by_core = jax.grad(loss)(model.params)
    nnx.update(model, grads)  # a tree of the same form: read it through the accessor
    chex.assert_trees_all_close(model.params, by_core, atol=1e-5)


def test_remat_vmap_and_an_ensemble(model):
    expected = model(XS)[1]
    remat = nnx.remat(lambda model, xs: model(xs)[1])
    chex.assert_trees_all_close(remat(model, XS), expected, atol=1e-6)
    each = nnx.vmap(lambda model, xs: model(xs)[1], in_axes=(None, 0))
    chex.assert_trees_all_close(each(model, XS), expected, atol=1e-6)
    models = nnx.vmap(lambda rngs: LSTM(I, H, rngs=rngs))(nnx.Rngs(0).split(3))
    assert nnx.vmap(lambda model: model(XS)[1])(models).shape == (3, B, T, H)


def test_assignment_from_another_trace_level_is_flax_s_error(model):
    @jax.jit
    def change(params):
        model.params = params

    with pytest.raises(flax.errors.TraceContextError):
        change(model.params)


class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.recurrent = GRU(I, H, num_layers=2, dropout_rate=0.1, rngs=rngs)
        self.cell = nnx.RNN(LSTMCell(H, H, rngs=rngs), rngs=False)
        self.readout = nnx.Linear(H, 1, rngs=rngs)

    def __call__(self, xs):
        _, ys = self.recurrent(xs)
        return self.readout(self.cell(ys)[:, -1])


def trained(steps=12):
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: ((model(XS) - XS[:, 0, :1]) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    return model, [train_step(model, optimizer) for _ in range(steps)]


def test_training_and_a_checkpoint(tmp_path):
    model, losses = trained()
    assert losses[-1] < 0.7 * losses[0]
    _, state = nnx.split(model)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", nnx.to_pure_dict(state))
    other = Classifier(nnx.Rngs(1))
    graph, state = nnx.split(other)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(tmp_path / "model", nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, saved)
    chex.assert_trees_all_equal(nnx.merge(graph, state)(XS), model(XS))
    chex.assert_trees_all_equal(nnx.merge(graph, state).recurrent.params, model.recurrent.params)
