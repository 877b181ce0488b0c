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

import lstmjax
import lstmjax.nn.linen as our_linen
import lstmjax.nn.nnx as our_nnx
from lstmjax.nn import common
from tests.cells import compiled, inner

T, B, I, H = 5, 2, 3, 4
KEY = jax.random.key(0)
LENGTHS = np.array([5, 3], np.int32)
FRAMEWORKS = ["nnx", "linen"]
ZEROS = jax.nn.initializers.zeros


def drawn(tree, seed):
    """Numbers for every shape of a tree, biases among them, so that one left out shows; without a compiler."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray((rng.normal(size=s.shape) / 2).astype(s.dtype)), tree)


XS = drawn(jax.ShapeDtypeStruct((B, T, I), jnp.float32), 1)
FIRST = jnp.asarray(np.asarray(XS)[:, 0])


def filled(build):
    """An NNX module whose parameters are drawn by NumPy instead of by its initialisers."""
    module = nnx.eval_shape(build)
    nnx.update(module, drawn(nnx.state(module, nnx.Param), 0))
    return module


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

    def trained(self, xs, key):
        """A call with noise, and the key it drew."""
        module = nnx.clone(self.module)
        module.rngs = nnx.Rngs(dropout=key).dropout
        return module(xs, deterministic=False), nnx.Rngs(dropout=key).dropout()

    def rnn(self, **options):
        return nnx.RNN(self.module, **options)

    def bidirectional(self, other, **options):
        return nnx.Bidirectional(self.rnn(), other.rnn(), **options)


class OfDropout(linen.Module):
    """The first key of the stream, as a module at the top draws it."""

    def __call__(self):
        return self.make_rng("dropout")


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

    def trained(self, xs, key):
        rngs = {"dropout": key}
        return self(xs, deterministic=False, rngs=rngs), OfDropout().apply({}, rngs=rngs)

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
    params = drawn(jax.eval_shape(lambda: KINDS[name].build(H).init(KEY, I)), seed)
    # The one bias that nnx.GRUCell leaves out; test_the_bias_that_nnx_leaves_out has it.
    return params._replace(b_n=jnp.asarray(np.zeros(H, np.float32))) if name == "gru" else params


def ours(framework, name, params, **options):
    if framework == "nnx":
        return Nnx(filled(lambda: getattr(our_nnx, NAMES[name])(I, H, rngs=nnx.Rngs(0), **options))).replaced(params)
    module = getattr(our_linen, NAMES[name])(H, **options)
    return Linen(module, module.variables_from(params))


def theirs(framework, name, params, **options):
    """Flax's own cell, with the same weights in its own places."""
    tree = flax_tree(framework, name, params)
    if framework == "linen":
        return Linen(getattr(linen, NAMES[name])(H, **options), {"params": tree})
    cell = filled(lambda: getattr(nnx, NAMES[name])(I, H, rngs=nnx.Rngs(0), **options))
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
    for n, gate in enumerate(gates):
        w_x, w_h, b = (p[..., n * H : (n + 1) * H] for p in params[:3])
        for way, kernel in (("i", w_x), ("h", w_h)):
            key = "if_" if framework == "nnx" and way + gate == "if" else way + gate
            tree[key] = {"kernel": kernel} | ({"bias": b} if way == with_bias else {})
    if name == "gru":
        tree["hn"]["bias"] = params.b_n
    return tree


def both(framework, name, use, **options):
    """What is made of our cell and of theirs, with the same weights, in one program."""
    params = weights(name)
    return compiled(lambda params: [use(build(framework, name, params, **options)) for build in (ours, theirs)], params)


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
    results = both(framework, name, lambda cell: cell(carry_of(name, (B,)), FIRST), **options)
    chex.assert_trees_all_close(*results, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["lstm", "gru", "simple"])
def test_gradients_are_flax_s(framework, name):
    def of(build):
        def loss(params, xs):
            ys = build(framework, name, params).rnn()(xs)
            return jnp.sin(ys).sum(), ys

        return jax.grad(loss, argnums=(0, 1), has_aux=True)

    (by_params, by_xs), ys, (expected_by_params, expected_by_xs), expected = compiled(
        lambda *args: [*of(ours)(*args), *of(theirs)(*args)], weights(name), XS
    )
    if name == "gru" and framework == "nnx":
        by_params = by_params._replace(b_n=expected_by_params.b_n)
    chex.assert_trees_all_close(ys, expected, atol=1e-6)
    chex.assert_trees_all_close((by_params, by_xs), (expected_by_params, expected_by_xs), atol=1e-5)


def carry_of(name, shape):
    carry = drawn([jax.ShapeDtypeStruct((*shape, H), jnp.float32)] * 2, 5)
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
    results = both(framework, name, lambda cell: cell.rnn(**built)(xs(), **called))
    chex.assert_trees_all_close(*results, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "called"), [("lstm", {"seq_lengths": LENGTHS}), ("simple", {"time_major": True})])
def test_in_flax_s_bidirectional(framework, name, called):
    def run(build, params):
        ahead, back = (build(framework, name, p) for p in params)
        return ahead.bidirectional(back, return_carry=True)(XS, **called)

    params = weights(name, 0), weights(name, 1)
    results = compiled(lambda params: [run(build, params) for build in (ours, theirs)], params)
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
        results = compiled(lambda carries: [cell(carry, FIRST) for carry in carries], (plain, named, half))
        for carry, (new, y) in zip((plain, named, half), results, strict=True):
            chex.assert_trees_all_equal_structs(new, carry)
            chex.assert_trees_all_equal_shapes_and_dtypes(new, carry)
            assert y.dtype == jax.tree.leaves(carry)[0].dtype
        chex.assert_trees_all_equal(*map(jax.tree.leaves, results[:2]))

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
        half, whole = (ours(framework, name, params, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
        (carry, y), (_, full) = compiled(lambda: [cell(carry_of(name, (B,)), FIRST) for cell in (half, whole)])
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
    return Linen(module, module.init(KEY, carry, FIRST.astype(module.param_dtype)))


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
    assert cell(carry_of("gru", (B,)), FIRST)[1].shape == (B, H)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_chrono_fits_an_lstm_cell(framework):
    b = drawn_cell(framework, "lstm", bias_init=lstmjax.init.chrono(100)).params.b
    assert (b[:H] == -b[H : 2 * H]).all()


def test_the_bias_that_nnx_leaves_out():
    params = weights("gru")._replace(b_n=jnp.asarray(np.arange(4, dtype=np.float32)))
    cells = ours("nnx", "gru", params), ours("linen", "gru", params), theirs("linen", "gru", params)
    by_nnx, by_linen, expected = compiled(lambda: [cell(carry_of("gru", (B,)), FIRST) for cell in cells])
    chex.assert_trees_all_close(by_nnx, expected, atol=1e-6)
    chex.assert_trees_all_close(by_linen, expected, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_whole_numbers_are_promoted_as_in_flax(framework):
    x = jnp.array([[1, 0, 2]], jnp.int32)
    with jax.numpy_dtype_promotion("standard"):
        results = both(framework, "gru", lambda cell: cell(carry_of("gru", (1,)), x))
    chex.assert_trees_all_close(*results, atol=1e-6)


SEQUENCES = {"LSTM": lstmjax.lstm, "GRU": lstmjax.gru, "RNN": lstmjax.rnn}


def sequence(framework, kind, **options):
    """A sequence module with parameters drawn by NumPy."""
    if framework == "nnx":
        return Nnx(filled(lambda: getattr(our_nnx, kind)(I, H, rngs=nnx.Rngs(0), **options)))
    return bound(getattr(our_linen, kind)(H, **options), one_step(options))


def recurrent(framework, cell, xs=XS, in_features=I, **options):
    """A module of any cell, likewise."""
    if framework == "nnx":
        return Nnx(filled(lambda: our_nnx.Recurrent(cell, in_features, rngs=nnx.Rngs(0), **options)))
    if in_features != jnp.shape(xs)[-1]:
        options["in_features"] = in_features
    return bound(our_linen.Recurrent(cell, **options), xs)


def bound(module, xs):
    return Linen(module, drawn(jax.eval_shape(lambda: module.init(KEY, xs, deterministic=True)), 0))


def initialised(framework, kind, **options):
    """A sequence module with the parameters of its initialisers."""
    if framework == "nnx":
        return Nnx(getattr(our_nnx, kind)(I, H, rngs=nnx.Rngs(0), **options))
    module = getattr(our_linen, kind)(H, **options)
    return Linen(module, module.init(KEY, one_step(options)))


def one_step(options):
    return jnp.zeros((1, 1, I), options.get("param_dtype", jnp.float32))


FORMS = {
    "one layer": ("RNN", {}, {}),
    "two layers, lengths": ("GRU", {"num_layers": 2}, {"seq_lengths": LENGTHS}),
    "both ways, mask and resets": (
        "LSTM",
        {"num_layers": 2, "bidirectional": True},
        {"mask": np.arange(B * T).reshape(B, T) % 4 != 1, "resets": np.arange(B * T).reshape(B, T) % 3 == 2},
    ),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("kind", "built", "called"), FORMS.values(), ids=FORMS)
def test_a_sequence_module_is_the_core(framework, kind, built, called):
    model = sequence(framework, kind, **built)
    cell = SEQUENCES[kind](H)
    layers = [(cell, cell) if "bidirectional" in built else cell] * built.get("num_layers", 1)
    wanted = jax.eval_shape(lambda: lstmjax.init_stack(layers, KEY, I))
    chex.assert_trees_all_equal_shapes_and_dtypes(model.params, wanted)
    flags = {name: flag if name == "seq_lengths" else flag.T for name, flag in called.items()}
    of_core = {name.removeprefix("seq_"): flag for name, flag in flags.items()}
    # Each a call of its own, and so the same program: within one, the compiler may round a transposed product anew.
    carry, ys = jax.tree.map(np.asarray, lstmjax.unroll_stack(layers, model.params, XS.swapaxes(0, 1), **of_core))
    major = sequence(framework, kind, time_major=True, **built).replaced(model.params)
    by_batch, by_time = model(XS, **called), major(XS.swapaxes(0, 1), **flags)
    chex.assert_trees_all_equal(by_batch, (carry, ys.swapaxes(0, 1)))
    chex.assert_trees_all_equal(by_time, (carry, ys))


def symbols():
    """A cell that reads symbols, with parameters in dictionaries and tuples."""
    return lstmjax.Cell(
        init=lambda key, n, dtype=jnp.float32: {"of": (jnp.ones((n, H), dtype), jnp.ones(H, dtype))},
        initial_state=lambda batch=(), dtype=jnp.float32: jnp.zeros((*batch, H), dtype),
        step=lambda p, h, x: ((new := jnp.tanh(p["of"][0][x] + p["of"][1] * h)), new),
        num_feature_axes=0,
    )


def decay():
    """A cell whose parameters are one array, and which runs under the plain scan."""
    return lstmjax.Cell(
        init=lambda key, n, dtype=jnp.float32: jnp.ones(n, dtype),
        initial_state=lambda batch=(), dtype=jnp.float32: jnp.zeros((*batch, I), dtype),
        step=lambda p, h, x: ((new := p * h + x), new),
    )


IMAGES = drawn(jax.ShapeDtypeStruct((B, T, 2, 3, I), jnp.float32), 1)
MERGES = {
    "concatenate": lambda a, b: np.concatenate([a, b], -1), "sum": np.add, "product": np.multiply,
    "mean": lambda a, b: (a + b) / 2,
}  # fmt: skip

# The cell, its inputs, how many features or symbols they have, and the module's options.
ANY = {
    "of the library": (lstmjax.peephole_lstm(H), XS, I, {"num_layers": 2}),
    "wrapped": (lstmjax.zoneout(lstmjax.learned_state(lstmjax.mgu(H)), 0.25), XS, I, {"num_layers": 2}),
    "images": (lstmjax.conv_lstm(H, (2, 3)), IMAGES, I, {"num_layers": 2, "bidirectional": True, "merge": "sum"}),
    "symbols": (symbols(), np.arange(B * T).reshape(B, T) % 7, 7, {"bidirectional": True, "merge": "product"}),
    "one array": (decay(), XS, I, {"num_layers": 2, "bidirectional": True, "merge": "mean"}),
    "time-major": (decay(), XS, I, {"time_major": True, "bidirectional": True}),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ANY)
def test_a_module_of_any_cell_is_the_core(framework, name):
    cell, xs, features, options = ANY[name]
    model = recurrent(framework, cell, xs, features, **options)
    both, merge = options.get("bidirectional", False), MERGES[options.get("merge", "concatenate")]
    time = 0 if "time_major" in options else 1
    called = {"seq_lengths": LENGTHS} if time else {}

    def of_core(params):
        finals, ys = [], np.moveaxis(xs, time, 0)
        for layer in params:
            run = [
                lstmjax.unroll(cell, p, ys, reverse=way == 1, lengths=called.get("seq_lengths"))
                for way, p in enumerate(layer if both else (layer,))
            ]
            finals.append(tuple(final for final, _ in run) if both else run[0][0])
            ys = jax.tree.map(jnp.asarray, merge(*(np.asarray(y) for _, y in run)) if both else run[0][1])
        return tuple(finals), jnp.moveaxis(ys, 0, time)

    got = model(xs, **called, **({"deterministic": True} if cell.noise else {}))
    chex.assert_trees_all_close(got, of_core(model.params), atol=1e-5)
    again = model.replaced(jax.tree.map(lambda p: p + 0, model.params))
    chex.assert_trees_all_equal(again.params, model.params)
    assert jax.tree.structure(model.params) == jax.tree.structure(
        jax.eval_shape(
            lambda: ((((cell.init(KEY, features),) * 2) if both else cell.init(KEY, features)),) * len(got[0])
        )
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_cell_s_noise(framework):
    cell = lstmjax.zoneout(lstmjax.variational_dropout(lstmjax.gru(H), 0.5), 0.3)
    model = recurrent(framework, cell)

    def ways(params):
        trained, key = model.replaced(params).trained(XS, KEY)
        carry, ys = lstmjax.unroll_stack([cell], params, XS.swapaxes(0, 1), dropout_key=key)
        return trained, (carry, ys.swapaxes(0, 1)), model.replaced(params)(XS, deterministic=True)

    trained, wanted, evaluated = compiled(ways, model.params)
    chex.assert_trees_all_close(trained, wanted, atol=1e-6)
    assert (trained[1] != evaluated[1]).any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_initial_state_is_learned(framework):
    cell = lstmjax.learned_state(lstmjax.lstm(H))
    model = recurrent(framework, cell, bidirectional=True)
    none = np.zeros(B, np.int32)
    (carry,), slopes = compiled(
        lambda params: [
            model.replaced(params)(XS, seq_lengths=none)[0],
            jax.grad(lambda params: model.replaced(params)(XS)[1].sum())(params),
        ],
        model.params,
    )
    for params, state, slope in zip(model.params[0], carry, slopes[0], strict=True):
        chex.assert_trees_all_equal(state, jax.tree.map(lambda leaf: np.tile(leaf, (B, 1)), params.state))
        assert all(np.abs(leaf).min() > 0 for leaf in slope.state)
    if framework == "nnx":
        chex.assert_trees_all_equal(model.module.initialize_carry((B,)), (carry,))
    else:
        with pytest.raises(ValueError, match="the cell learns its initial state"):
            model.module.initialize_carry((B,))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_bad_modules_of_any_cell(framework, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(TypeError, match="cell is a GRUParams; wanted a Cell, such as"):
        recurrent(framework, weights("gru"))
    with pytest.raises(ValueError, match="merge is 'add'; wanted 'concatenate', 'sum', 'mean', 'product'"):
        recurrent(framework, lstmjax.gru(H), bidirectional=True, merge="add")(XS)
    if framework == "linen":
        with pytest.raises(ValueError, match="deterministic is None; wanted True, to evaluate, or False"):
            recurrent(framework, lstmjax.zoneout(lstmjax.gru(H), 0.5))(XS)
        with pytest.raises(ValueError, match="in_features is None; wanted a number"):
            our_linen.Recurrent(symbols()).init(KEY, np.zeros((B, T), np.int32))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("time_major", [False, True])
def test_any_number_of_batch_axes(framework, time_major):
    model = sequence(framework, "GRU", time_major=time_major)
    mask = np.arange(B * T).reshape(T, B) % 4 != 1
    spread = [XS[:, None], mask.T[:, None]]
    if time_major:
        spread = [np.moveaxis(a, 2, 0) for a in spread]

    def both_ways(params):
        by_core = lstmjax.unroll_stack([lstmjax.gru(H)], params, XS.swapaxes(0, 1), mask=mask)
        return by_core, model.replaced(params)(spread[0], mask=spread[1])

    (carry, ys), got = compiled(both_ways, model.params)
    ys = ys[:, :, None] if time_major else ys.swapaxes(0, 1)[:, None]
    chex.assert_trees_all_close(got, (jax.tree.map(lambda leaf: leaf[:, None], carry), ys), atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sequence_module_is_cells_in_flax_s_wrappers(framework):
    model = sequence(framework, "LSTM", num_layers=2, bidirectional=True)

    def cell(params):
        if framework == "linen":
            return ours("linen", "lstm", params)
        inputs = params.w_x.shape[0]
        return Nnx(filled(lambda: our_nnx.LSTMCell(inputs, H, rngs=nnx.Rngs(0)))).replaced(params)

    def both_ways(params):
        expected = XS
        for ahead, back in params:
            expected = cell(ahead).bidirectional(cell(back))(expected, seq_lengths=LENGTHS)
        return model.replaced(params)(XS, seq_lengths=LENGTHS)[1], expected

    ys, expected = compiled(both_ways, model.params)
    # Flax leaves numbers behind a row's end, and this library zeros.
    valid = (np.arange(T) < LENGTHS[:, None])[..., None]
    chex.assert_trees_all_close(ys, np.where(valid, expected, 0), atol=1e-6)


@pytest.mark.parametrize(("framework", "kind"), [("nnx", "LSTM"), ("linen", "GRU"), ("nnx", "RNN")])
def test_finite_differences(framework, kind, x64):
    model = sequence(framework, kind, bidirectional=True, param_dtype=jnp.float64)
    at = model.params, drawn(jax.ShapeDtypeStruct((2, 3, I), jnp.float64), 1)
    along, eps = drawn(at, 2), 1e-6

    def three_ways(at, along):
        def loss(at):
            carry, ys = model.replaced(at[0])(at[1])
            return jnp.sin(ys).sum() + sum((leaf**2).sum() for leaf in jax.tree.leaves(carry))

        def moved(scale):
            return loss(jax.tree.map(lambda a, v: a + scale * v, at, along))

        below, above = jax.lax.map(moved, np.array([-eps, eps]))
        return (above - below) / (2 * eps), jax.jvp(loss, (at,), (along,))[1], inner(jax.grad(loss)(at), along)

    differences, forward, reverse = compiled(three_ways, at, along)
    np.testing.assert_allclose(forward, differences, rtol=1e-7)
    np.testing.assert_allclose(reverse, forward, rtol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
class TestSequence:
    def test_options_reach_the_core(self, framework):
        model = sequence(framework, "LSTM")
        options = {"remat_block": 2, "scan_unroll": 3, "implementation": "scan"}
        chex.assert_trees_all_close(*compiled(lambda: [model(XS, **options), model(XS)]), atol=1e-6)
        with pytest.raises(ValueError, match="remat_block is 0"):
            model(XS, remat_block=0)

    def test_forget_bias(self, framework):
        def biases(**options):
            (params,) = initialised(framework, "LSTM", kernel_init=ZEROS, recurrent_kernel_init=ZEROS, **options).params
            return np.asarray(params.b).reshape(4, H)[:, 0].tolist()

        assert biases() == [0, 1, 0, 0]
        assert biases(forget_bias=2.0) == [0, 2, 0, 0]
        assert biases(bias_init=jax.nn.initializers.ones) == [1, 1, 1, 1]
        with pytest.raises(ValueError, match="forget_bias and bias_init both set the biases"):
            biases(forget_bias=1.0, bias_init=ZEROS)

    def test_activation_of_an_rnn(self, framework):
        model = sequence(framework, "RNN", activation=jax.nn.relu)
        by_core = lstmjax.unroll(lstmjax.rnn(H, activation=jax.nn.relu), model.params[0], XS.swapaxes(0, 1))[1]
        chex.assert_trees_all_close(model(XS)[1], np.asarray(by_core).swapaxes(0, 1), atol=1e-6)

    def test_dropout_between_layers(self, framework):
        model = sequence(framework, "GRU", num_layers=2, dropout_rate=0.5)
        without = sequence(framework, "GRU", num_layers=2).replaced(model.params)

        def ways(params):
            (final, ys), key = model.replaced(params).trained(XS, KEY)
            carry, wanted = lstmjax.unroll_stack(
                [lstmjax.gru(H)] * 2, params, XS.swapaxes(0, 1), dropout_rate=0.5, dropout_key=key
            )
            evaluated = model.replaced(params)(XS, deterministic=True)
            return (final, ys), (carry, wanted.swapaxes(0, 1)), evaluated, without.replaced(params)(XS)

        trained, wanted, evaluated, bare = compiled(ways, model.params)
        chex.assert_trees_all_close(trained, wanted, atol=1e-6)
        chex.assert_trees_all_equal(evaluated, bare)
        assert (trained[1] != bare[1]).any()

    def test_half_precision(self, framework):
        full = sequence(framework, "LSTM", num_layers=2)
        half = sequence(framework, "LSTM", num_layers=2, dtype=jnp.bfloat16).replaced(full.params)
        (carry, ys), (_, expected) = compiled(lambda: [half(XS), full(XS)])
        assert {leaf.dtype for leaf in jax.tree.leaves((carry, ys))} == {jnp.dtype(jnp.float32)}
        np.testing.assert_allclose(ys, expected, atol=0.05)
        assert (ys != expected).any()
        all_half = sequence(framework, "LSTM", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        assert jax.eval_shape(lambda: all_half(XS))[1].dtype == jnp.float32  # a carry is, at least

    def test_carry(self, framework):
        model = sequence(framework, "LSTM", num_layers=2, bidirectional=True)
        carry = model.module.initialize_carry((B,))
        assert carry[1][0].c.shape == (B, H)
        (final, ys), without = compiled(lambda carry: [model(XS, initial_carry=carry), model(XS)], carry)
        chex.assert_trees_all_equal((final, ys), without)
        chex.assert_trees_all_equal_shapes_and_dtypes(final, carry)

    def test_streaming(self, framework):
        model = sequence(framework, "GRU", num_layers=2)

        def both_ways():
            middle, first = model(XS[:, :2])
            final, second = model(XS[:, 2:], initial_carry=middle)
            return (final, jnp.concatenate([first, second], 1)), model(XS)

        chex.assert_trees_all_close(*compiled(both_ways), atol=1e-6)

    def test_partitioning(self, framework, mesh):
        partitioned = nnx.with_partitioning if framework == "nnx" else linen.with_partitioning
        init = partitioned(jax.nn.initializers.lecun_normal(), (None, "model"))
        model = initialised(framework, "LSTM", num_layers=2, kernel_init=init)
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
            r"params\[0\]\[1\].b has shape \(3,\); wanted \(16,\)": ((ahead, back._replace(b=np.ones(3))), second),
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
        with pytest.raises(TypeError, match="x has dtype int32; wanted a floating dtype"):
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

        def both_ways(params, batches):
            values = [(read.call(params, xs), run(params, xs)) for xs in batches]
            return values, [gradients(call)(params, batches[-1]) for call in (read.call, run)]

        batches = drawn([jax.ShapeDtypeStruct((batch, T, I), jnp.float32) for batch in (1, 3)], 0)
        values, slopes = compiled(both_ways, model.params, batches)
        for got, wanted in values:
            chex.assert_trees_all_close(got, wanted, atol=1e-6)
        chex.assert_trees_all_close(*slopes, atol=1e-5)
