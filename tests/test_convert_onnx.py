"""ONNX models against ONNX Runtime: what is written computes the same, and what is read is what was written."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import convert, gru, lstm, projected_lstm, rnn, unroll_stack
from tests.cells import cases, compiled, problem, same

onnx = pytest.importorskip("onnx")

T, B, I, H = 6, 3, 3, 4
LENGTHS = np.array([6, 4, 1], np.int32)
CELLS = {"LSTM": lstm, "GRU": gru, "RNN": rnn}


def stack(op, layers, directions, dtype=jnp.float32):
    """A stack, its parameters, an input and a state before the first step, of each direction its own."""
    cell = CELLS[op](H)

    def drawn(depth, seed):
        return problem(cell, (T, B, directions * H if depth else I), 10 * depth + seed, dtype)

    every = [[drawn(depth, seed) for seed in range(directions)] for depth in range(layers)]
    params, states = (
        tuple(each[0][n] if directions == 1 else tuple(e[n] for e in each) for each in every) for n in (0, 2)
    )
    return [cell if directions == 1 else (cell, cell)] * layers, params, every[0][0][1], states


def run(model, **inputs):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {name: np.asarray(value) for name, value in inputs.items()}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))


def by_layer(states, directions):
    """Our states as the model names them, ``[D, B, H]``."""
    return {
        f"{part}_l{depth}": np.stack([getattr(s, part) for s in (state if directions == 2 else (state,))])
        for depth, state in enumerate(states)
        for part in ("h", "c")
        if hasattr(state[0] if directions == 2 else state, part)
    }


@pytest.mark.parametrize(("op", "layers", "directions"), [("LSTM", 2, 2), ("GRU", 2, 2), ("RNN", 1, 2), ("GRU", 3, 1)])
def test_computed_as_here(op, layers, directions):
    cells, params, xs, states = stack(op, layers, directions)
    plain, whole = compiled(
        lambda *args: (unroll_stack(cells, *args[:2]), unroll_stack(cells, *args, lengths=LENGTHS)), params, xs, states
    )
    for (finals, ys), got in [
        (plain, run(convert.to_onnx(params), xs=xs)),
        (
            whole,
            run(
                convert.to_onnx(params, lengths=True, initial_state=True), xs=xs, lengths=LENGTHS,
                **{f"initial_{name}": s for name, s in by_layer(states, directions).items()},
            ),
        ),
    ]:  # fmt: skip
        same(got, {"ys": ys, **{f"final_{name}": s for name, s in by_layer(finals, directions).items()}}, 1e-5)


@pytest.mark.parametrize("op", CELLS)
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("dtype", cases(["float16", "float32"], slow=["float16"]))
def test_read_as_written(op, layers, directions, dtype):
    _, params, *_ = stack(op, layers, directions, jnp.dtype(dtype))
    model = convert.to_onnx(params, lengths=True)
    again = convert.from_onnx(model)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), again, params)))
    names = [node.name for node in model.graph.node if node.op_type == op]
    assert jax.tree.structure(convert.from_onnx(model, nodes=names[:1])) == jax.tree.structure(params[:1])


def test_float64_and_a_file(x64, tmp_path):
    _, params, *_ = stack("LSTM", 1, 1, jnp.float64)  # which ONNX has, and its Runtime does not compute
    onnx.save(convert.to_onnx(params), tmp_path / "lstm.onnx")
    again = convert.from_onnx(onnx.load(tmp_path / "lstm.onnx"))
    same(again, params, 0)
    assert again[0].w_x.dtype == jnp.float64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("op", "options"), [("LSTM", {}), ("GRU", {"bidirectional": True}), ("RNN", {"bias": False})])
def test_what_pytorch_exports(op, options, tmp_path):
    torch = pytest.importorskip("torch")
    module = getattr(torch.nn, op)(I, H, 2, **options)
    torch.onnx.export(module, (torch.zeros(T, B, I),), tmp_path / "module.onnx", dynamo=False)
    got = convert.from_onnx(onnx.load(tmp_path / "module.onnx"))
    same(got, convert.from_torch(module.state_dict()), 1e-7)


# What cannot be read.


def changed(op="LSTM", layers=1, *, forget=(), **attributes):
    """A model, the first layer of which has other attributes."""
    model = convert.to_onnx(stack(op, layers, 1)[1])
    node = model.graph.node[0]
    for name in (*attributes, *forget):
        for found in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(found)
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
    return model


def with_input(place, array):
    """A model whose first node has one more input, stored."""
    model = convert.to_onnx(stack("LSTM", 1, 1)[1])
    node = model.graph.node[0]
    node.input.extend([""] * (place + 1 - len(node.input)))
    node.input[place] = "more"
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, "more"))
    return model


def computed():
    model = convert.to_onnx(stack("RNN", 1, 1)[1])
    model.graph.node.insert(0, onnx.helper.make_node("Neg", ["W_l0"], ["other"]))
    model.graph.node[1].input[1] = "other"
    return model


def apart():
    """Two layers, with something other than a shape between them."""
    model = convert.to_onnx(stack("RNN", 2, 1)[1])
    model.graph.node.insert(2, onnx.helper.make_node("Neg", ["ys_l0"], ["other"]))
    model.graph.node[3].input[0] = "other"
    return model


def params_of(build, inputs=I):
    return problem(build, (T, B, inputs), dtype=jnp.float32)[0]


def narrow():
    return convert.to_onnx((jax.tree.map(lambda a: a.astype(jnp.bfloat16), params_of(lstm(H))),))


BAD = {
    "a path": (TypeError, "model is of type str; wanted an onnx.ModelProto: onnx.load reads a file", "lstm.onnx"),
    "activations": (ValueError, r"LSTM_l0 has activations = \['Relu', .*; wanted", lambda: changed(activations=["Relu", "Tanh", "Tanh"])),
    "clip": (ValueError, "LSTM_l0 has clip = 3.0; wanted none", lambda: changed(clip=3.0)),
    "input_forget": (ValueError, "LSTM_l0 has input_forget = 1; wanted none", lambda: changed(input_forget=1)),
    "reverse": (ValueError, "LSTM_l0 has direction = 'reverse'", lambda: changed(direction="reverse")),
    "reset before": (ValueError, "GRU_l0 has linear_before_reset = 0; wanted 1: its reset gate acts", lambda: changed("GRU", forget=["linear_before_reset"])),
    "peepholes": (ValueError, "LSTM_l0 has peepholes, P; wanted none", lambda: with_input(7, np.ones((1, 3 * H), np.float32))),
    "a stored state": (ValueError, "LSTM_l0 has a stored initial_h that is not zero", lambda: with_input(5, np.ones((1, 1, H), np.float32))),
    "shapes": (ValueError, r"LSTM_l0.B has shape \(1, 7\); wanted \(1, 32\)", lambda: with_input(3, np.ones((1, 7), np.float32))),
    "another kind": (ValueError, "LSTM_l0.R has 8 gate units for 4 hidden units; wanted", lambda: with_input(2, np.ones((1, 8, 4), np.float32))),
    "a GRU's weights": (ValueError, "LSTM_l0.R has 12 gate units for 4 hidden units; wanted those of an LSTM", lambda: with_input(2, np.ones((1, 12, 4), np.float32))),
    "integers": (TypeError, "LSTM_l0.R has dtype int64; wanted a floating dtype", lambda: with_input(2, np.ones((1, 16, 4), np.int64))),
    "computed weights": (ValueError, "RNN_l0.W is computed by the model; wanted it stored there", computed),
    "layers apart": (ValueError, "RNN_l1 does not read what RNN_l0 puts out; wanted layers one above another", apart),
    "none": (ValueError, "model has no node of type LSTM, GRU, RNN", onnx.ModelProto),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said(name):
    error, message, make = BAD[name]
    model = make() if callable(make) else make
    with pytest.raises(error, match=message):
        convert.from_onnx(model)


def test_settings_that_leave_the_weights_alone():
    want = convert.from_onnx(changed())
    for attributes in ({"layout": 1}, {"activations": ["sigmoid", "tanh", "TANH"]}, {"input_forget": 0}):
        same(convert.from_onnx(changed(**attributes)), want, 0)
    same(convert.from_onnx(with_input(5, np.zeros((1, 1, H), np.float32))), want, 0)


def test_nodes_that_are_not_there():
    model = changed(layers=2)
    with pytest.raises(ValueError, match="nodes names 'x'; the model has, of type LSTM, GRU and RNN, 'LSTM_l0', 'LSTM"):
        convert.from_onnx(model, nodes=["x"])
    with pytest.raises(ValueError, match="nodes is empty"):
        convert.from_onnx(model, nodes=[])
    with pytest.raises(ValueError, match="LSTM_l0 does not read what LSTM_l1 puts out"):
        convert.from_onnx(model, nodes=["LSTM_l1", "LSTM_l0"])


def test_what_cannot_be_written_is_said():
    with pytest.raises(TypeError, match="ProjectedLSTMParams; wanted LSTMParams or GRUParams or RNNParams"):
        convert.to_onnx((params_of(projected_lstm(H, 2)),))
    with pytest.raises(ValueError, match=r"params\[1\].w_x has shape \(3, 4\); wanted \(4, 4\)"):
        convert.to_onnx((params_of(rnn(H)),) * 2)
    with pytest.raises(TypeError, match="dtype bfloat16; wanted float16, float32 or float64"):
        narrow()


def test_without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"lstmjax\[convert\]"):
        convert.to_onnx((params_of(rnn(H)),))
