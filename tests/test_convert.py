# ruff: noqa: E501  (the table of errors: one row a line)
"""Conversions against the libraries themselves: the same outputs, the same gradients, and the same weights back."""

import copy
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from lstmjax import convert, gru, init_stack, lstm, rnn, unroll_stack
from lstmjax.cells.projected import projected_lstm
from tests.cells import cases

T, B = 5, 2
PROJECTION_WARNING = "ignore:LSTM with projections is not supported with oneDNN"

# Keras reads its own variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


class Peer(NamedTuple):
    """A layer of another library that is written in JAX.

    Attributes:
        weights: in its own form, drawn at random.
        forward: ``(weights, xs [T, B, I]) -> ys``, by that library.
        layer: what of ours computes the same.
        read: ``weights -> params``, from the converter.
        write: ``params -> weights``, by the converter.
    """

    weights: Any
    forward: Callable
    layer: Any
    read: Callable
    write: Callable


def drawn(tree, rng):
    """Leaves of the same shapes, in multiples of 2⁻¹⁰ from −1 to 1, so that adding and subtracting 1 is exact."""
    return jax.tree.map(lambda a: jnp.asarray(np.round(rng.uniform(-1, 1, a.shape) * 1024) / 1024, jnp.float32), tree)


def linen(name, rng, inputs, hidden):
    nn = pytest.importorskip("flax.linen")
    cell = getattr(nn, name)(hidden, parent=None)
    model = nn.RNN(cell, time_major=True)
    weights = drawn(model.init(jax.random.key(0), jnp.ones((T, B, inputs)))["params"]["cell"], rng)
    ours = {"GRUCell": gru, "SimpleCell": rnn}.get(name, lstm)(hidden)
    forward = lambda w, xs: model.apply({"params": {"cell": w}}, xs)  # noqa: E731
    return Peer(weights, forward, ours, convert.from_linen, convert.to_linen)


def nnx(name, rng, inputs, hidden):
    nnx = pytest.importorskip("flax.nnx")
    cell = getattr(nnx, name)(inputs, hidden, rngs=nnx.Rngs(0))
    graph, state = nnx.split(cell)
    weights = drawn(nnx.to_pure_dict(state), rng)
    zero = jnp.zeros((B, hidden))

    def forward(weights, xs):
        nnx.replace_by_pure_dict(state, weights)
        carry = (zero, zero) if "LSTM" in name else zero
        return nnx.RNN(nnx.merge(graph, state), time_major=True)(xs, initial_carry=carry)

    def write(params):
        return nnx.to_pure_dict(nnx.state(convert.to_nnx(params, cell)))

    return Peer(weights, forward, {"GRUCell": gru, "SimpleCell": rnn}.get(name, lstm)(hidden), convert.from_nnx, write)


def haiku(name, rng, inputs, hidden):
    hk = pytest.importorskip("haiku")

    def run(xs):
        core = hk.LSTM(hidden, name=name)
        return hk.dynamic_unroll(core, xs, core.initial_state(B))[0]

    model = hk.without_apply_rng(hk.transform(run))
    weights = drawn(model.init(jax.random.key(0), jnp.ones((T, B, inputs))), rng)
    (module,) = weights
    return Peer(weights, model.apply, lstm(hidden), convert.from_haiku, lambda p: {module: convert.to_haiku(p)})


def equinox(name, rng, inputs, hidden):
    eqx = pytest.importorskip("equinox")
    kind, *options = name.split()
    cell = getattr(eqx.nn, kind)(inputs, hidden, use_bias=not options, key=jax.random.key(0))
    zero = jnp.zeros((B, hidden))
    start = (zero, zero) if kind == "LSTMCell" else zero

    def forward(cell, xs):
        def body(state, x):
            state = jax.vmap(cell)(x, state)
            return state, state[0] if isinstance(state, tuple) else state

        return jax.lax.scan(body, start, xs)[1]

    ours = {"LSTMCell": lstm, "GRUCell": gru}[kind](hidden)
    return Peer(drawn(cell, rng), forward, ours, convert.from_equinox, lambda p: convert.to_equinox(p, cell))


def keras_library():
    os.environ["KERAS_BACKEND"] = "jax"
    return pytest.importorskip("keras")


def keras(name, rng, inputs, hidden):
    keras = keras_library()
    kind, *options = name.split()
    layer = getattr(keras.layers, kind)(hidden, return_sequences=True, use_bias="unbiased" not in options)
    ours = {"LSTM": lstm, "GRU": gru, "SimpleRNN": rnn}[kind](hidden)
    if "bidirectional" in options:
        layer, ours = keras.layers.Bidirectional(layer), (ours, ours)
    layer.build((B, T, inputs))
    weights = drawn(layer.get_weights(), rng)
    if kind == "GRU" and "unbiased" not in options:  # biases split as ours are on the way out
        weights = [w.at[1, : 2 * hidden].set(0) if w.shape[0] == 2 and n % 3 == 2 else w for n, w in enumerate(weights)]
    fixed = [v.value for v in layer.non_trainable_variables]

    def forward(weights, xs):
        return layer.stateless_call(weights, fixed, xs.swapaxes(0, 1))[0].swapaxes(0, 1)

    return Peer(
        weights, forward, ours, convert.from_keras, lambda p: convert.to_keras(p, bias="unbiased" not in options)
    )


PEERS = [
    *((linen, name) for name in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")),
    *((nnx, name) for name in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")),
    (haiku, "named_otherwise"),
    *((equinox, name) for name in ("LSTMCell", "LSTMCell unbiased", "GRUCell", "GRUCell unbiased")),
    *((keras, name) for name in ("LSTM", "GRU", "SimpleRNN unbiased", "GRU bidirectional")),
]


@pytest.fixture(
    params=cases(PEERS, slow=[peer for peer in PEERS if peer[0] is keras or peer[1] in ("GRUCell", "SimpleCell")]),
    ids=[f"{peer[0].__name__} {peer[1]}" for peer in PEERS],
)
def peer(request):
    build, name = request.param
    rng = np.random.default_rng(PEERS.index(request.param))
    inputs, hidden = (int(n) for n in rng.permutation([2, 3, 4, 5, 6])[:2])  # never the same, so that a mix-up shows
    return build(name, rng, inputs, hidden), jnp.asarray(rng.normal(size=(T, B, inputs)), jnp.float32)


def assert_close(mine, theirs):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def assert_equal(given, wanted):
    assert jax.tree.structure(given) == jax.tree.structure(wanted)
    for mine, theirs in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def weighed(forward):
    """A loss to which every output matters in its own way, with its derivatives."""

    def loss(weights, xs):
        ys = forward(weights, xs)
        return (ys * jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)).sum(), ys

    return jax.grad(loss, argnums=(0, 1), has_aux=True)


def test_outputs_and_gradients(peer):
    # Ours is differentiated with respect to their weights, through the conversion, inside jit.
    peer, xs = peer
    theirs = weighed(peer.forward)
    ours = weighed(lambda weights, xs: unroll_stack([peer.layer], (peer.read(weights),), xs)[1])
    theirs, ours = jax.jit(lambda weights, xs: (theirs(weights, xs), ours(weights, xs)))(peer.weights, xs)
    assert float(jnp.abs(theirs[1]).max()) > 0.1
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for m, t in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(m, t)


def test_round_trips_are_exact(peer):
    peer, _ = peer
    before = jax.tree.map(np.array, peer.weights)
    params = peer.read(peer.weights)
    assert_equal(peer.write(params), before)
    assert_equal(peer.read(peer.write(params)), params)
    assert_equal(jax.tree.map(np.array, peer.weights), before)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


# name: (module, layers, directions, options)
TORCH = {
    "LSTM": ("LSTM", 2, 1, {}),
    "LSTM unbiased": ("LSTM", 1, 2, {"bias": False}),
    "LSTM projected": ("LSTM", 2, 2, {"proj_size": 2}),
    "GRU": ("GRU", 1, 2, {}),
    "GRU unbiased": ("GRU", 1, 1, {"bias": False}),
    "RNN of ReLU": ("RNN", 3, 1, {"nonlinearity": "relu"}),
}


@pytest.fixture(params=TORCH)
def torch_case(request):
    """A module with weights drawn at random, our layers for it, and inputs."""
    torch = pytest.importorskip("torch")
    name, depth, directions, options = TORCH[request.param]
    rng = np.random.default_rng(list(TORCH).index(request.param))
    inputs, hidden = (int(n) for n in rng.permutation([3, 4, 5, 6])[:2])
    module = getattr(torch.nn, name)(inputs, hidden, depth, bidirectional=directions == 2, **options)
    for parameter in module.parameters():
        parameter.data = torch.tensor(rng.normal(size=parameter.shape) / 2, dtype=torch.float32)
    if "proj_size" in options:
        cell = projected_lstm(hidden, options["proj_size"])
    elif name == "RNN":
        cell = rnn(hidden, activation=jax.nn.relu if "nonlinearity" in options else jnp.tanh)
    else:
        cell = {"LSTM": lstm, "GRU": gru}[name](hidden)
    return module, [(cell, cell) if directions == 2 else cell] * depth, rng.normal(size=(T, B, inputs))


@pytest.mark.filterwarnings(PROJECTION_WARNING)
def test_torch_outputs_and_gradients(torch_case):
    torch = pytest.importorskip("torch")
    module, layers, xs = torch_case
    x = torch.tensor(xs, dtype=torch.float32, requires_grad=True)
    theirs = module(x)[0]
    (theirs * torch.cos(torch.arange(theirs.numel())).reshape(theirs.shape)).sum().backward()

    weights = {name: jnp.array(w.detach().numpy()) for name, w in module.state_dict().items()}
    ours = jax.jit(weighed(lambda weights, xs: unroll_stack(layers, convert.from_torch(weights), xs)[1]))
    (grads, by_x), mine = ours(weights, jnp.asarray(xs, jnp.float32))
    assert_close(mine, theirs.detach().numpy())
    assert_close(by_x, x.grad.numpy())
    for name, parameter in module.named_parameters():
        assert_close(grads[name], parameter.grad.numpy())


@pytest.mark.filterwarnings(PROJECTION_WARNING)
def test_torch_round_trips(torch_case):
    torch = pytest.importorskip("torch")
    module, _, xs = torch_case
    before = {name: w.detach().clone() for name, w in module.state_dict().items()}
    params = convert.from_torch(module.state_dict())
    exported = convert.to_torch(params, bias=module.bias)
    assert list(exported) == list(before)
    again = copy.deepcopy(module)
    again.load_state_dict({name: torch.from_numpy(w) for name, w in exported.items()})
    x = torch.tensor(xs, dtype=torch.float32)
    torch.testing.assert_close(again(x)[0], module(x)[0], rtol=1e-5, atol=1e-5)

    assert_equal(convert.from_torch(exported), params)
    for name, w in module.state_dict().items():
        assert torch.equal(w, before[name])
        if name.startswith("weight"):
            np.testing.assert_array_equal(exported[name], w)


def test_torch_biases_sum():
    rng = np.random.default_rng(0)
    for rows in (20, 15, 5):
        b_x, b_h = rng.normal(size=(2, rows)).astype(np.float32)
        weights = {"weight_ih_l0": np.zeros((rows, 3), np.float32), "weight_hh_l0": np.zeros((rows, 5), np.float32)}
        (params,) = convert.from_torch(weights | {"bias_ih_l0": b_x, "bias_hh_l0": b_h})
        if rows == 15:  # a GRU, whose candidate keeps the two apart
            np.testing.assert_array_equal(params.b_n, b_h[10:])
            b_h[10:] = 0
        np.testing.assert_array_equal(params.b, b_x + b_h)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell", "GRUCell unbiased"])
def test_torch_cells(name):
    torch = pytest.importorskip("torch")
    kind, *options = name.split()
    cell = getattr(torch.nn, kind)(3, 4, bias=not options)
    xs = np.random.default_rng(0).normal(size=(T, B, 3)).astype(np.float32)
    state, theirs = None, []
    with torch.no_grad():
        for x in torch.tensor(xs):
            state = cell(x, state)
            theirs.append((state[0] if kind == "LSTMCell" else state).numpy())
    for prefix in ("", "decoder."):
        weights = {prefix + key: w for key, w in cell.state_dict().items()}
        (params,) = convert.from_torch(weights, prefix=prefix)
    ours = {"LSTMCell": lstm, "GRUCell": gru, "RNNCell": rnn}[kind](4)
    assert_close(unroll_stack([ours], (params,), jnp.asarray(xs))[1], np.stack(theirs))
    exported = convert.to_torch((params,), bias=not options)
    cell.load_state_dict({key.removesuffix("_l0"): torch.from_numpy(w) for key, w in exported.items()})
    assert_equal(convert.from_torch(cell.state_dict()), (params,))


STACKS = {
    "lstm": [lstm(4), lstm(4)],
    "gru": [(gru(4), gru(4)), (gru(4), gru(4))],
    "rnn": [rnn(4)],
    "projected": [(projected_lstm(4, 3), projected_lstm(4, 3))],
}


def filled(shapes):
    """Arrays of these shapes and dtypes with no two neighbours alike, drawn without a compiler."""
    return jax.tree.map(lambda s: jnp.asarray(np.sin(np.arange(1, s.size + 1)).reshape(s.shape), s.dtype), shapes)


def params_of(cell, inputs=3, dtype=jnp.float32):
    return filled(jax.eval_shape(lambda key: cell.init(key, inputs, dtype), jax.random.key(0)))


def stack(name, dtype=jnp.float32):
    return filled(jax.eval_shape(lambda key: init_stack(STACKS[name], key, 2, dtype), jax.random.key(0)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", STACKS)
def test_dtypes_are_kept_through_names_and_files(name, dtype, tmp_path):
    pytest.importorskip("safetensors")
    params = stack(name, dtype)
    assert_equal(convert.from_torch(convert.to_torch(params)), params)
    convert.save_safetensors(params, tmp_path / "weights.safetensors")
    assert_equal(convert.load_safetensors(tmp_path / "weights.safetensors"), params)


def test_float64(x64, tmp_path):
    pytest.importorskip("safetensors")
    params = stack("gru", jnp.float64)
    convert.save_safetensors(params, tmp_path / "weights.safetensors")
    assert_equal(convert.load_safetensors(tmp_path / "weights.safetensors"), params)
    assert_equal(convert.from_linen(convert.to_linen(params[0][0])), params[0][0])


@pytest.mark.parametrize("dtype", cases(["float16", "bfloat16", "float64"], slow=["float16", "float64"]))
def test_every_float_elsewhere(dtype):
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    with jax.enable_x64(dtype == "float64"):
        params = {
            name: jax.tree.map(lambda a: a.astype(dtype), p) for name, p in (("lstm", LSTM), ("gru", GRU), ("rnn", RNN))
        }
        unbiased = params["gru"]._replace(b_n=jnp.zeros(5, dtype))
        cells = {"lstm": nnx_cell("OptimizedLSTMCell"), "gru": nnx_cell(), "rnn": nnx_cell("SimpleCell")}
        for name, p in params.items():
            assert_equal(convert.from_linen(convert.to_linen(p)), p)
            assert_equal(convert.from_keras(convert.to_keras(p)), p)
            assert_equal(convert.from_keras(convert.to_keras((p, p))), (p, p))
            with_place = unbiased if name == "gru" else p
            assert_equal(convert.from_nnx(convert.to_nnx(with_place, cells[name])), with_place)
            assert_equal(convert.from_nnx(nnx.state(convert.to_nnx(with_place, cells[name]))), with_place)
        for name in ("lstm", "gru"):
            cell = getattr(eqx.nn, f"{name.upper()}Cell")(3, 5, key=jax.random.key(0))
            assert_equal(convert.from_equinox(convert.to_equinox(params[name], cell)), params[name])
        flat = convert.to_cudnn((params["lstm"],))
        assert flat.dtype == jnp.dtype(dtype)
        assert_equal(convert.from_cudnn(flat, input_size=3, hidden_size=5), (params["lstm"],))
        one = params["lstm"]._replace(b=params["lstm"].b.at[5:10].set(1.25))  # a forget bias that is exact less 1
        assert {a.dtype for a in convert.to_haiku(one).values()} == {jnp.dtype(dtype)}
        assert_equal(convert.from_haiku(convert.to_haiku(one)), one)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_torch_tensors_of_every_float(name):
    torch = pytest.importorskip("torch")
    module = torch.nn.GRU(3, 4, dtype=getattr(torch, name))
    (params,) = convert.from_torch(module.state_dict())
    assert {a.dtype for a in params} == {jnp.dtype(name)}
    np.testing.assert_array_equal(params.w_h.T.astype(jnp.float32), module.weight_hh_l0.detach().float().numpy())


def test_torch_parameters_and_prefix():
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(3, 4), "decoder": torch.nn.RNN(5, 6)})
    encoder = convert.from_torch(dict(model.named_parameters()), prefix="encoder.")  # these want gradients
    assert_equal(encoder, convert.from_torch(model["encoder"].state_dict()))
    (decoder,) = convert.from_torch(model.state_dict(), prefix="decoder.")
    assert decoder.w_x.shape == (5, 6)


def test_no_memory_is_shared():
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(64, 64)
    (params,) = convert.from_torch(module.state_dict())
    weights = [np.full((64, 64), 0.5, np.float32), np.full((64, 64), 0.5, np.float32), np.full(64, 0.5, np.float32)]
    (simple,) = (convert.from_keras(weights),)
    before = jax.tree.map(np.array, (params, simple))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    for w in weights:
        w += 1
    assert_equal(jax.tree.map(np.array, (params, simple)), before)

    outgoing = [*convert.to_torch((params,)).values(), *convert.to_keras(simple), *convert.to_haiku(params).values()]
    outgoing += jax.tree.leaves(convert.to_linen(params))
    for a in outgoing:
        assert type(a) is np.ndarray
        assert a.flags.c_contiguous
        a += 1  # writeable
    assert_equal(jax.tree.map(np.array, (params, simple)), before)


def test_haiku_gate_order_and_forget_bias():
    w, b = np.arange(24, dtype=np.float32).reshape(3, 8), np.arange(8, dtype=np.float32)
    params = convert.from_haiku({"w": w, "b": b})
    np.testing.assert_array_equal(params.b, [0, 1, 4 + 1, 5 + 1, 2, 3, 6, 7])
    np.testing.assert_array_equal(params.w_x, [[0, 1, 4, 5, 2, 3, 6, 7]])
    # Every forget bias from 1/2 to 2 comes back bit for bit.
    params = params._replace(b=params.b.at[2:4].set(jnp.array([0.7123457, 1.9876543])))
    assert_equal(convert.from_haiku(convert.to_haiku(params)), params)


def test_haiku_picks_the_lstm_by_name():
    module = {"w": np.ones((3, 8), np.float32), "b": np.ones(8, np.float32)}
    linear = {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32)}
    wanted = convert.from_haiku(module)
    for name in ("lstm/linear", "encoder/~/lstm_1/linear", "encoder/lstm/linear"):
        assert_equal(convert.from_haiku({"linear": linear, name: module}), wanted)


@pytest.mark.slow
def test_keras_layers_themselves():
    keras = keras_library()
    for layer in (
        keras.layers.LSTM(4),
        keras.layers.GRU(4),
        keras.layers.RNN(keras.layers.GRUCell(4)),
        keras.layers.Bidirectional(keras.layers.LSTM(4)),
        keras.layers.Bidirectional(keras.layers.SimpleRNN(4), backward_layer=keras.layers.GRU(5, go_backwards=True)),
    ):
        layer.build((B, T, 3))
        params = convert.from_keras(layer)
        assert_equal(params, convert.from_keras(layer.get_weights()))
        layer.set_weights([w + 1 for w in convert.to_keras(params)])
        assert_equal(convert.from_keras(layer), convert.from_keras([w + 1 for w in convert.to_keras(params)]))


@pytest.mark.slow
def test_keras_layers_whose_settings_leave_the_computation_alone():
    # Dropout is for training; what an initialiser drew, and how steps are compiled, is no matter; a state is a call's.
    keras = keras_library()
    xs = np.random.default_rng(0).normal(size=(B, T, 3)).astype(np.float32)
    common = {"return_sequences": True, "dropout": 0.5, "recurrent_dropout": 0.5, "seed": 0, "unroll": True}
    for layer, ours in (
        (keras.layers.LSTM(4, stateful=True, unit_forget_bias=False, use_cudnn=False, **common), lstm(4)),
        (keras.layers.GRU(4, return_state=True, **common), gru(4)),
        (keras.layers.RNN(keras.layers.SimpleRNNCell(4, use_bias=False), return_sequences=True), rnn(4)),
    ):
        theirs = layer(xs)
        theirs = theirs[0] if isinstance(theirs, list | tuple) else theirs
        mine = unroll_stack([ours], (convert.from_keras(layer),), jnp.asarray(xs.swapaxes(0, 1)))[1]
        assert_close(mine.swapaxes(0, 1), theirs)


def test_nnx_cells_themselves():
    nnx = pytest.importorskip("flax.nnx")
    with pytest.warns(UserWarning, match="keep_rngs"):
        cell = nnx.GRUCell(3, 4, keep_rngs=True, rngs=nnx.Rngs(0))
    params = convert.from_nnx(cell)
    assert_equal(params, convert.from_nnx(nnx.state(cell)))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
    new = convert.to_nnx(jax.tree.map(lambda a: a + (1 if a.ndim == 2 else 0), params), cell)
    assert_equal(jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(cell, nnx.Param))), before)
    np.testing.assert_array_equal(new.dense_i.kernel[...], before["dense_i"]["kernel"] + 1)
    new.rngs()  # a stream of its own
    assert (int(new.rngs.count[...]), int(cell.rngs.count[...])) == (1, 0)
    wide = convert.to_nnx(jax.tree.map(lambda a: a.astype(jnp.bfloat16), params), cell)
    assert wide.dense_h.kernel[...].dtype == jnp.bfloat16


def test_weights_out_under_jit():
    # To NNX and Equinox, what is handed out is made of jax arrays and so can be traced.
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    params, x, h = params_of(lstm(4)), jnp.ones(3), jnp.ones(4)
    cells = eqx.nn.LSTMCell(3, 4, key=jax.random.key(1)), nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0))
    wanted = lstm(4).step(params, (lstm(4).initial_state()._replace(h=h)), x)[1]
    by_equinox = jax.jit(lambda p: convert.to_equinox(p, cells[0])(x, (h, jnp.zeros(4)))[0])(params)
    by_nnx = jax.jit(lambda p: convert.to_nnx(p, cells[1])((jnp.zeros(4), h), x)[1])(params)
    assert_close(by_equinox, wanted)
    assert_close(by_nnx, wanted)


# Files


def test_torch_reads_our_files_and_we_read_its(tmp_path):
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")
    module = torch.nn.LSTM(2, 4, 2, dtype=torch.bfloat16)
    params = stack("lstm", jnp.bfloat16)
    convert.save_safetensors(params, tmp_path / "ours.safetensors")
    module.load_state_dict(files.load_file(tmp_path / "ours.safetensors"))
    assert_equal(convert.from_torch(module.state_dict()), params)

    model = torch.nn.ModuleDict({"head": torch.nn.Linear(1, 1, dtype=torch.float64), "rnn": module})
    files.save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    assert_equal(convert.load_safetensors(tmp_path / "theirs.safetensors", prefix="rnn."), params)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    path = tmp_path / "weights.safetensors"
    convert.save_safetensors(stack("lstm"), path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def no_space(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space left"):
        convert.save_safetensors(stack("rnn"), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "weights.safetensors"]
    assert_equal(convert.load_safetensors(path), stack("lstm"))


def test_a_link_stays_a_link(tmp_path):
    pytest.importorskip("safetensors")
    convert.save_safetensors(stack("lstm"), tmp_path / "target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    convert.save_safetensors(stack("rnn"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_equal(convert.load_safetensors(tmp_path / "target"), stack("rnn"))


DAMAGE = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:50],
    "cut in the numbers": lambda data: data[:-4],
    "too long": lambda data: data + b"....",
    "a header that is no JSON": lambda data: data[:8] + b"(" + data[9:],
    "something else": lambda data: b"PK\x03\x04" * 40,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(name, tmp_path):
    pytest.importorskip("safetensors")
    convert.save_safetensors(stack("lstm"), tmp_path / "weights.safetensors")
    data = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(DAMAGE[name](data))
    with pytest.raises(ValueError, match=r"weights\.safetensors is no safetensors file, or a damaged one"):
        convert.load_safetensors(tmp_path / "weights.safetensors")


def test_files_that_hold_something_else(tmp_path):
    files = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors does not exist"):
        convert.load_safetensors(path)
    with pytest.raises(ValueError, match="is no safetensors file"):
        convert.load_safetensors(tmp_path)
    files.save_file({"head.weight": np.ones((2, 2), np.float32)}, path)
    with pytest.raises(ValueError, match=r"weights\.safetensors: state_dict holds the unknown 'head.weight'"):
        convert.load_safetensors(path)
    with pytest.raises(
        ValueError, match=r"weights\.safetensors: .* no key that begins with 'rnn.'; given 'head.weight'"
    ):
        convert.load_safetensors(path, prefix="rnn.")
    files.save_file({"weight_ih_l0": np.ones((2, 2)), "weight_hh_l0": np.ones((2, 2))}, path)
    with pytest.raises(TypeError, match=r"weights\.safetensors: weight_.h_l0 has dtype float64"):
        convert.load_safetensors(path)


@pytest.mark.parametrize("call", [convert.load_safetensors, lambda path: convert.save_safetensors(stack("rnn"), path)])
def test_without_safetensors(call, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"lstmjax\[convert\]"):
        call(tmp_path / "weights.safetensors")


# Errors


def a(*shape, dtype: Any = np.float32):
    return np.ones(shape, dtype)


def weights_of(depth=1, rows=20, inputs=3, hidden=5, **changes):
    """A state dict; a change to None takes a key out."""
    layers = {}
    for n in range(depth):
        layers |= {f"weight_ih_l{n}": a(rows, hidden if n else inputs), f"weight_hh_l{n}": a(rows, hidden)}
        layers |= {f"bias_ih_l{n}": a(rows), f"bias_hh_l{n}": a(rows)}
    return {key: value for key, value in (layers | changes).items() if value is not None}


def torch_with(**changes):
    return lambda: convert.from_torch(weights_of(**changes))


def dense(inputs, outputs, bias=True):
    return {"kernel": a(inputs, outputs)} | ({"bias": a(outputs)} if bias else {})


SIMPLE = {"i": dense(3, 5), "h": dense(5, 5, bias=False)}
FUSED_GRU = {"dense_i": dense(3, 15), "dense_h": dense(5, 15, bias=False)}
LSTM, GRU, RNN = (params_of(build(5)) for build in (lstm, gru, rnn))
PROJECTED = params_of(projected_lstm(5, 2))
UNBIASED_GRU, BIASED_GRU = (GRU._replace(b=jnp.zeros(15), b_n=b_n) for b_n in (jnp.zeros(5), jnp.ones(5)))
EQUINOX = {"weight_ih": a(15, 3), "weight_hh": a(15, 5), "bias": a(15), "bias_n": a(5)}


def equinox_with(**changes):
    return lambda: convert.from_equinox(SimpleNamespace(**EQUINOX | changes))


def nnx_cell(name="GRUCell", inputs=3, hidden=5, **options):
    nnx = pytest.importorskip("flax.nnx")
    return getattr(nnx, name)(inputs, hidden, rngs=nnx.Rngs(0), **options)


def nnx_rnn():
    nnx = pytest.importorskip("flax.nnx")
    return nnx.RNN(nnx_cell("OptimizedLSTMCell"), reverse=True)


def own_nnx_cell():
    nnx = pytest.importorskip("flax.nnx")

    class Doubled(nnx.SimpleCell):
        def __call__(self, carry, inputs):
            return super().__call__(carry, 2 * inputs)

    return Doubled(3, 5, rngs=nnx.Rngs(0))


def linen_wrapped(both=False):
    nn = pytest.importorskip("flax.linen")
    model = nn.Bidirectional(nn.RNN(nn.GRUCell(5)), nn.RNN(nn.GRUCell(5))) if both else nn.RNN(nn.GRUCell(5))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((B, T, 3))))
    return jax.tree.map(lambda s: a(*s.shape), shapes["params"])


def equinox_cell(name="GRUCell", inputs=3, hidden=5, **options):
    return getattr(pytest.importorskip("equinox").nn, name)(inputs, hidden, key=jax.random.key(0), **options)


def keras_layer(name="GRU", wrapped=None, **options):
    layers = keras_library().layers
    layer = getattr(layers, name)(5, **options)
    if wrapped is not None:
        layer = layers.Bidirectional(layer, **wrapped)
    layer.build((B, T, 3))
    return convert.from_keras(layer)


def exchanged():
    layers = keras_library().layers
    layer = layers.Bidirectional(layers.LSTM(5, go_backwards=True), backward_layer=layers.LSTM(5))
    layer.build((B, T, 3))
    return convert.from_keras(layer)


def keras_model(wrap, name="LSTM", **options):
    """A model around a layer, whose weights alone are the layer's."""
    keras = keras_library()
    layer, inputs = getattr(keras.layers, name)(5, **options), keras.Input((T, 3), batch_size=B)
    return convert.from_keras(wrap(keras, layer, inputs))


def sequential(keras, layer, inputs):
    return keras.Sequential([inputs, layer])


def functional(keras, layer, inputs):
    return keras.Model(inputs, layer(inputs))


def own_layer(keras, layer, inputs):
    class Encoder(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def call(self, xs):
            return self.layer(xs)

    encoder = Encoder()
    encoder(inputs)
    return encoder


def own_lstm(keras, layer, inputs):
    class Doubled(type(layer)):
        def call(self, sequence, initial_state=None, mask=None, training=False):
            return 2 * super().call(sequence, initial_state, mask, training)

    layer = Doubled(5)
    layer.build(inputs.shape)
    return layer


def time_distributed(keras, layer, inputs):
    layer = keras.layers.TimeDistributed(layer)
    layer(keras.Input((2, T, 3), batch_size=B))
    return layer


def other_layer(keras, layer, inputs):
    layer = keras.layers.Dense(20, activation="tanh")
    layer(inputs)
    return layer


def own_cell(keras, layer, inputs):
    class Doubled(keras.layers.SimpleRNNCell):
        def call(self, x, states, training=False):
            return super().call(2 * x, states, training)

    layer = keras.layers.RNN(Doubled(5))
    layer(inputs)
    return layer


def stacked():
    """Two cells of one size, whose weights alone look like those of two directions."""
    layers = keras_library().layers
    layer = layers.RNN([layers.LSTMCell(3), layers.LSTMCell(3)])
    layer.build((B, T, 3))
    return convert.from_keras(layer)


BAD_CALLS = {
    # PyTorch
    "no key": (ValueError, "no key that begins with ''; given nothing", lambda: convert.from_torch({})),
    "no such prefix": (ValueError, "no key that begins with 'rnn.'; given 'weight_ih_l0'", lambda: convert.from_torch(weights_of(), prefix="rnn.")),
    "the module itself": (TypeError, r"state_dict is a torch SimpleNamespace module; wanted its state_dict\(\)", lambda: convert.from_torch(SimpleNamespace(state_dict=weights_of))),
    "a path": (TypeError, "state_dict is a path; torch.load it first, or load_safetensors", lambda: convert.from_torch("m.pt")),
    "keys of a module inside": (ValueError, r"holds the unknown 'head.weight'; .*; prefix='net.lstm.' takes those that begin so$", lambda: convert.from_torch({"head.weight": a(3)} | {"net.lstm." + k: v for k, v in weights_of().items()})),
    "unknown key": (ValueError, "holds the unknown 'weight_ch_l0'; given .* wanted 'weight_ih_l0'", torch_with(weight_ch_l0=a(20))),
    "unknown key under the prefix": (ValueError, "holds the unknown 'r.head'", lambda: convert.from_torch({"r." + k: v for k, v in weights_of(head=a(3)).items()}, prefix="r.")),
    "a number written otherwise": (ValueError, "holds the unknown 'weight_ih_l00'", torch_with(weight_ih_l00=a(20, 3))),
    "no recurrent weights": (ValueError, "lacks 'weight_hh_l0'; the other 3 that are wanted are there$", torch_with(weight_hh_l0=None)),
    "one bias of two": (ValueError, "lacks 'bias_hh_l0'", torch_with(bias_hh_l0=None)),
    "biases in one layer": (ValueError, "lacks 'bias_hh_l1'", torch_with(depth=2, bias_ih_l1=None, bias_hh_l1=None)),
    "half a direction": (ValueError, "lacks 'bias_hh_l0_reverse'", torch_with(weight_ih_l0_reverse=a(20, 3))),
    "a layer left out": (ValueError, "lacks 'bias_hh_l1'", torch_with(**{k.replace("l0", "l2"): v for k, v in weights_of().items()})),
    "an absurd layer": (ValueError, "holds the unknown 'weight_ih_l999999999999'", torch_with(weight_ih_l999999999999=a(20, 5))),
    "a projection in one layer": (ValueError, "lacks 'weight_hr_l1'", torch_with(depth=2, weight_hr_l0=a(2, 5))),
    "five gates": (ValueError, r"weight_hh_l0 has 25 gate units for 5 hidden units; wanted 4 \(LSTM\)", torch_with(rows=25)),
    "nothing hidden": (ValueError, "weight_hh_l0 has 0 gate units for 0 hidden units", torch_with(rows=0, hidden=0)),
    "one axis": (ValueError, r"weight_hh_l0 has shape \(20,\); wanted two axes", torch_with(weight_hh_l0=a(20))),
    "rows": (ValueError, r"weight_ih_l0 has shape \(15, 3\); wanted \(20, 3\)", torch_with(weight_ih_l0=a(15, 3))),
    "bias": (ValueError, r"bias_hh_l0 has shape \(5,\); wanted \(20,\)", torch_with(bias_hh_l0=a(5))),
    "layers that disagree": (ValueError, r"weight_ih_l1 has shape \(20, 3\); wanted \(20, 5\)", torch_with(depth=2, weight_ih_l1=a(20, 3))),
    "layers of two kinds": (ValueError, r"weight_hh_l1 has shape \(15, 5\); wanted \(20, 5\)", torch_with(depth=2, weight_hh_l1=a(15, 5))),
    "a projection that widens": (ValueError, r"weight_hr_l0 has shape \(7, 5\); PyTorch projects H to fewer", torch_with(weight_hh_l0=a(20, 7), weight_hr_l0=a(7, 5))),
    "a GRU's projection": (ValueError, r"weight_ih_l0 has shape \(15, 3\); wanted \(20, 3\)", torch_with(rows=15, weight_hh_l0=a(15, 2), weight_hr_l0=a(2, 5))),
    "integers": (TypeError, "weight_ih_l0 has dtype int32; wanted a floating dtype", torch_with(weight_ih_l0=a(20, 3, dtype=np.int32))),
    "complex numbers": (TypeError, "weight_ih_l0 has dtype complex64", torch_with(weight_ih_l0=a(20, 3, dtype=np.complex64))),
    "doubles": (TypeError, "weight_ih_l0 has dtype float64, which JAX would make float32: cast it, or set jax_enable_x64", torch_with(weight_ih_l0=a(20, 3, dtype=np.float64))),
    "mixed dtypes": (TypeError, "bias_hh_l0 has dtype float16 and weight_ih_l0 float32; wanted one dtype", torch_with(bias_hh_l0=a(20, dtype=np.float16))),
    "a list": (TypeError, "bias_hh_l0 is of type list; wanted an array", torch_with(bias_hh_l0=[0.0] * 20)),
    # to PyTorch
    "no state dict": (TypeError, "state_dict is of type NoneType; wanted a dict of names and arrays", lambda: convert.from_torch(None)),
    "a cell's names and a layer's": (ValueError, "holds the unknown 'weight_ih'", torch_with(weight_ih=a(20, 3))),
    "half a cell": (ValueError, "lacks 'weight_hh'", lambda: convert.from_torch({"weight_ih": a(20, 3)})),
    "a cell inside": (ValueError, "prefix='decoder.' takes those that begin so", lambda: convert.from_torch({"decoder." + k[:-3]: v for k, v in weights_of().items()})),
    "no stack": (TypeError, r"params is of type LSTMParams; wanted a tuple with one entry a layer, such as \(params,\)", lambda: convert.to_torch(LSTM)),
    "an empty stack": (ValueError, "params is empty; wanted", lambda: convert.to_torch(())),
    "a layer of three": (TypeError, "a sequence of 3; wanted a cell's parameters, or a pair", lambda: convert.to_torch(((LSTM, LSTM, LSTM),))),
    "no parameters": (TypeError, r"params\[0\] is of type dict; wanted LSTMParams or GRUParams or", lambda: convert.to_torch(({},))),
    "two kinds": (ValueError, r"params\[1\] holds GRUParams; wanted LSTMParams, as in the first", lambda: convert.to_torch((LSTM, params_of(gru(5), 5)))),
    "a mixed pair": (ValueError, r"params\[0\] holds LSTMParams and GRUParams; wanted LSTMParams and LSTMParams", lambda: convert.to_torch(((LSTM, GRU),))),
    "one layer a pair": (ValueError, r"params\[1\] holds LSTMParams and LSTMParams; wanted LSTMParams, as", lambda: convert.to_torch((LSTM, (LSTM, LSTM)))),
    "sizes that do not follow": (ValueError, r"weight_ih_l1 has shape \(20, 3\); wanted \(20, 5\)", lambda: convert.to_torch((LSTM, LSTM))),
    "two hidden sizes": (ValueError, r"weight_ih_l1 has shape \(16, 5\); wanted \(20, 5\)", lambda: convert.to_torch((LSTM, params_of(lstm(4), 5)))),
    "a projection as wide": (ValueError, "PyTorch projects H to fewer", lambda: convert.to_torch((params_of(projected_lstm(5, 5)),))),
    "a bias": (ValueError, r"params\[0\].b is not all zero; wanted zeros, since bias is False", lambda: convert.to_torch((LSTM,), bias=False)),
    "a GRU's bias": (ValueError, r"params\[0\].b_n is not all zero", lambda: convert.to_torch((BIASED_GRU,), bias=False)),
    "our shape": (ValueError, r"params\[0\].b has shape \(19,\); wanted \(20,\)", lambda: convert.to_torch((LSTM._replace(b=jnp.ones(19)),))),
    "our dtypes": (TypeError, r"params\[0\].b has dtype bfloat16 and params\[0\].w_x float32", lambda: convert.to_torch((LSTM._replace(b=LSTM.b.astype(jnp.bfloat16)),))),
    "dtypes of two layers": (TypeError, "weight_ih_l1 has dtype float16 and weight_ih_l0 float32", lambda: convert.to_torch((LSTM, params_of(lstm(5), 5, jnp.float16)))),
    # Keras
    "one weight": (ValueError, "1 weights given; wanted 2 or 3 or 4 or 6: of each direction kernel", lambda: convert.from_keras([a(3, 20)])),
    "Keras gates": (ValueError, r"weights\[1\] \(recurrent_kernel\) has 25 gate units", lambda: convert.from_keras([a(3, 25), a(5, 25), a(25)])),
    "Keras kernel": (ValueError, r"weights\[0\] \(kernel\) has shape \(3, 15\); wanted \(3, 20\)", lambda: convert.from_keras([a(3, 15), a(5, 20), a(20)])),
    "Keras bias": (ValueError, r"weights\[2\] \(bias\) has shape \(2, 20\); wanted \(20,\)", lambda: convert.from_keras([a(3, 20), a(5, 20), a(2, 20)])),
    "Keras backward kernel": (ValueError, r"weights\[2\] \(kernel\) has shape \(4, 20\); wanted \(3, 20\)", lambda: convert.from_keras([a(3, 20), a(5, 20), a(4, 20), a(5, 20)])),
    "reset before, by its weights": (ValueError, r"weights\[2\] \(bias\) has shape \(15,\), a GRU's with reset_after=False; wanted \(2, 15\): .* here that is gru_reset_before", lambda: convert.from_keras([a(3, 15), a(5, 15), a(15)])),
    "Keras integers": (TypeError, r"weights\[0\] has dtype int8", lambda: convert.from_keras([a(3, 20, dtype=np.int8), a(5, 20), a(20)])),
    "reset before": (ValueError, "GRUCell has reset_after = False; wanted True: .* here that is gru_reset_before", lambda: keras_layer(reset_after=False, use_bias=False)),
    "go_backwards": (ValueError, "LSTM has go_backwards = True; wanted False", lambda: keras_layer("LSTM", go_backwards=True)),
    "recurrent_activation": (ValueError, "LSTMCell has recurrent_activation = 'hard_sigmoid'; wanted 'sigmoid'", lambda: keras_layer("LSTM", recurrent_activation="hard_sigmoid")),
    "activation": (ValueError, "SimpleRNNCell has activation = 'relu'; wanted 'tanh'", lambda: keras_layer("SimpleRNN", activation="relu")),
    "activation in a direction": (ValueError, "LSTMCell has activation = 'linear'; wanted 'tanh'", lambda: keras_layer("LSTM", wrapped={}, activation=None)),
    "merge_mode": (ValueError, "Bidirectional has merge_mode = 'sum'; wanted 'concat'", lambda: keras_layer("LSTM", wrapped={"merge_mode": "sum"})),
    "a layer not built": (ValueError, "0 weights given; wanted 2 or 3: .* before it is built", lambda: convert.from_keras(keras_library().layers.LSTM(5))),
    "stacked cells": (TypeError, "a StackedRNNCells; wanted an LSTM,", stacked),
    "Sequential": (TypeError, r"layer_or_weights is a Sequential; wanted an LSTM, GRU, .*: of a model, one of model.layers", lambda: keras_model(sequential, activation="relu", go_backwards=True)),
    "Sequential, all as it should be": (TypeError, "layer_or_weights is a Sequential; wanted", lambda: keras_model(sequential)),
    "Model": (TypeError, "layer_or_weights is a Functional; wanted", lambda: keras_model(functional, "GRU", reset_after=False, use_bias=False)),
    "a layer around a layer": (TypeError, "layer_or_weights is a Encoder; wanted", lambda: keras_model(own_layer, activation="relu")),
    "an LSTM of one's own": (TypeError, "layer_or_weights is a Doubled; wanted", lambda: keras_model(own_lstm)),
    "a cell of one's own": (TypeError, "layer_or_weights is a Doubled; wanted", lambda: keras_model(own_cell)),
    "TimeDistributed": (TypeError, "layer_or_weights is a TimeDistributed; wanted", lambda: keras_model(time_distributed, go_backwards=True)),
    "Dense": (TypeError, "layer_or_weights is a Dense; wanted", lambda: keras_model(other_layer)),
    "nothing for Keras": (TypeError, "layer_or_weights is a NoneType; wanted", lambda: convert.from_keras(None)),
    "directions exchanged": (ValueError, "LSTM has go_backwards = True; wanted False", exchanged),
    "a projection in Keras": (TypeError, "params is of type ProjectedLSTMParams; wanted LSTMParams or GRUParams or RNNParams", lambda: convert.to_keras(PROJECTED)),
    "dtypes of a pair in Keras": (TypeError, r"weights\[3\] has dtype float16 and weights\[0\] float32", lambda: convert.to_keras((LSTM, params_of(lstm(5), 3, jnp.float16)))),
    "inputs of a pair in Keras": (ValueError, r"params\[1\].w_x has shape \(4, 20\); wanted \(3, 20\)", lambda: convert.to_keras((LSTM, params_of(lstm(5), 4)))),
    "dtypes of a pair for cuDNN": (TypeError, r"params\[0\]\[1\].w_x has dtype float16 and params\[0\]\[0\].w_x float32", lambda: convert.to_cudnn(((LSTM, params_of(lstm(5), 3, jnp.float16)),))),
    "a bias in Keras": (ValueError, "params.b is not all zero", lambda: convert.to_keras(LSTM, bias=False)),
    # Flax
    "Linen key": (ValueError, "params holds the unknown 'j/kernel'; given", lambda: convert.from_linen({**SIMPLE, "j": {"kernel": a(3, 5)}})),
    "Linen without bias": (ValueError, "params lacks 'i/bias'", lambda: convert.from_linen({**SIMPLE, "i": dense(3, 5, bias=False)})),
    "Linen wrapped": (ValueError, "holds no cell's parameters: given 'cell/i/kernel'", lambda: convert.from_linen({"cell": SIMPLE})),
    "Linen RNN": (ValueError, "; a cell's parameters are under 'cell': convert those$", lambda: convert.from_linen(linen_wrapped())),
    "Linen variables": (ValueError, "; a cell's parameters are under 'params/cell'", lambda: convert.from_linen({"params": linen_wrapped()})),
    "Linen Bidirectional": (ValueError, "; a cell's parameters are under 'backward_rnn/cell', 'forward_rnn/cell'", lambda: convert.from_linen(linen_wrapped(both=True))),
    "a Linen module": (TypeError, "params is of type GRUCell; wanted a dict", lambda: convert.from_linen(pytest.importorskip("flax.linen").GRUCell(4, parent=None))),
    "NNX RNN": (TypeError, "cell_or_state is a RNN; wanted an LSTMCell, .*; a cell's parameters are under 'cell': convert those$", lambda: convert.from_nnx(nnx_rnn())),
    "NNX RNN's state": (ValueError, "; a cell's parameters are under 'cell': convert those$", lambda: convert.from_nnx(pytest.importorskip("flax.nnx").state(nnx_rnn()))),
    "an NNX cell of one's own": (TypeError, "cell_or_state is a Doubled; wanted an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell", lambda: convert.from_nnx(own_nnx_cell())),
    "nothing for NNX": (TypeError, "cell_or_state is a int; wanted an LSTMCell", lambda: convert.from_nnx(3)),
    "nothing to fill in NNX": (TypeError, "cell is a int; wanted an NNX cell", lambda: convert.to_nnx(LSTM, 3)),
    "a wrapper to fill in NNX": (ValueError, "RNN has 'cell/.* which is no cell for LSTMParams; a cell's parameters are under 'cell'", lambda: convert.to_nnx(LSTM, nnx_rnn())),
    "Linen empty": (ValueError, "holds no cell's parameters: given nothing", lambda: convert.from_linen({})),
    "Linen shape": (ValueError, r"i/kernel has shape \(3, 4\); wanted \(3, 5\)", lambda: convert.from_linen({**SIMPLE, "i": {"kernel": a(3, 4), "bias": a(5)}})),
    "Linen square": (ValueError, r"h/kernel has shape \(5, 6\); wanted \(5, 5\)", lambda: convert.from_linen({"i": dense(3, 5), "h": dense(5, 6, bias=False)})),
    "Linen dtype": (TypeError, "h/kernel has dtype float16 and i/kernel float32", lambda: convert.from_linen({**SIMPLE, "h": {"kernel": a(5, 5, dtype=np.float16)}})),
    "a projection in Linen": (TypeError, "params is of type ProjectedLSTMParams", lambda: convert.to_linen(PROJECTED)),
    "NNX gates": (ValueError, r"dense_i/kernel has shape \(3, 25\); wanted \(3, 15\)", lambda: convert.from_nnx({"dense_i": dense(3, 25), "dense_h": dense(5, 25, bias=False)})),
    "NNX shape": (ValueError, r"dense_i/bias has shape \(5,\); wanted \(15,\)", lambda: convert.from_nnx({**FUSED_GRU, "dense_i": {"kernel": a(3, 15), "bias": a(5)}})),
    "NNX gate_fn": (ValueError, "GRUCell has gate_fn = 'relu'; wanted 'sigmoid'", lambda: convert.from_nnx(nnx_cell(gate_fn=jax.nn.relu))),
    "NNX residual": (ValueError, "SimpleCell has residual = True; wanted False", lambda: convert.from_nnx(nnx_cell("SimpleCell", residual=True))),
    "NNX kind": (ValueError, "GRUCell has .*'dense_i/bias'.*, which is no cell for LSTMParams", lambda: convert.to_nnx(LSTM, nnx_cell())),
    "NNX kind, names alike": (ValueError, r"dense_h/kernel has shape \(5, 5\); wanted \(5, 15\)", lambda: convert.to_nnx(RNN, nnx_cell())),
    "NNX size": (ValueError, r"dense_h/kernel has shape \(5, 15\); wanted \(4, 12\)", lambda: convert.to_nnx(UNBIASED_GRU, nnx_cell(hidden=4))),
    "NNX recurrent bias": (ValueError, "params.b_n is not all zero; wanted zeros, since Flax NNX's GRUCell has no", lambda: convert.to_nnx(BIASED_GRU, nnx_cell())),
    # Haiku
    "Haiku key": (ValueError, "params lacks 'b'", lambda: convert.from_haiku({"w": a(8, 20)})),
    "Haiku module": (ValueError, r"params\['lstm/linear'\] holds the unknown 'c'", lambda: convert.from_haiku({"lstm/linear": {"w": a(8, 20), "b": a(20), "c": a(1)}})),
    "nothing for Haiku": (TypeError, "params is of type NoneType; wanted a dict", lambda: convert.from_haiku(None)),
    "Haiku's GRU": (ValueError, r"params\['gru'\] is an hk.GRU's; wanted an hk.LSTM's: .* here that is gru_reset_before", lambda: convert.from_haiku({"gru": {"w_i": a(3, 15), "w_h": a(5, 15), "b": a(15)}})),
    "Haiku's GRU among others": (ValueError, r"params\['gru'\] is an hk.GRU's", lambda: convert.from_haiku({"linear": {"w": a(8, 20), "b": a(20)}, "gru": {"w_i": a(3, 15), "w_h": a(5, 15), "b": a(15)}})),
    "Haiku's GRU by itself": (ValueError, "params is an hk.GRU's", lambda: convert.from_haiku({"w_i": a(3, 15), "w_h": a(5, 15), "b": a(15)})),
    "Haiku's Linear": (ValueError, "holds 0 modules named as an LSTM's", lambda: convert.from_haiku({"linear": {"w": a(8, 20), "b": a(20)}})),
    "Haiku's Linear in a module": (ValueError, "holds 0 modules named as an LSTM's", lambda: convert.from_haiku({"net/~/linear": {"w": a(8, 20), "b": a(20)}})),
    "two LSTMs": (ValueError, "holds 2 modules named as an LSTM's; wanted one: .* 'lstm/linear', 'lstm_1/linear'", lambda: convert.from_haiku({"lstm/linear": {}, "lstm_1/linear": {}})),
    "no LSTM": (ValueError, "holds 0 modules named as an LSTM's", lambda: convert.from_haiku({"linear": {}, "linear_1": {}})),
    "Haiku gates": (ValueError, r"w has shape \(8, 18\); wanted \[I \+ H, 4H\]", lambda: convert.from_haiku({"w": a(8, 18), "b": a(18)})),
    "Haiku rows": (ValueError, r"w has shape \(4, 20\); wanted", lambda: convert.from_haiku({"w": a(4, 20), "b": a(20)})),
    "Haiku bias": (ValueError, r"b has shape \(5,\); wanted \(20,\)", lambda: convert.from_haiku({"w": a(8, 20), "b": a(5)})),
    "a GRU in Haiku": (TypeError, "params is of type GRUParams; wanted LSTMParams", lambda: convert.to_haiku(GRU)),
    # Equinox
    "Equinox attributes": (ValueError, "dict lacks weight_ih or weight_hh", lambda: convert.from_equinox({})),
    "Equinox half a bias": (ValueError, "lacks 'bias_n'", equinox_with(bias_n=None)),
    "Equinox shape": (ValueError, r"bias_n has shape \(15,\); wanted \(5,\)", equinox_with(bias_n=a(15))),
    "Equinox gates": (ValueError, "weight_hh has 25 gate units", equinox_with(weight_hh=a(25, 5))),
    "one gate in Equinox": (ValueError, r"weight_hh has shape \(5, 5\); wanted \[4H, H\] or \[3H, H\]", equinox_with(weight_hh=a(5, 5))),
    "Equinox kind": (ValueError, "LSTMCell lacks 'bias_n'", lambda: convert.to_equinox(GRU, equinox_cell("LSTMCell"))),
    "Equinox size": (ValueError, r"weight_ih has shape \(15, 3\); wanted \(15, 2\)", lambda: convert.to_equinox(GRU, equinox_cell(inputs=2))),
    "Equinox without bias": (ValueError, "params.b_n is not all zero; wanted zeros, since the GRUCell has use_bias=False", lambda: convert.to_equinox(BIASED_GRU, equinox_cell(use_bias=False))),
    "nothing for Equinox": (ValueError, "NoneType lacks weight_ih or weight_hh", lambda: convert.from_equinox(None)),
    "nothing to fill in Equinox": (ValueError, "NoneType lacks weight_ih or weight_hh", lambda: convert.to_equinox(LSTM, None)),
    "a Linear in Equinox": (ValueError, "Linear lacks weight_ih or weight_hh", lambda: convert.to_equinox(LSTM, equinox_cell("Linear"))),
    # cuDNN
    "no stack for cuDNN": (TypeError, r"params is of type LSTMParams; wanted a tuple with one entry a layer, such as \(params,\)", lambda: convert.to_cudnn(LSTM)),
    "nothing for cuDNN": (TypeError, "params is of type NoneType; wanted a tuple", lambda: convert.to_cudnn(None)),
    "an empty stack for cuDNN": (ValueError, "params is empty; wanted", lambda: convert.to_cudnn(())),
    "a dict for cuDNN": (TypeError, r"params\[0\] is of type dict; wanted LSTMParams", lambda: convert.to_cudnn(({},))),
    "a GRU for cuDNN": (TypeError, r"params\[1\] is of type GRUParams; wanted LSTMParams", lambda: convert.to_cudnn((LSTM, params_of(gru(5), 5)))),
    "one layer of cuDNN a pair": (ValueError, r"params\[1\] holds LSTMParams and LSTMParams; wanted LSTMParams, as", lambda: convert.to_cudnn((LSTM, (LSTM, LSTM)))),
    "cuDNN sizes that do not follow": (ValueError, r"params\[1\].w_x has shape \(3, 20\); wanted \(5, 20\)", lambda: convert.to_cudnn((LSTM, LSTM))),
    "no layers of cuDNN": (ValueError, "num_layers is 0; wanted a whole number of at least 1", lambda: convert.from_cudnn(a(200), input_size=3, hidden_size=5, num_layers=0)),
    "half a unit of cuDNN": (ValueError, "hidden_size is 5.0; wanted a whole number of at least 1", lambda: convert.from_cudnn(a(200), input_size=3, hidden_size=5.0)),
    "dtypes for cuDNN": (TypeError, r"params\[1\].w_x has dtype float16 and params\[0\].w_x float32", lambda: convert.to_cudnn((LSTM, params_of(lstm(5), 5, jnp.float16)))),
    "an RNN in Equinox": (TypeError, "params is of type RNNParams; wanted LSTMParams or GRUParams", lambda: convert.to_equinox(RNN, equinox_cell())),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    exception, message, call = BAD_CALLS[name]
    with pytest.raises(exception, match=message):
        call()
