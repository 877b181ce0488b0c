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
from lstmjax.nn.linen import GRU, LSTM, RNN, ConvLSTMCell, GRUCell, LSTMCell, MGUCell, OptimizedLSTMCell, SimpleCell
from tests.cells import compiled

T, B, I, H = 4, 2, 3, 4
KEY = jax.random.key(0)
XS = jax.random.normal(jax.random.key(1), (B, T, I), jnp.float32)
CELLS = [LSTMCell, GRUCell, SimpleCell]


def test_the_two_names_of_the_lstm_are_one():
    assert OptimizedLSTMCell is LSTMCell


def test_fields_have_flax_s_order():
    for cell in [*CELLS, MGUCell, ConvLSTMCell]:
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


def drawn(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray((rng.normal(size=s.shape) / 2).astype(s.dtype)), tree)


def mgu_params(theirs):
    """The core's parameters of Flax's own minimal gated unit, read without this library's help."""
    dense = [[theirs[way + gate]["kernel"] for gate in "fn"] for way in "ih"]
    w_x, w_h = (np.concatenate(kernels, -1) for kernels in dense)
    b = np.concatenate([theirs["if"]["bias"], theirs["in"]["bias"]])
    if "bias" in theirs["hn"]:
        return lstmjax.cells.MGUParams(w_x, w_h, b, theirs["hn"]["bias"])
    return lstmjax.cells.build.GatedParams(w_x, w_h, b)


def conv_params(theirs):
    """Likewise; Flax's gates are i, g, f, o, it has two biases, and 1 more for the forget gate."""

    def reordered(array):
        i, g, f, o = np.split(array, 4, -1)
        return np.concatenate([i, f, g, o], -1)

    bias = np.repeat([0, 1, 0, 0], H).astype(np.float32)
    if "bias" in theirs["ih"]:
        bias += reordered(theirs["ih"]["bias"]) + reordered(theirs["hh"]["bias"])
    return lstmjax.cells.ConvLSTMParams(*(reordered(theirs[way]["kernel"]) for way in ("ih", "hh")), bias)


DROP_INS = {
    "mgu": (MGUCell, linen.MGUCell, {}, (B, I), mgu_params),
    "mgu, other activations": (
        MGUCell, linen.MGUCell, {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.soft_sign}, (B, I), mgu_params
    ),
    "mgu without reset gate": (MGUCell, linen.MGUCell, {"reset_gate": False}, (B, I), mgu_params),
    "signal": (ConvLSTMCell, linen.ConvLSTMCell, {"kernel_size": (3,)}, (5, B, 6, I), conv_params),
    "image": (ConvLSTMCell, linen.ConvLSTMCell, {"kernel_size": (2, 3), "strides": (1, 1)}, (B, 4, 5, I), conv_params),
    "image without biases": (
        ConvLSTMCell, linen.ConvLSTMCell, {"kernel_size": (3, 1), "use_bias": False}, (B, 3, 3, I), conv_params
    ),
    "image on a torus": (
        ConvLSTMCell, linen.ConvLSTMCell, {"kernel_size": (3, 4), "padding": "CIRCULAR"}, (B, 5, 5, I), conv_params
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DROP_INS)
def test_a_cell_in_place_of_linen_s(name):
    ours, theirs, options, shape, converted = DROP_INS[name]
    ours, theirs = ours(H, **options), theirs(H, **options)
    assert ours.num_feature_axes == theirs.num_feature_axes
    x = drawn(jax.ShapeDtypeStruct(shape, jnp.float32), 1)
    carry = theirs.initialize_carry(KEY, shape)
    chex.assert_trees_all_equal(ours.initialize_carry(KEY, shape), carry)
    like, made = jax.eval_shape(lambda: (theirs.init(KEY, carry, x), ours.init(KEY, carry, x)))
    variables, carry = drawn(like), drawn(carry, 2)
    params = converted(variables["params"])
    replaced = ours.variables_from(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(replaced, made)
    chex.assert_trees_all_equal(ours.params_from(replaced), params)
    got, wanted = compiled(
        lambda *args: [ours.apply(args[0], *args[2:]), theirs.apply(*args[1:])], replaced, variables, carry, x
    )
    chex.assert_trees_all_close(got, wanted, atol=1e-6)


def test_a_convolution_in_flax_s_rnn():
    cell, images = ConvLSTMCell(H, (3, 3)), drawn(jax.ShapeDtypeStruct((B, T, 4, 4, I), jnp.float32))
    layer = linen.RNN(cell, return_carry=True)
    variables = drawn(jax.eval_shape(lambda: layer.init(KEY, images)))
    params = cell.params_from({"params": variables["params"]["cell"]})

    def both(params, images):
        state, ys = lstmjax.unroll(lstmjax.conv_lstm(H, (4, 4)), params, images.swapaxes(0, 1))
        return layer.apply(variables, images), (tuple(state), ys.swapaxes(0, 1))

    chex.assert_trees_all_close(*compiled(both, params, images), atol=1e-6)


def test_where_drop_ins_begin():
    cell = MGUCell(H)
    carry = cell.initialize_carry(KEY, (B, I))
    params = cell.params_from(cell.init(KEY, carry, XS[:, 0]))
    assert params.b.tolist() == [1] * H + [0] * H
    assert not params.b_n.any()
    cell = ConvLSTMCell(H, (3,))
    params = cell.params_from(cell.init(KEY, cell.initialize_carry(KEY, XS.shape), XS))
    assert params.b.tolist() == [0] * H + [1] * H + [0] * 2 * H


def test_what_a_convolution_cannot_be(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    carry = ConvLSTMCell(H, (3,)).initialize_carry(KEY, XS.shape)
    with pytest.raises(ValueError, match=r"strides are \(2,\); wanted None, or ones"):
        ConvLSTMCell(H, (3,), strides=(2,)).init(KEY, carry, XS)
    with pytest.raises(ValueError, match="padding is 'VALID'; wanted 'SAME' or 'CIRCULAR'"):
        ConvLSTMCell(H, (3,), padding="VALID").init(KEY, carry, XS)
    cell = ConvLSTMCell(H, (3,), use_bias=False)
    params = cell.params_from(cell.init(KEY, carry, XS))
    with pytest.raises(ValueError, match=r"params.b is .*; wanted .*, which is fixed without use_bias"):
        cell.variables_from(params._replace(b=params.b + 1))


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
    def __call__(self, xs, deterministic=True):
        _, ys = GRU(H, num_layers=2, dropout_rate=0.1, name="recurrent")(xs, deterministic=deterministic)
        return linen.Dense(1)(linen.RNN(LSTMCell(H))(ys)[:, -1])


def trained(steps=12):
    model = Classifier()
    state = TrainState.create(apply_fn=model.apply, params=model.init(KEY, XS)["params"], tx=optax.sgd(0.1))

    @jax.jit
    def train_step(state, key):
        def loss(params):
            return ((state.apply_fn({"params": params}, XS, False, rngs={"dropout": key}) - XS[:, 0, :1]) ** 2).mean()

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
