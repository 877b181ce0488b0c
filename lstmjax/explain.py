"""One unit of an LSTM run with numbers: every intermediate by name, in the slides' words and in the field's.

The slides are those of a lecture that runs one unit by hand: from long-term memory 2, short-term memory 1 and input 1
to the memories after one step, and then over the share values of two companies.

A gate's pre-activation is the sum of three parts, `x W_x`, `h W_h` and b, each one number for the unit; what follows is
the arithmetic of :mod:`lstmjax.gates`, which computes every number here::

    the slides' words                        the field's term
    % of long-term memory to remember        forget gate     f = σ(z_f)
    % of potential memory to remember        input gate      i = σ(z_i)
    potential long-term memory               candidate       g = tanh(z_g)
    new long-term memory                     cell state      c' = f c + i g
    potential short-term memory                              tanh(c')
    % of short-term memory to remember       output gate     o = σ(z_o)
    new short-term memory                    hidden state    h' = o tanh(c')

As a program, on the slides' unit::

    lstmjax explain --c 2 --h 1 --x 1 --picture unit.png
    lstmjax explain --sequence A B --picture companies.png

Source: StatQuest, "Long Short-Term Memory, clearly explained", for the words; :mod:`lstmjax.gates` for the equations.
"""

import itertools
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lstmjax.cells.base import working_dtype
from lstmjax.cells.build import check_step
from lstmjax.cells.lstm import LSTMParams, LSTMState, lstm
from lstmjax.checks import whole_number
from lstmjax.gates import (
    candidate,
    emit_hidden_state,
    forget_gate,
    input_gate,
    output_gate,
    pre_activation,
    split_gates,
    update_cell_state,
)
from lstmjax.numerals import aligned, short, signed
from lstmjax.unroll import state_history

Row = tuple[str, str, str, str]
_WIDTHS = (34, 18, 32, 10)


class Gate(NamedTuple):
    """One gate of one unit: `z = x W_x + h W_h + b`, and its activation.

    Attributes:
        w_x: ``[I]`` the unit's weights for the input.
        w_h: ``[H]`` its weights for the short-term memories of all units.
        b: its bias.
        by_x: `x · W_x`, what the input contributes.
        by_h: `h · W_h`, what the short-term memory contributes.
        z: the pre-activation `by_x + by_h + b`; the slides' x-axis coordinate.
        value: `σ(z)`, or `tanh(z)` for the candidate; the slides' y-axis coordinate.
    """

    w_x: Array
    w_h: Array
    b: Array
    by_x: Array
    by_h: Array
    z: Array
    value: Array


class Explanation(NamedTuple):
    """Every intermediate of one unit over one step; over a sequence, with a leading time axis on each.

    Attributes:
        unit: which unit of the layer.
        x: ``[I]`` input.
        c: the unit's long-term memory before the step.
        h: ``[H]`` the short-term memories of all units before the step: a gate reads every one.
        forget: how much of the long-term memory to remember.
        input: how much of the candidate to remember.
        candidate: the potential long-term memory.
        output: how much of the potential short-term memory to remember.
        kept: `f c`, the long-term memory remembered.
        added: `i g`, what is added to it.
        new_c: `c' = f c + i g`, the new long-term memory.
        tanh_c: `tanh(c')`, the potential short-term memory.
        new_h: `h' = o tanh(c')`, the new short-term memory and the unit's output.
    """

    unit: Array
    x: Array
    c: Array
    h: Array
    forget: Gate
    input: Gate
    candidate: Gate
    output: Gate
    kept: Array
    added: Array
    new_c: Array
    tanh_c: Array
    new_h: Array


def explain_step(params: Any, state: Any, x: Any, *, unit: int = 0) -> Explanation:
    """Every intermediate of one unit over one step of :func:`~lstmjax.lstm_step`.

    Args:
        params: an LSTM's weights, of any width.
        state: its state, c and h each ``[H]``.
        x: ``[I]`` input, floating.
        unit: which of the H units, counted from 0.

    Returns:
        An :class:`Explanation`, in the dtype the step computes in. Its ``new_c`` and ``new_h`` are the step's, to
        rounding. :func:`format_explanation` makes a table of it, :func:`lstmjax.drawing.unit_diagram` the picture.

    Raises:
        TypeError: params or state are not an LSTM's, or x is not floating.
        ValueError: x has batch axes, unit is no whole number from 0 to `H − 1`, or shapes disagree.

    Source: :mod:`lstmjax.gates`, where each equation stands.

    >>> from lstmjax.tasks.companies import slide_unit
    >>> state = LSTMState(c=jnp.array([2.0]), h=jnp.array([1.0]))
    >>> step = explain_step(slide_unit(), state, jnp.array([1.0]))
    >>> for number in (step.forget.z, step.forget.value, step.kept, step.added, step.new_c, step.new_h):
    ...     print(f"{number:.4f}", end="  ")
    5.9500  0.9974  1.9948  0.9528  2.9476  0.9862
    """
    params, x = _check_lstm(params), jnp.asarray(x)
    if x.ndim != 1:
        raise ValueError(f"x has shape {x.shape}; wanted [I], one input without batch axes: jax.vmap over them")
    state = _check_state(state)
    check_step(params, state, x, kind=LSTMParams, gates=4)
    if state.c.shape != state.h.shape:
        raise ValueError(f"state.c has shape {state.c.shape}; wanted {state.h.shape}, as state.h")
    return _explain(params, state, x, _check_unit(unit, params))


def explain_sequence(params: Any, xs: Any, state: Any = None, *, unit: int = 0) -> Explanation:
    """Every intermediate of one unit at every step of a sequence.

    Args:
        params: an LSTM's weights, of any width.
        xs: ``[T, I]`` inputs, floating.
        state: the state before the first step, c and h each ``[H]``; zeros unless given.
        unit: which of the H units.

    Returns:
        An :class:`Explanation` whose every leaf has a leading time axis, T long, weights included;
        ``jax.tree.map(lambda a: a[t], explained)`` is that of step t.

    Raises:
        TypeError: as :func:`explain_step`.
        ValueError: as :func:`explain_step`, and as :func:`~lstmjax.unroll`.

    >>> from lstmjax.tasks.companies import company_values, slide_unit
    >>> days = explain_sequence(slide_unit(), company_values("B"))
    >>> [f"{c:.2f}" for c in days.new_c], [f"{h:.2f}" for h in days.new_h]
    (['0.50', '0.91', '1.48', '2.41'], ['0.28', '0.61', '0.87', '0.97'])
    """
    params, xs = _check_lstm(params), jnp.asarray(xs)
    if xs.ndim != 2:
        raise ValueError(f"xs has shape {xs.shape}; wanted [T, I], one sequence without batch axes: jax.vmap over them")
    picked = _check_unit(unit, params)
    state = None if state is None else _check_state(state)
    cell = lstm(params.w_h.shape[0])
    states = state_history(cell, params, xs, state, include_initial=True, implementation="scan")
    before = jax.tree.map(lambda s: s[:-1], states)
    return _explain_each(params, before, xs, picked)


def format_explanation(explanation: Explanation) -> str:
    """One step as a table within 100 columns: the slides' words, the field's term, in numbers, value.

    Where there are several inputs or units, a gate's sums over them have lines of their own. Values are given to six
    decimals, the numbers that make them to four: a number that reads 1 is 1, one that reads 1.0000 is nearly so. See
    :func:`lstmjax.drawing.unit_diagram` for the picture.

    Args:
        explanation: of one step and one unit, as :func:`explain_step` makes it: its ``unit=`` says which.

    Returns:
        The table.

    Raises:
        ValueError: the explanation is of a sequence.

    >>> from lstmjax.tasks.companies import slide_unit
    >>> state = LSTMState(c=jnp.array([2.0]), h=jnp.array([1.0]))
    >>> print(format_explanation(explain_step(slide_unit(), state, jnp.array([1.0]))))
    the slides' words ...
    % of long-term memory to remember   forget gate f       σ(5.95)                             0.997401
    ...
    """
    if jnp.ndim(explanation.c):
        raise ValueError(f"explanation is of {len(explanation.c)} steps; wanted one: format_sequence takes several")
    lines = [*_line("the slides' words", "the field's term", "in numbers", "value"), "-" * (sum(_WIDTHS) + 6)]
    for n, group in enumerate(_rows(jax.tree.map(np.asarray, explanation))):
        lines += [""] * (n > 0)
        for row in group:
            lines += _line(*row)
    if len(explanation.h) > 1:
        lines = [f"Unit {explanation.unit} of {len(explanation.h)}, counted from 0", "", *lines]
    return "\n".join(lines)


def format_sequence(explanation: Explanation, *, step: str = "step") -> str:
    """A sequence as a table: a row a step, counted from 1, after a row for the memories it starts from.

    Args:
        explanation: of a sequence, as :func:`explain_sequence` makes it.
        step: what a step is called: a day, for the companies.

    Returns:
        The table. A column for x is there where the input is one number.

    Raises:
        ValueError: the explanation is of one step.

    >>> from lstmjax.tasks.companies import company_values, slide_unit
    >>> print(format_sequence(explain_sequence(slide_unit(), company_values("A")), step="day"))
    day             x    forget %     input %   candidate    output %   long-term   short-term
    ------------------------------------------------------------------------------------------
    start                                                                0.000000     0.000000
    1        0.000000        83.5        65.0   -0.309507        64.3   -0.201247    -0.127755
    2        0.500000        89.0        76.7   -0.030126        48.4   -0.202193    -0.096522
    3        0.250000        85.4        69.8   -0.217562        53.0   -0.324621    -0.166218
    4        1.000000        94.3        87.4    0.367589        41.9    0.0152...    0.0063...
    """
    if not jnp.ndim(explanation.c):
        raise ValueError("explanation is of one step; wanted a sequence: format_explanation takes one step")
    e, numeric = jax.tree.map(np.asarray, explanation), explanation.x.shape[1] == 1
    first = max(len(step), len("start"), len(str(len(e.c))))

    def line(name: str, *cells: str) -> str:
        widths = (10,) * (len(cells) - 1) + (11,)
        return "  ".join([name.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))]).rstrip()

    x = ["x"] if numeric else []
    head = line(step, *x, "forget %", "input %", "candidate", "output %", "long-term", "short-term")
    lines = [head, "-" * len(head)]
    if len(e.c):
        own_h = e.h[0, e.unit[0]]
        lines.append(line("start", *("" for _ in x), "", "", "", "", aligned(e.c[0]), aligned(own_h)))
    for t in range(len(e.c)):
        f, i, o = (f"{100 * float(gate.value[t]):.1f}" for gate in (e.forget, e.input, e.output))
        inputs = [aligned(e.x[t, 0])] if numeric else []
        memories = aligned(e.new_c[t]), aligned(e.new_h[t])
        lines.append(line(str(t + 1), *inputs, f, i, aligned(e.candidate.value[t]), o, *memories))
    return "\n".join(lines)


@jax.jit
def _explain(params: LSTMParams, state: LSTMState, x: Array, unit: Array) -> Explanation:
    """The arithmetic is that of the whole layer, as a step does it; the unit is picked out of every result."""
    w_x, w_h, b = params
    no_x, no_h, no_b = jnp.zeros_like(x), jnp.zeros_like(state.h), jnp.zeros_like(b)
    by_x, by_h = pre_activation(w_x, w_h, no_b, x, no_h), pre_activation(w_x, w_h, no_b, no_x, state.h)
    z, c_before = (a.astype(working_dtype(state)) for a in (pre_activation(w_x, w_h, b, x, state.h), state.c))

    functions = (input_gate, forget_gate, candidate, output_gate)
    parts = zip(*(split_gates(a, 4) for a in (w_x, w_h, b, by_x, by_h, z)), strict=True)
    i, f, g, o = (Gate._make((*terms, function(terms[-1]))) for function, terms in zip(functions, parts, strict=True))
    new_c = update_cell_state(f.value, c_before, i.value, g.value)
    nothing, everything = jnp.zeros_like(new_c), jnp.ones_like(new_c)
    layer = {
        "c": state.c,
        "forget": f,
        "input": i,
        "candidate": g,
        "output": o,
        "kept": update_cell_state(f.value, c_before, nothing, nothing),
        "added": update_cell_state(nothing, nothing, i.value, g.value),
        "new_c": new_c.astype(state.c.dtype),
        "tanh_c": emit_hidden_state(everything, new_c),
        "new_h": emit_hidden_state(o.value, new_c).astype(state.h.dtype),
    }
    picked = jax.tree.map(lambda a: a[..., unit], layer)
    return Explanation(unit=unit, x=x, h=state.h, **picked)


_explain_each = jax.jit(jax.vmap(_explain, in_axes=(None, 0, 0, None)))


def _check_lstm(params: Any) -> LSTMParams:
    if not isinstance(params, LSTMParams):
        raise TypeError(f"params is a {type(params).__name__}; wanted LSTMParams: only the LSTM's unit is explained")
    return LSTMParams(*map(jnp.asarray, params))


def _check_state(state: Any) -> LSTMState:
    if not isinstance(state, LSTMState):
        raise TypeError(f"state is a {type(state).__name__}; wanted LSTMState(c, h), each [H]")
    return LSTMState(*map(jnp.asarray, state))


def _check_unit(unit: Any, params: LSTMParams) -> Array:
    hidden = params.w_h.shape[0]
    unit = whole_number("unit", unit, 0)
    if unit >= hidden:
        raise ValueError(f"unit is {unit}; wanted 0 to {hidden - 1}, for H = {hidden} hidden units")
    return jnp.array(unit, jnp.int32)


def _rows(e: Explanation) -> list[list[Row]]:
    """The rows of a step in three stages, as the slides take them, after what it starts from."""
    f, i, g, o = e.forget, e.input, e.candidate, e.output
    before = [
        ("long-term memory", "cell state c", "", aligned(e.c)),
        ("short-term memory", "hidden state h", "", aligned(e.h[0]) if len(e.h) == 1 else f"{len(e.h)} units"),
        ("input", "input x", "", aligned(e.x[0]) if len(e.x) == 1 else f"{len(e.x)} inputs"),
    ]
    forget = [
        *_gate_rows(e, f, "f", "sigmoid"),
        ("% of long-term memory to remember", "forget gate f", f"σ({short(f.z)})", aligned(f.value)),
        ("long-term memory remembered", "f c", _product(f.value, e.c), aligned(e.kept)),
    ]
    update = [
        *_gate_rows(e, i, "i", "sigmoid"),
        ("% of potential memory to remember", "input gate i", f"σ({short(i.z)})", aligned(i.value)),
        *_gate_rows(e, g, "g", "tanh"),
        ("potential long-term memory", "candidate g", f"tanh({short(g.z)})", aligned(g.value)),
        ("potential memory remembered", "i g", _product(i.value, g.value), aligned(e.added)),
        ("new long-term memory", "cell state c'", f"f c + i g = {_sum(e.kept, e.added)}", aligned(e.new_c)),
    ]
    emit = [
        *_gate_rows(e, o, "o", "sigmoid"),
        ("% of short-term memory to remember", "output gate o", f"σ({short(o.z)})", aligned(o.value)),
        ("potential short-term memory", "tanh(c')", f"tanh({short(e.new_c)})", aligned(e.tanh_c)),
        ("new short-term memory", "hidden state h'", f"o tanh(c') = {_product(o.value, e.tanh_c)}", aligned(e.new_h)),
    ]
    return [before, forget, update, emit]


def _gate_rows(e: Explanation, gate: Gate, name: str, function: str) -> list[Row]:
    """The pre-activation, and before it the sums that make it where they have too many terms to write out."""
    rows, terms = [], []
    for letter, values, weights, part in (("h", e.h, gate.w_h, gate.by_h), ("x", e.x, gate.w_x, gate.by_x)):
        if len(values) == 1:
            terms.append(f"{'+ ' if terms else ''}({_product(values[0], weights[0])})")
        else:
            of = "short-term memories" if letter == "h" else "inputs"
            rows.append((f"sum over {len(values)} {of}", f"{letter} · W_{letter}{name}", "", aligned(part)))
            terms.append(signed(short(part)) if terms else short(part))
    formula = f"{' '.join(terms)} {signed(short(gate.b))}"
    return [*rows, (f"x-axis coordinate of the {function}", f"pre-activation z_{name}", formula, aligned(gate.z))]


def _line(*row: str) -> list[str]:
    """A row of the table, on more lines where a cell is too wide."""
    cells = [textwrap.wrap(cell, width, break_long_words=False) for cell, width in zip(row, _WIDTHS, strict=True)]
    lines = []
    for parts in itertools.zip_longest(*cells, fillvalue=""):
        *left, value = (part.ljust(width) for part, width in zip(parts, _WIDTHS, strict=True))
        lines.append("  ".join([*left, value.strip().rjust(_WIDTHS[-1])]).rstrip())
    return lines


def _product(a: Any, b: Any) -> str:
    return f"{short(a)} × {short(b)}"


def _sum(a: Any, b: Any) -> str:
    return f"{short(a)} {signed(short(b))}"


if __name__ == "__main__":
    from lstmjax.program import main

    main(["explain", *sys.argv[1:]])
