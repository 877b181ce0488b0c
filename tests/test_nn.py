"""The Flax modules: cells against Flax's own inside Flax's own wrappers, sequence modules against cells and core.

One table of cells and kinds, run over both frameworks.
"""

from typing import Any, NamedTuple

import chex
import flax.errors
import flax.linen as linen
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import lstmjax
import lstmjax.nn.linen as our_linen
import lstmjax.nn.nnx as our_nnx
from lstmjax.nn import common

T, B, I, H = 5, 2, 3, 4
KEY = jax.random.key(0)
XS = jax.random.normal(jax.random.key(1), (B, T, I), jnp.float32)
LENGTHS = jnp.array([5, 3], jnp.int32)
FRAMEWORKS = ["nnx", "linen"]
ZEROS = jax.nn.initializers.zeros
DRAWN = {"kernel_init": ZEROS, "recurrent_kernel_init": ZEROS}  # replaced at once: not worth a decomposition


class Nnx(NamedTuple):
    """An NNX module, called."""

    module: Any

    def __call__(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    @property
    def params(self):
        return self.module.params

    def replaced(self, params):
        module = nnx.clone(self.module)
        module.params = params
        return Nnx(module)

    def rnn(self, **options):
        return nnx.RNN(self.module, **options)

    def bidirectional(self, other, **options):
        return nnx.Bidirectional(self.rnn(), other.rnn(), **options)


class Linen(NamedTuple):
    """A Linen module and its variables, called."""

    module: Any
    variables: Any

    def __call__(self, *args, **kwargs):
        return self.module.apply(self.variables, *args, **kwargs)

    @property
    def params(self):
        return self.module.params_from(self.variables)

    def replaced(self, params):
        return Linen(self.module, self.module.variables_from(params))

    def rnn(self, **options):
        return Linen(linen.RNN(self.module, **options), {"params": {"cell": self.variables["params"]}})

    def bidirectional(self, other, **options):
        ahead, back = self.rnn(), other.rnn()
        params = {"forward_rnn": ahead.variables["params"], "backward_rnn": back.variables["params"]}
        return Linen(linen.Bidirectional(ahead.module, back.module, **options), {"params": params})


NAMES = {"lstm": "OptimizedLSTMCell", "plain lstm": "LSTMCell", "gru": "GRUCell", "simple": "SimpleCell"}
KINDS = {"lstm": common.LSTM, "plain lstm": common.LSTM, "gru": common.GRU, "simple": common.RNN}


def weights(name, seed=0):
    """The core's parameters of a cell, with biases that are not zero, so that one left out shows."""
    params = KINDS[name].build(H).init(jax.random.key(seed), I)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)
    # The one bias that nnx.GRUCell leaves out; test_the_bias_that_nnx_leaves_out has it.
    return params._replace(b_n=jnp.zeros(H)) if name == "gru" else params


def ours(framework, name, params, **options):
    if framework == "nnx":
        module = getattr(our_nnx, NAMES[name])(I, H, rngs=nnx.Rngs(0), **DRAWN, **options)
        return Nnx(module).replaced(params)
    module = getattr(our_linen, NAMES[name])(H, **options)
    return Linen(module, module.variables_from(params))


def theirs(framework, name, params, **options):
    """Flax's own cell, with the same weights in its own places."""
    tree = flax_tree(framework, name, params)
    if framework == "linen":
        return Linen(getattr(linen, NAMES[name])(H, **options), {"params": tree})
    cell = getattr(nnx, NAMES[name])(I, H, rngs=nnx.Rngs(0), **DRAWN, **options)
    for layer, parts in tree.items():
        for part, value in parts.items():
            getattr(getattr(cell, layer), part).set_value(value)
    return Nnx(cell)


def flax_tree(framework, name, params):
    if framework == "nnx" and name != "plain lstm":
        tree = {"dense_i": {"kernel": params.w_x}, "dense_h": {"kernel": params.w_h}}
        tree["dense_h" if name == "lstm" else "dense_i"]["bias"] = params.b
        return tree
    if name == "simple":
        return {"i": {"kernel": params.w_x, "bias": params.b}, "h": {"kernel": params.w_h}}
    gates, with_bias = ("rzn", "i") if name == "gru" else ("ifgo", "h")
    tree = {}
    blocks = zip(gates, *(jnp.split(p, len(gates), axis=-1) for p in params[:3]), strict=True)
    for gate, w_x, w_h, b in blocks:
        for way, kernel in (("i", w_x), ("h", w_h)):
            key = "if_" if framework == "nnx" and way + gate == "if" else way + gate
            tree[key] = {"kernel": kernel} | ({"bias": b} if way == with_bias else {})
    if name == "gru":
        tree["hn"]["bias"] = params.b_n
    return tree


CELL_OPTIONS = {
    "lstm": ("lstm", {}),
    "plain lstm": ("plain lstm", {}),
    "lstm, other activations": ("lstm", {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.soft_sign}),
    "gru": ("gru", {}),
    "gru, other activations": ("gru", {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.soft_sign}),
    "simple": ("simple", {}),
    "simple, residual": ("simple", {"residual": True, "activation_fn": jax.nn.soft_sign}),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "options"), CELL_OPTIONS.values(), ids=CELL_OPTIONS)
def test_values_are_flax_s(framework, name, options):
    carry = carry_of(name, (B,))
    results = [build(framework, name, weights(name), **options)(carry, XS[:, 0]) for build in (ours, theirs)]
    chex.assert_trees_all_close(*results, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["lstm", "gru", "simple"])
def test_gradients_are_flax_s(framework, name):
    def loss(build, params, xs):
        ys = build(framework, name, params).rnn()(xs)
        return jnp.sin(ys).sum(), ys

    def run(build):
        return jax.jit(jax.value_and_grad(lambda p, x: loss(build, p, x), argnums=(0, 1), has_aux=True))(
            weights(name), XS
        )

    (_, ys), (by_params, by_xs) = run(ours)
    (_, expected), (expected_by_params, expected_by_xs) = run(theirs)
    if name == "gru" and framework == "nnx":
        by_params = by_params._replace(b_n=expected_by_params.b_n)
    chex.assert_trees_all_close(ys, expected, atol=1e-6)
    chex.assert_trees_all_close((by_params, by_xs), (expected_by_params, expected_by_xs), atol=1e-5)


def carry_of(name, shape):
    carry = 0.5 * jax.random.normal(jax.random.key(5), (2, *shape, H))
    return tuple(carry) if "lstm" in name else carry[0]


# What Flax documents of nn.RNN: constructor's options, call's options, and how the inputs lie.
WRAPPED = {
    "time_major": ({"time_major": True, "unroll": 2}, {}, lambda: XS.swapaxes(0, 1)),
    "lengths": ({"return_carry": True}, {"seq_lengths": LENGTHS}, lambda: XS),
    "reverse, more batch axes": ({"reverse": True}, {"return_carry": True}, lambda: XS.reshape(1, 2, 1, T, I)),
    "keep_order, lengths": ({"keep_order": True}, {"reverse": True, "seq_lengths": LENGTHS}, lambda: XS),
    "initial_carry, no batch axis": ({}, {"initial_carry": ()}, lambda: XS[0]),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("built", "called", "xs"), WRAPPED.values(), ids=WRAPPED)
def test_in_flax_s_rnn(framework, built, called, xs):
    name = "gru" if "initial_carry" in called else "lstm"
    if "initial_carry" in called:
        called = called | {"initial_carry": carry_of(name, called["initial_carry"])}
    results = [build(framework, name, weights(name)).rnn(**built)(xs(), **called) for build in (ours, theirs)]
    chex.assert_trees_all_close(*results, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "called"), [("lstm", {"seq_lengths": LENGTHS}), ("simple", {"time_major": True})])
def test_in_flax_s_bidirectional(framework, name, called):
    results = []
    for build in (ours, theirs):
        ahead, back = (build(framework, name, weights(name, seed)) for seed in (0, 1))
        results.append(ahead.bidirectional(back, return_carry=True)(XS, **called))
    chex.assert_trees_all_close(*results, atol=1e-6)
    assert results[0][1].shape == (B, T, 2 * H)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["lstm", "gru", "simple"])
class TestCell:
    def test_is_a_flax_cell(self, framework, name):
        cell = ours(framework, name, weights(name)).module
        base = nnx.RNNCellBase if framework == "nnx" else linen.RNNCellBase
        assert isinstance(cell, base)
        assert cell.num_feature_axes == 1

    def test_carry(self, framework, name):
        def drawn(key, shape, dtype):
            return jax.random.normal(key, shape, dtype)

        for option, initializer in (({}, None), ({"carry_init": drawn}, drawn)):
            cell = ours(framework, name, weights(name), **option).module
            carry = self.initial(framework, cell, (7, B, I))
            leaves = jax.tree.leaves(carry)
            assert isinstance(carry, tuple) == (name == "lstm")
            assert [leaf.shape for leaf in leaves] == [(7, B, H)] * (2 if name == "lstm" else 1)
            assert all(bool((leaf != 0).all()) == (initializer is not None) for leaf in leaves)
        assert len({float(leaf[0, 0, 0]) for leaf in leaves}) == len(leaves)  # each with a key of its own

    def initial(self, framework, cell, shape):
        if framework == "nnx":
            return cell.initialize_carry(shape, nnx.Rngs(0))
        return cell.initialize_carry(jax.random.key(0), shape)

    def test_a_carry_comes_back_as_it_was_handed_in(self, framework, name):
        cell = ours(framework, name, weights(name))
        plain = carry_of(name, (B,))
        named = common.as_state(KINDS[name], plain)
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), plain)
        for carry in (plain, named, half):
            new, y = cell(carry, XS[:, 0])
            chex.assert_trees_all_equal_structs(new, carry)
            chex.assert_trees_all_equal_shapes_and_dtypes(new, carry)
            assert y.dtype == jax.tree.leaves(carry)[0].dtype
        chex.assert_trees_all_equal(*(jax.tree.leaves(cell(carry, XS[:, 0])) for carry in (plain, named)))

    def test_params_there_and_back(self, framework, name):
        params = weights(name)
        cell = ours(framework, name, params)
        chex.assert_trees_all_equal(cell.params, params)
        assert type(cell.params) is KINDS[name].params

    def test_defaults(self, framework, name):
        cell = drawn_cell(framework, name)
        gates = KINDS[name].gates
        for w_h in jnp.split(cell.params.w_h, gates, axis=-1):
            np.testing.assert_allclose(np.linalg.svd(w_h)[1], 1.0, atol=1e-5)
        blocks = jnp.split(cell.params.w_x, gates, axis=-1)
        assert len({float(block[0, 0]) for block in blocks}) == gates
        assert not cell.params.b.any()

    def test_biases_are_drawn_whole(self, framework, name):
        cell = drawn_cell(framework, name, bias_init=lambda key, shape, dtype: jnp.arange(shape[0], dtype=dtype))
        np.testing.assert_array_equal(cell.params.b, np.arange(KINDS[name].gates * H))

    def test_half_precision(self, framework, name):
        params = weights(name)
        carry, y = ours(framework, name, params, dtype=jnp.bfloat16)(carry_of(name, (B,)), XS[:, 0])
        _, full = ours(framework, name, params)(carry_of(name, (B,)), XS[:, 0])
        assert {leaf.dtype for leaf in jax.tree.leaves((carry, y))} == {jnp.dtype(jnp.float32)}  # of the carry
        np.testing.assert_allclose(y, full, atol=0.05)
        assert (y != full).any()
        cell = drawn_cell(framework, name, param_dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in cell.params} == {jnp.dtype(jnp.bfloat16)}


def drawn_cell(framework, name, **options):
    if framework == "nnx":
        return Nnx(getattr(our_nnx, NAMES[name])(I, H, rngs=nnx.Rngs(0), **options))
    module = getattr(our_linen, NAMES[name])(H, **options)
    carry = module.initialize_carry(KEY, (B, I))
    return Linen(module, module.init(KEY, carry, XS[:, 0].astype(module.param_dtype)))


@pytest.fixture
def mesh():
    """One device by two names: NNX annotates a variable only where there is a mesh to annotate it for."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "model"), axis_types=auto)):
        yield


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_partitioning_of_a_cell(framework, mesh):
    # Names stay with the variable, and the kernels are drawn gate by gate all the same.
    partitioned = nnx.with_partitioning if framework == "nnx" else linen.with_partitioning
    options = {
        "kernel_init": partitioned(jax.nn.initializers.lecun_normal(), (None, "model")),
        "recurrent_kernel_init": partitioned(lstmjax.init.orthogonal(), ("data", "model")),
        "bias_init": partitioned(ZEROS, ("model",)),
    }
    cell = drawn_cell(framework, "gru", **options)
    if framework == "nnx":
        names = [getattr(cell.module, part).out_sharding for part in ("w_x", "w_h", "b", "b_n")]
    else:
        specs = linen.get_partition_spec(cell.variables)["params"]
        names = [tuple(specs[part]) for part in ("w_x", "w_h", "b", "b_n")]
    assert names == [(None, "model"), ("data", "model"), ("model",), ("model",)]
    for w_h in jnp.split(cell.params.w_h, 3, axis=-1):
        np.testing.assert_allclose(np.linalg.svd(w_h)[1], 1.0, atol=1e-5)
    assert cell(carry_of("gru", (B,)), XS[:, 0])[1].shape == (B, H)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_chrono_fits_an_lstm_cell(framework):
    b = drawn_cell(framework, "lstm", bias_init=lstmjax.init.chrono(100)).params.b
    assert (b[:H] == -b[H : 2 * H]).all()


def test_the_bias_that_nnx_leaves_out():
    params = weights("gru")._replace(b_n=jnp.arange(4.0))
    cells = ours("nnx", "gru", params), ours("linen", "gru", params), theirs("linen", "gru", params)
    by_nnx, by_linen, expected = (cell(carry_of("gru", (B,)), XS[:, 0]) for cell in cells)
    chex.assert_trees_all_close(by_nnx, expected, atol=1e-6)
    chex.assert_trees_all_close(by_linen, expected, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_whole_numbers_are_promoted_as_in_flax(framework):
    x = jnp.array([[1, 0, 2]], jnp.int32)
    carry = carry_of("gru", (1,))
    cells = [build(framework, "gru", weights("gru")) for build in (ours, theirs)]
    with jax.numpy_dtype_promotion("standard"):
        results = [cell(carry, x) for cell in cells]
    chex.assert_trees_all_close(*results, atol=1e-6)


SEQUENCES = {"LSTM": lstmjax.lstm, "GRU": lstmjax.gru, "RNN": lstmjax.rnn}


def sequence(framework, kind, **options):
    if framework == "nnx":
        return Nnx(getattr(our_nnx, kind)(I, H, rngs=nnx.Rngs(0), **options))
    module = getattr(our_linen, kind)(H, **options)
    xs = jnp.zeros((1, 1, I), options.get("param_dtype", jnp.float32))
    return Linen(module, module.init(KEY, xs))


FORMS = {
    "one layer": ("RNN", {}, {}),
    "two layers, lengths": ("GRU", {"num_layers": 2}, {"lengths": LENGTHS}),
    "both ways, mask and resets": (
        "LSTM",
        {"num_layers": 2, "bidirectional": True},
        {"mask": jnp.arange(B * T).reshape(B, T) % 4 != 1, "resets": jnp.arange(B * T).reshape(B, T) % 3 == 2},
    ),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("kind", "built", "called"), FORMS.values(), ids=FORMS)
def test_a_sequence_module_is_the_core(framework, kind, built, called):
    model = sequence(framework, kind, **built)
    cell = SEQUENCES[kind](H)
    layers = [(cell, cell) if "bidirectional" in built else cell] * built.get("num_layers", 1)
    chex.assert_trees_all_equal_shapes_and_dtypes(model.params, lstmjax.init_stack(layers, KEY, I))
    flags = {name: flag if name == "lengths" else flag.T for name, flag in called.items()}
    carry, ys = lstmjax.unroll_stack(layers, model.params, XS.swapaxes(0, 1), **flags)
    chex.assert_trees_all_equal(model(XS, **called), (carry, ys.swapaxes(0, 1)))
    major = sequence(framework, kind, time_major=True, **built).replaced(model.params)
    chex.assert_trees_all_equal(major(XS.swapaxes(0, 1), **flags), (carry, ys))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("time_major", [False, True])
def test_any_number_of_batch_axes(framework, time_major):
    model = sequence(framework, "GRU", time_major=time_major)
    mask = jnp.arange(B * T).reshape(T, B) % 4 != 1
    carry, ys = lstmjax.unroll_stack([lstmjax.gru(H)], model.params, XS.swapaxes(0, 1), mask=mask)
    spread = [XS[:, None], mask.T[:, None]]
    if time_major:
        spread = [jnp.moveaxis(a, 2, 0) for a in spread]
        ys = ys[:, :, None]
    else:
        ys = ys.swapaxes(0, 1)[:, None]
    expected = jax.tree.map(lambda leaf: leaf[:, None], carry), ys
    chex.assert_trees_all_close(model(spread[0], mask=spread[1]), expected, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sequence_module_is_cells_in_flax_s_wrappers(framework):
    model = sequence(framework, "LSTM", num_layers=2, bidirectional=True)
    expected = XS
    for ahead, back in model.params:
        cells = []
        for params in (ahead, back):
            if framework == "nnx":
                module = our_nnx.LSTMCell(params.w_x.shape[0], H, rngs=nnx.Rngs(0), **DRAWN)
                cells.append(Nnx(module).replaced(params))
            else:
                cells.append(ours("linen", "lstm", params))
        expected = cells[0].bidirectional(cells[1])(expected, seq_lengths=LENGTHS)
    _, ys = model(XS, lengths=LENGTHS)
    # Flax leaves numbers behind a row's end, and this library zeros.
    valid = (jnp.arange(T) < LENGTHS[:, None])[..., None]
    chex.assert_trees_all_close(ys, jnp.where(valid, expected, 0), atol=1e-6)


@pytest.mark.parametrize(("framework", "kind"), [("nnx", "LSTM"), ("linen", "GRU"), ("nnx", "RNN")])
def test_finite_differences(framework, kind, x64):
    model = sequence(framework, kind, bidirectional=True, param_dtype=jnp.float64)
    xs = jax.random.normal(KEY, (2, 3, I), jnp.float64)
    run = jax.jit(lambda params, xs: model.replaced(params)(xs))
    check_grads(run, (model.params, xs), order=1, modes=("fwd", "rev"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
class TestSequence:
    def test_options_reach_the_core(self, framework):
        model = sequence(framework, "LSTM")
        plain = model(XS)
        chex.assert_trees_all_close(model(XS, remat_block=2, scan_unroll=3, implementation="scan"), plain, atol=1e-6)
        with pytest.raises(ValueError, match="remat_block is 0"):
            model(XS, remat_block=0)

    def test_forget_bias(self, framework):
        def biases(**options):
            (params,) = sequence(framework, "LSTM", **options).params
            return params.b.reshape(4, H)[:, 0].tolist()

        assert biases() == [0, 1, 0, 0]
        assert biases(forget_bias=2.0) == [0, 2, 0, 0]
        assert biases(bias_init=jax.nn.initializers.ones) == [1, 1, 1, 1]
        with pytest.raises(ValueError, match="forget_bias and bias_init both set the biases"):
            biases(forget_bias=1.0, bias_init=ZEROS)

    def test_activation_of_an_rnn(self, framework):
        model = sequence(framework, "RNN", activation=jax.nn.relu)
        xs = XS.swapaxes(0, 1)
        expected = lstmjax.unroll(lstmjax.rnn(H, activation=jax.nn.relu), model.params[0], xs)[1]
        chex.assert_trees_all_equal(model(XS)[1], expected.swapaxes(0, 1))

    def test_dropout_takes_a_key(self, framework):
        model = sequence(framework, "GRU", num_layers=2, dropout_rate=0.5)
        without = sequence(framework, "GRU", num_layers=2).replaced(model.params)
        key, other = jax.random.key(2), jax.random.key(3)
        chex.assert_trees_all_equal(model(XS), without(XS))
        chex.assert_trees_all_equal(model(XS, dropout_key=key), model(XS, dropout_key=key))
        assert (model(XS, dropout_key=key)[1] != model(XS)[1]).any()
        assert (model(XS, dropout_key=key)[1] != model(XS, dropout_key=other)[1]).any()
        with pytest.raises(ValueError, match=r"dropout_rate is 0.0 with a dropout_key"):
            without(XS, dropout_key=key)

    def test_half_precision(self, framework):
        full = sequence(framework, "LSTM", num_layers=2)
        half = sequence(framework, "LSTM", num_layers=2, dtype=jnp.bfloat16).replaced(full.params)
        (carry, ys), (_, expected) = half(XS), full(XS)
        assert {leaf.dtype for leaf in jax.tree.leaves((carry, ys))} == {jnp.dtype(jnp.float32)}
        np.testing.assert_allclose(ys, expected, atol=0.05)
        assert (ys != expected).any()
        all_half = sequence(framework, "LSTM", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        assert all_half(XS)[1].dtype == jnp.bfloat16

    def test_carry(self, framework):
        model = sequence(framework, "LSTM", num_layers=2, bidirectional=True)
        carry = model.module.initialize_carry((B,))
        assert carry[1][0].c.shape == (B, H)
        final, ys = model(XS, initial_carry=carry)
        chex.assert_trees_all_equal((final, ys), model(XS))
        chex.assert_trees_all_equal_shapes_and_dtypes(final, carry)

    def test_streaming(self, framework):
        model = sequence(framework, "GRU", num_layers=2)
        middle, first = model(XS[:, :2])
        final, second = model(XS[:, 2:], initial_carry=middle)
        chex.assert_trees_all_close((final, jnp.concatenate([first, second], 1)), model(XS), atol=1e-6)

    def test_partitioning(self, framework, mesh):
        partitioned = nnx.with_partitioning if framework == "nnx" else linen.with_partitioning
        init = partitioned(jax.nn.initializers.lecun_normal(), (None, "model"))
        model = sequence(framework, "LSTM", num_layers=2, kernel_init=init)
        if framework == "nnx":
            assert model.module.forward[1].w_x.out_sharding == (None, "model")
        else:
            spec = linen.get_partition_spec(model.variables)["params"]["forward_1"]["w_x"]
            assert tuple(spec) == (None, "model")
        assert model(XS)[1].shape == (B, T, H)

    def test_new_parameters_go_in_all_or_none(self, framework):
        model = sequence(framework, "LSTM", num_layers=2, bidirectional=True)
        params = model.params
        doubled = jax.tree.map(lambda p: 2 * np.asarray(p), params)
        chex.assert_trees_all_equal(model.replaced(doubled).params, doubled)
        (ahead, back), second = params
        wrong = {
            r"params\[0\]\[1\].b has shape \(3,\); wanted \(16,\)": ((ahead, back._replace(b=jnp.ones(3))), second),
            r"params\[0\]\[1\].w_h has dtype int32; wanted float32": (
                (jax.tree.map(jnp.zeros_like, ahead), back._replace(w_h=back.w_h.astype(jnp.int32))),
                second,
            ),
            "params are 1 bidirectional layer of LSTMParams; wanted 2 bidirectional layers of": ((ahead, back),),
            "params are 2 layers of LSTMParams; wanted 2 bidirectional layers of LSTMParams": (ahead, ahead),
            "params are LSTMParams; wanted 2 bidirectional layers of LSTMParams": ahead,
            r"params has structure PyTreeDef\(\(\)\); wanted": (),
        }
        for message, given in wrong.items():
            with pytest.raises((ValueError, TypeError), match=message):
                model.replaced(given)
        if framework == "nnx":
            with pytest.raises(TypeError):
                model.module.params = wrong[r"params\[0\]\[1\].w_h has dtype int32; wanted float32"]
        chex.assert_trees_all_equal(model.params, params)

    def test_bad_input(self, framework, monkeypatch):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
        model = sequence(framework, "LSTM")
        with pytest.raises(ValueError, match="num_layers is 0; wanted a whole number of at least 1"):
            sequence(framework, "LSTM", num_layers=0)
        with pytest.raises((ValueError, flax.errors.ScopeParamShapeError), match=r"I = 3 features|shape \(2, 16\)"):
            model(XS[..., :2])
        with pytest.raises(ValueError, match=r"mask has shape \(5, 2\); wanted \(2, 5\)"):
            model(XS, mask=jnp.ones((T, B), bool))
        with pytest.raises(TypeError, match="resets has dtype float32; wanted bool"):
            model(XS, resets=jnp.ones((B, T)))
        with pytest.raises(TypeError, match="xs has dtype int32; wanted a floating dtype"):
            model(XS.astype(jnp.int32))
        with pytest.raises(ValueError, match=r"state.c has shape \(3, 4\); wanted \(2, 4\)"):
            model(XS, initial_carry=model.module.initialize_carry((3,)))
        with pytest.raises(ValueError, match="state has 2 entries; wanted one for each of the 1 layers"):
            model(XS, initial_carry=model.module.initialize_carry((B,)) * 2)

    def test_export(self, framework):
        model = sequence(framework, "LSTM", num_layers=2)

        def run(params, xs):
            return model.replaced(params)(xs)

        def gradients(run):
            return jax.grad(lambda params, xs: jnp.sin(run(params, xs)[1]).sum())

        xs = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, {T}, {I}"), jnp.float32)
        written = jax.export.export(jax.jit(run))(model.params, xs).serialize(vjp_order=1)
        read = jax.export.deserialize(bytearray(written))
        for batch in (1, 3):
            xs = jax.random.normal(KEY, (batch, T, I))
            chex.assert_trees_all_close(read.call(model.params, xs), model(xs), atol=1e-6)
        chex.assert_trees_all_close(gradients(read.call)(model.params, xs), gradients(run)(model.params, xs), atol=1e-5)
