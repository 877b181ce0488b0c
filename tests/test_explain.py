"""The unit explained: the slides' numbers by name, any unit of any cell, tables, drawings and the command line."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from matplotlib.transforms import Bbox

import lstmjax
from lstmjax import LSTMState, drawing
from lstmjax.explain import explain_sequence, explain_step, format_explanation, format_sequence
from lstmjax.program import explain as program
from lstmjax.tasks import companies

UNIT = json.loads((Path(__file__).parent / "data" / "unit.json").read_text())
EXAMPLE = UNIT["worked_example"]
lstm_step = jax.jit(lstmjax.lstm_step)  # compiled once, and not operation by operation
GATES = ("forget", "input", "candidate", "output")


def slide_step(c=2.0, h=1.0, x=1.0, dtype=jnp.float64):
    params = companies.slide_unit(dtype=dtype)
    return explain_step(params, LSTMState(jnp.array([c], dtype), jnp.array([h], dtype)), jnp.array([x], dtype))


def normal(seed, *shape):
    # By numpy, which compiles nothing.
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def wide_step(unit=2, inputs=3, hidden=5):
    widths = ((inputs, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,))
    params = lstmjax.LSTMParams(*(normal(n, *shape) / hidden**0.5 for n, shape in enumerate(widths)))
    state, x = LSTMState(normal(3, hidden), normal(4, hidden)), normal(5, inputs)
    return params, state, x, explain_step(params, state, x, unit=unit)


def test_inputs_are_the_reference():
    for name, gate in UNIT["weights_2dp"].items():
        assert companies.SLIDE_WEIGHTS[name]._asdict() == gate
    protocol = UNIT["training_protocol"]
    for name, gate in protocol["initial_weights"].items():
        assert companies.INITIAL_WEIGHTS[name]._asdict() == gate | {"b": protocol["biases"]}
    for name, company in companies.COMPANIES.items():
        assert list(company.days) == UNIT["companies"][name]["days_1_to_4"]
        assert company.target == UNIT["companies"][name]["day_5"]
    t = companies.TRAINING
    rate, eps = (f"{v:.0e}".replace("e-0", "e-") for v in (t.learning_rate, t.eps))
    assert protocol["optimiser"] == f"Adam, learning rate {rate}, betas {t.b1} / {t.b2}, eps {eps}"
    assert protocol["order"].startswith(" then ".join(t.order))
    assert f"epoch_{t.epochs}" in protocol["predictions"]


def test_worked_example(x64):
    step = slide_step(**EXAMPLE["state"], x=EXAMPLE["x"])
    for name in GATES:
        gate = getattr(step, name)
        np.testing.assert_allclose(gate.z, EXAMPLE["pre_activation"][name], atol=1e-6, rtol=0)
        np.testing.assert_allclose(gate.value, EXAMPLE["activation"][name], atol=1e-6, rtol=0)
        weights = UNIT["weights_2dp"][name]
        assert (gate.w_x.item(), gate.w_h.item(), gate.b.item()) == (weights["w_x"], weights["w_h"], weights["b"])
    np.testing.assert_allclose(step.new_c, EXAMPLE["new_state"]["c"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(step.new_h, EXAMPLE["new_state"]["h"], atol=1e-6, rtol=0)


def test_what_a_slide_rounds(x64):
    # The slides carry two digits on: 1.99 + 0.97 = 2.96 and 0.99 × 0.99 = 0.98. Exactly it is 2.95 and 0.99.
    step = slide_step()
    assert "2.96 and 0.98" in EXAMPLE["note"]
    assert (f"{step.new_c:.2f}", f"{step.new_h:.2f}") == ("2.95", "0.99")
    assert f"{step.kept:.2f}" == "1.99"
    assert f"{step.added:.2f}" == "0.95"


def test_a_large_negative_input(x64):
    step = slide_step(x=-10.0)
    wanted = EXAMPLE["x_minus_10"]
    np.testing.assert_allclose(step.candidate.z, wanted["candidate_pre_activation"], atol=1e-6, rtol=0)
    # Given to three decimals; the tanh is −0.9999999.
    np.testing.assert_allclose(step.candidate.value, wanted["candidate"], atol=5e-4, rtol=0)
    assert -1 < float(step.candidate.value) < -0.999999


@pytest.mark.parametrize("name", companies.COMPANIES)
def test_companies(name, x64):
    days = explain_sequence(companies.slide_unit(dtype=jnp.float64), companies.company_values(name, jnp.float64))
    # The reference gives four decimals.
    expected = UNIT["companies"]["prediction_2dp_weights_from_zero_state"][name]
    np.testing.assert_allclose(days.new_h[-1], expected, atol=5e-5, rtol=0)
    untrained = companies.slide_unit(companies.INITIAL_WEIGHTS, jnp.float64)
    days = explain_sequence(untrained, companies.company_values(name, jnp.float64))
    expected = UNIT["training_protocol"]["predictions"]["epoch_0"][name]
    np.testing.assert_allclose(days.new_h[-1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("inputs", "hidden"), [(3, 5), (4, 1)])
def test_every_unit_is_the_step(inputs, hidden):
    params, state, x, _ = wide_step(0, inputs, hidden)
    new, y = lstm_step(params, state, x)
    np.testing.assert_array_equal(y, new.h)
    w_x, w_h = np.asarray(params.w_x), np.asarray(params.w_h)
    x_parts, h_parts = np.asarray(x) @ w_x, np.asarray(state.h) @ w_h
    for unit in range(hidden):
        e = jax.tree.map(np.asarray, explain_step(params, state, x, unit=unit))
        np.testing.assert_allclose([e.new_c, e.new_h], np.stack(new)[:, unit], rtol=1e-6)
        assert (e.unit, e.c) == (unit, state.c[unit])
        for n, name in enumerate(("input", "forget", "candidate", "output")):
            gate = getattr(e, name)
            column = n * hidden + unit
            np.testing.assert_array_equal(gate.w_x, w_x[:, column])
            np.testing.assert_array_equal(gate.w_h, w_h[:, column])
            np.testing.assert_allclose(gate.by_x, x_parts[column], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(gate.by_h, h_parts[column], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(gate.by_x + gate.by_h + gate.b, gate.z, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(e.kept, e.forget.value * e.c, rtol=1e-6)
        np.testing.assert_allclose(e.added, e.input.value * e.candidate.value, rtol=1e-6)
        np.testing.assert_allclose(e.kept + e.added, e.new_c, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(e.output.value * e.tanh_c, e.new_h, rtol=1e-6)


def test_state_keeps_its_dtype():
    params, state, x, _ = wide_step()
    params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a).astype(jnp.bfloat16)), params)
    new, _ = lstm_step(params, state, x)
    e = explain_step(params, state, x, unit=4)
    # Weights in bfloat16, sums in float32.
    np.testing.assert_allclose([e.new_c, e.new_h], np.stack(new)[:, 4], rtol=1e-6)
    assert e.new_c.dtype == e.new_h.dtype == e.forget.by_x.dtype == jnp.float32
    assert e.forget.w_x.dtype == jnp.bfloat16


def test_under_jit_and_vmap():
    params, state, x, e = wide_step()
    jitted = jax.jit(lambda *a: explain_step(*a, unit=2))(params, state, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jitted, e)
    many = jax.jit(jax.vmap(lambda x: explain_step(params, state, x, unit=2)))(normal(6, 7, 3))
    assert (many.new_c.shape, many.forget.w_x.shape) == ((7,), (7, 3))


@pytest.mark.parametrize("start", [False, True])
def test_sequence_is_its_steps(start):
    params, state, _, _ = wide_step()
    xs = np.asarray(normal(6, 7, 3))
    e = explain_sequence(params, xs, state if start else None, unit=3)
    current = state if start else LSTMState(jnp.zeros(5), jnp.zeros(5))
    for t, x in enumerate(map(jnp.asarray, xs)):
        step = explain_step(params, current, x, unit=3)
        at_t = jax.tree.map(lambda a, t=t: np.asarray(a)[t], e)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), at_t, step)
        current, _ = lstm_step(params, current, x)
    assert explain_sequence(params, xs[:0]).new_c.shape == (0,)


WORDS = {
    "% of long-term memory to remember": ("forget gate f", "0.997401"),
    "% of potential memory to remember": ("input gate i", "0.986211"),
    "potential long-term memory": ("candidate g", "0.966087"),
    "% of short-term memory to remember": ("output gate o", "0.991674"),
    "new long-term memory": ("cell state c'", "2.947567"),
    "new short-term memory": ("hidden state h'", "0.986229"),
}


def test_table(x64):
    table = format_explanation(slide_step())
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    for words, (term, value) in WORDS.items():
        (line,) = (row for row in lines if row.startswith(words + "  "))
        assert term in line
        assert line.endswith(value)
    for number in ("5.95", "4.27", "2.03", "4.78"):
        assert f"({number})" in table
    assert "(1 × 2.7) + (1 × 1.63) + 1.62" in table
    assert "(1 × 1.41) + (1 × 0.94) - 0.32" in table


def test_table_of_a_wide_net():
    table = format_explanation(wide_step()[-1])
    assert table.startswith("Unit 2 of 5, counted from 0")
    assert "sum over 5 short-term memories" in table
    assert "x · W_xg" in table
    assert max(map(len, table.splitlines())) <= 100


def test_table_of_odd_numbers(x64):
    odd = format_explanation(slide_step(c=-12.3456, h=1e-7, x=-12345.678))
    for number in ("-12.345600", "1.000e-07", "-12345.68"):
        assert number in odd
    assert "-0.000000" not in odd
    assert max(map(len, odd.splitlines())) <= 100


def test_table_of_a_sequence():
    days = explain_sequence(companies.slide_unit(), companies.company_values("B"))
    head, _, start, *rows = format_sequence(days, step="day").splitlines()
    assert head.split() == [
        *("day", "x", "forget", "%", "input", "%", "candidate", "output", "%", "long-term", "short-term")
    ]
    assert start.split() == ["start", "0.000000", "0.000000"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4"]
    np.testing.assert_allclose([float(row.split()[-1]) for row in rows], days.new_h, atol=1e-6)
    np.testing.assert_allclose([float(row.split()[2]) for row in rows], 100 * days.forget.value, atol=0.051)
    params, *_ = wide_step()
    assert " x " not in format_sequence(explain_sequence(params, jnp.ones((2, 3))))
    assert len(format_sequence(explain_sequence(params, jnp.ones((0, 3)))).splitlines()) == 2


def overlaps(figure):
    """Pairs of texts that cover one another, and texts that leave the page, as a renderer measures them."""
    figure.set_dpi(110)
    figure.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for axis in figure.axes for t in axis.texts if t.get_text()]
    page = figure.bbox
    yield from (name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > page.x1 or box.y1 > page.y1)
    for n, (name, box) in enumerate(boxes):
        for other, other_box in boxes[n + 1 :]:
            common = Bbox.intersection(box, other_box)
            if common and common.width > 1 and common.height > 0.2 * min(box.height, other_box.height):
                yield name, other


@pytest.mark.parametrize(
    "numbers", [(2.0, 1.0, 1.0), (-12.3456, -1e-7, -10.0), (1e-7, -0.98765, -12345.678), (-1.23e-5, -1.23e-5, -1.23e-5)]
)
def test_unit_diagram(numbers):
    figure = drawing.unit_diagram(slide_step(*numbers, dtype=jnp.float32))
    assert figure.get_figwidth() == 7
    assert not list(overlaps(figure))
    if numbers == (2.0, 1.0, 1.0):
        texts = {t.get_text() for t in figure.axes[0].texts}
        values = {"f = 0.9974", "i = 0.9862", "g = 0.9661", "o = 0.9917", "sum = 5.95", "sum = 2.03", "h′ = 0.9862"}
        words = {"× 2.7", "× −0.19", "+ 1.62 bias", "forget gate", "% of long-term", "memory to remember", "c = 2"}
        assert values | words <= texts


def test_diagram_of_a_wide_net():
    figure = drawing.unit_diagram(wide_step(7, 1024, 128)[-1])
    assert not list(overlaps(figure))
    assert {"128 weights", "1024 weights", "h: 128 units"} <= {t.get_text() for t in figure.axes[0].texts}


def test_memory_diagram():
    days = {n: explain_sequence(companies.slide_unit(), companies.company_values(n)) for n in "AB"}
    figure = drawing.memory_diagram(days, step="day", targets={"B": 1.0})
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_array_equal(lines["long-term memory c"], [0.0, *days["B"].new_c])
    np.testing.assert_array_equal(lines["short-term memory h"], [0.0, *days["B"].new_h])
    assert figure.axes[1].get_title() == "B: ends at c = 2.409, h = 0.9694"
    assert figure.axes[3].get_xlabel() == "day"


def test_command_line(tmp_path):
    picture = tmp_path / "new" / "unit.png"
    command = [sys.executable, "-W", "error", "-m", "lstmjax.explain", "--c", "2", "--h", "1", "--x", "1"]
    out = subprocess.run([*command, "--picture", picture], capture_output=True, text=True, check=True)
    for words, (term, value) in WORDS.items():
        assert all(part in out.stdout for part in (words, term, value))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not out.stderr


def test_main_of_the_companies(tmp_path, capsys):
    program.main(program.Settings(sequence=("A", "B"), picture=tmp_path / "companies.svg"))
    printed = capsys.readouterr().out
    assert "Company A: day 5 predicted as 0.0064, wanted 0" in printed
    assert "Company B: day 5 predicted as 0.9694, wanted 1" in printed
    assert "<svg" in (tmp_path / "companies.svg").read_text()


def test_a_picture_for_a_paper(tmp_path, capsys):
    program.main(program.Settings(picture=tmp_path / "unit.pdf"))
    assert (tmp_path / "unit.pdf").read_bytes().startswith(b"%PDF")
    assert "Saved" in capsys.readouterr().out


def test_a_plain_install_is_enough():
    # Nothing but what pyproject.toml lists as dependencies.
    code = """
import sys
for name in ("matplotlib", "orbax", "grain", "pandas", "sklearn", "statsmodels"):
    sys.modules[name] = None
import runpy
sys.argv = ["explain", "--c", "2", "--h", "1", "--x", "1"]
runpy.run_module("lstmjax.explain", run_name="__main__")
"""
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "0.986229" in out.stdout


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for name in ("drawing", "plot"):
        monkeypatch.delattr(lstmjax, name, raising=False)
        monkeypatch.delitem(sys.modules, f"lstmjax.{name}", raising=False)
        with pytest.raises(ImportError, match=r"figures want matplotlib: pip install 'lstmjax\[plots\]'"):
            importlib.import_module(f"lstmjax.{name}")
    with pytest.raises(ImportError, match=r"--picture: figures want matplotlib: pip install 'lstmjax\[plots\]'"):
        program.main(program.Settings(picture=Path("unit.png")))


def test_importing_brings_no_matplotlib_along():
    code = "import sys, lstmjax.explain; print(*{m.split('.')[0] for m in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "tyro", "flax", "pandas"} & set(out.stdout.split())


params, state, x, _ = wide_step()
one, many = slide_step(dtype=jnp.float32), explain_sequence(params, jnp.ones((2, 3)))

gru = lstmjax.gru(5)
of_four = lstmjax.lstm(4).initial_state()

# name: (exception, what the message must hold, the call)
BAD_CALLS = {
    "unit too large": (ValueError, "unit is 5; wanted 0 to 4", lambda: explain_step(params, state, x, unit=5)),
    "unit below 0": (
        ValueError, "unit is -1; wanted a whole number of at least 0",
        lambda: explain_sequence(params, x[None], unit=-1),
    ),
    "fractional unit": (
        ValueError, "unit is 1.0; wanted a whole number", lambda: explain_step(params, state, x, unit=1.0)
    ),
    "batched x": (ValueError, r"x has shape \(1, 3\); wanted \[I\]", lambda: explain_step(params, state, x[None])),
    "batched xs": (
        ValueError, r"xs has shape \(1, 1, 3\); wanted \[T, I\]", lambda: explain_sequence(params, x[None, None])
    ),
    "features of x": (ValueError, r"x has shape \(2,\); wanted .* I = 3", lambda: explain_step(params, state, x[:2])),
    "integer x": (TypeError, "x has dtype int32", lambda: explain_step(params, state, jnp.ones(3, jnp.int32))),
    "GRU's params": (
        TypeError, "params is a GRUParams; wanted LSTM",
        lambda: explain_step(lstmjax.GRUParams(*params, params.b), state, x),
    ),
    "GRU's state": (TypeError, "state is a GRUState; wanted", lambda: explain_step(params, gru.initial_state(), x)),
    "state of another size": (ValueError, r"state.h has shape \(4,\)", lambda: explain_step(params, of_four, x)),
    "c of another size": (
        ValueError, r"state.c has shape \(4,\); wanted \(5,\)",
        lambda: explain_step(params, state._replace(c=of_four.c), x),
    ),
    "batched state": (
        ValueError, r"state.c has shape \(2, 5\); wanted \(5,\)",
        lambda: explain_sequence(params, x[None], lstmjax.lstm(5).initial_state((2,))),
    ),
    "table of a sequence": (ValueError, "explanation is of 2 steps; wanted one", lambda: format_explanation(many)),
    "sequence of a step": (ValueError, "explanation is of one step; wanted a sequence", lambda: format_sequence(one)),
    "diagram of a sequence": (ValueError, "explanation is of 2 steps; wanted one", lambda: drawing.unit_diagram(many)),
    "no memories": (ValueError, "explanations are empty", lambda: drawing.memory_diagram({})),
    "memories of a step": (ValueError, "explanation 'A' has no steps", lambda: drawing.memory_diagram({"A": one})),
    "company": (ValueError, "name is 'C'; wanted one of A, B", lambda: companies.company_values("C")),
    "whole numbers for weights": (TypeError, "dtype is int32; wanted a floating", lambda: slide_step(dtype=jnp.int32)),
    "whole numbers for values": (
        TypeError, "dtype is int8; wanted a floating", lambda: companies.company_values("A", "int8")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    exception, message, call = BAD_CALLS[name]
    with pytest.raises(exception, match=message):
        call()
