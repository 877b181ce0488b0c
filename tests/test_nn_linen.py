"""What only the Linen modules have: variables, lifted transforms, train states, checkpoints."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import linen
from flax.core import freeze
from flax.training.train_state import TrainState

import lstmjax
from lstmjax.nn.linen import GRU, LSTM, RNN, GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell

T, B, I, H = 4, 2, 3, 4
KEY = jax.random.key(0)
XS = jax.random.normal(jax.random.key(1), (B, T, I), jnp.float32)
CELLS = [LSTMCell, GRUCell, SimpleCell]


def test_the_two_names_of_the_lstm_are_one():
    assert OptimizedLSTMCell is LSTMCell


def test_fields_have_flax_s_order():
    for cell in CELLS:
        ours, theirs = (dataclasses.fields(c) for c in (cell, getattr(linen, cell.__name__)))
        assert [field.name for field in ours] == [field.name for field in theirs]


@pytest.mark.parametrize("cell_type", CELLS)
class TestCell:
    def test_variables(self, cell_type):
        cell = cell_type(H)
        variables = cell.init(KEY, cell.initialize_carry(KEY, (B, I)), XS[:, 0])
        params = cell.params_from(variables)
        assert list(variables) == ["params"]
        assert set(variables["params"]) == set(type(params)._fields)
        chex.assert_trees_all_equal(cell.variables_from(params), variables)
        chex.assert_trees_all_equal(cell.params_from(freeze(variables)), params)

    def test_carries_are_drawn_as_in_flax(self, cell_type):
        normal = jax.nn.initializers.normal()
        theirs = getattr(linen, cell_type.__name__)(H, carry_init=normal)
        carries = [cell.initialize_carry(KEY, (B, I)) for cell in (cell_type(H, carry_init=normal), theirs)]
        chex.assert_trees_all_equal(*carries)

    def test_a_carry_of_another_size(self, cell_type):
        cell = cell_type(H)
        carry = cell_type(H + 1).initialize_carry(KEY, (B, I))
        with pytest.raises(ValueError, match=r"state.h has shape \(2, 5\); wanted \(2, 4\)"):
            cell.init(KEY, carry, XS[:, 0])

    def test_in_a_scan_with_remat_and_under_vmap(self, cell_type):
        cell = cell_type(H)
        carry = cell.initialize_carry(KEY, (B, I))
        variables = cell.init(KEY, carry, XS[:, 0])
        expected = linen.RNN(cell, return_carry=True).apply({"params": {"cell": variables["params"]}}, XS)
        scan = linen.scan(
            linen.remat(cell_type), variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        chex.assert_trees_all_close(scan(H).apply(variables, carry, XS), expected, atol=1e-6)
        each = linen.vmap(cell_type, variable_axes={"params": None}, split_rngs={"params": False})
        stepped = each(H).apply(variables, carry, XS[:, 0])
        chex.assert_trees_all_close(stepped, cell.apply(variables, carry, XS[:, 0]), atol=1e-6)

    def test_an_ensemble(self, cell_type):
        cell = cell_type(H)
        carry = cell.initialize_carry(KEY, (B, I))
        each = linen.vmap(
            cell_type, in_axes=None, axis_size=3, variable_axes={"params": 0}, split_rngs={"params": True}
        )
        (_, y), variables = each(H).init_with_output(KEY, carry, XS[:, 0])
        assert y.shape == (3, B, H)
        assert jax.vmap(cell.params_from)(variables).w_h.shape[0] == 3
        assert len(np.unique(variables["params"]["w_x"][:, 0, 0])) == 3


@pytest.fixture
def model():
    return LSTM(H, num_layers=2, bidirectional=True)


@pytest.fixture
def variables(model):
    return model.init(KEY, XS)


def test_names(model, variables):
    assert set(variables["params"]) == {"forward_0", "backward_0", "forward_1", "backward_1"}
    assert set(variables["params"]["forward_1"]) == {"w_x", "w_h", "b"}
    assert variables["params"]["backward_1"]["w_x"].shape == (2 * H, 4 * H)
    params = model.params_from(variables)
    assert isinstance(params[1][1], lstmjax.LSTMParams)
    chex.assert_trees_all_equal(model.variables_from(params), variables)


def test_variables_of_another_module(model, variables):
    with pytest.raises(ValueError, match=r"variables\['params'\] has structure .*; wanted"):
        GRU(H, num_layers=2, bidirectional=True).params_from(variables)
    with pytest.raises(ValueError, match=r"\['backward_0'\]\['b'\] has shape \(16,\); wanted \(20,\)"):
        LSTM(H + 1, num_layers=2, bidirectional=True).params_from(variables)
    with pytest.raises(TypeError, match=r"has dtype float32; wanted bfloat16"):
        LSTM(H, num_layers=2, bidirectional=True, param_dtype=jnp.bfloat16).params_from(variables)
    for garbage in ((), {"w_x": jnp.ones(3)}):
        with pytest.raises(ValueError, match="params has structure"):
            model.variables_from(garbage)


def test_boxes_of_metadata_are_taken_off():
    init = linen.with_partitioning(lstmjax.init.orthogonal(), (None, "model"))
    model = LSTM(H, recurrent_kernel_init=init)
    variables = model.init(KEY, XS)
    boxed = variables["params"]["forward_0"]["w_h"]
    assert isinstance(boxed, linen.Partitioned)
    (params,) = model.params_from(variables)
    assert params.w_h is boxed.value


@pytest.mark.parametrize("layers", [LSTM, GRU, RNN])
def test_only_features_goes_by_place(layers, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(TypeError, match=f"{layers.__name__}.* takes 2 positional arguments but 3 were given"):
        layers(4, 8)


def test_bad_sizes(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(ValueError, match=r"^features is 0; wanted a whole number of at least 1"):
        LSTMCell(0).init(KEY, LSTMCell(1).initialize_carry(KEY, (B, I)), XS[:, 0])
    with pytest.raises(ValueError, match=r"^features is 2\.5; wanted a whole number of at least 1"):
        GRUCell(2.5).initialize_carry(KEY, (B, I))
    with pytest.raises(ValueError, match=r"^features is -1; wanted a whole number of at least 1"):
        LSTM(-1, num_layers=2).init(KEY, XS)


def test_jit_grad_vmap_remat():
    model = LSTM(H, num_layers=2)
    variables = model.init(KEY, XS)
    expected = model.apply(variables, XS)
    chex.assert_trees_all_close(jax.jit(model.apply)(variables, XS), expected, atol=1e-6)
    each = jax.vmap(lambda xs: model.apply(variables, xs)[1])
    chex.assert_trees_all_close(each(XS), expected[1], atol=1e-6)
    cell = lstmjax.lstm(H)

    def loss(params):
        return jnp.sin(lstmjax.unroll_stack([cell] * 2, params, XS.swapaxes(0, 1))[1]).sum()

    remat = linen.remat(LSTM)(H, num_layers=2)
    grads = jax.grad(lambda v: jnp.sin(remat.apply(v, XS)[1]).sum())(variables)
    chex.assert_trees_all_close(model.params_from(grads), jax.grad(loss)(model.params_from(variables)), atol=1e-5)


class Classifier(linen.Module):
    @linen.compact
    def __call__(self, xs, key=None):
        _, ys = GRU(H, num_layers=2, dropout_rate=0.1, name="recurrent")(xs, dropout_key=key)
        return linen.Dense(1)(linen.RNN(LSTMCell(H))(ys)[:, -1])


def trained(steps=12):
    model = Classifier()
    state = TrainState.create(apply_fn=model.apply, params=model.init(KEY, XS)["params"], tx=optax.sgd(0.1))

    @jax.jit
    def train_step(state, key):
        def loss(params):
            return ((state.apply_fn({"params": params}, XS, key) - XS[:, 0, :1]) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    losses = []
    for step in range(steps):
        state, value = train_step(state, jax.random.key(step))
        losses.append(value)
    return state, losses


def test_training_and_a_checkpoint(tmp_path):
    state, losses = trained()
    assert losses[-1] < 0.7 * losses[0]
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", state.params)
    abstract = jax.eval_shape(lambda: Classifier().init(KEY, XS)["params"])
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "params", abstract)
    chex.assert_trees_all_equal(restored, state.params)
    GRU(H, num_layers=2).params_from({"params": restored["recurrent"]})


def test_a_layer_is_shared_within_a_module(model):
    class Twice(linen.Module):
        @linen.compact
        def __call__(self, xs):
            layer = LSTM(I, name="layer")
            return layer(layer(xs)[1])[1]

    ys, variables = Twice().init_with_output(KEY, XS)
    assert ys.shape == XS.shape
    assert set(variables["params"]) == {"layer"}
