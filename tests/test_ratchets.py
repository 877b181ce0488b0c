"""What would make the library slow or large, counted: a regression turns red without a clock.

The numbers are upper bounds. A change that lowers one lowers it here; one that needs more says why.
"""

import collections
import contextlib
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

import lstmjax
from lstmjax import gradients
from lstmjax.cells.build import draw_params
from tests.cells import CELLS, problem

# As users compile, whatever the tests' own flags.
AS_USERS_COMPILE = {"xla_backend_optimization_level": 3}


@contextlib.contextmanager
def counted():
    """How often JAX traces a function to a program, and compiles one, by the last word of its event's name."""
    counts = collections.Counter()

    def listen(event, duration, **kwargs):
        counts[event.rsplit("/", 1)[-1]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


COMPILED = "backend_compile_duration"
CELL = CELLS["lstm"]
ARGS = problem(CELL, (4, 2, 3), dtype=jnp.float32)
LAYERS = [CELL, (CELL, CELL)]
KEY = jax.random.key(0)
LENGTHS = np.array([4, 2])


def last(states):
    return states.h[-1].sum()


def both_layers():
    return tuple(jax.tree.map(jnp.ones_like, lstmjax.init_stack(LAYERS, KEY, 3)))


CALLS = {
    "init": lambda: CELL.init(KEY, 3),
    "init_stack": lambda: lstmjax.init_stack(LAYERS, KEY, 3),
    "step": lambda: CELL.step(ARGS[0], ARGS[2], ARGS[1][0]),
    "unroll": lambda: lstmjax.unroll(CELL, *ARGS, lengths=LENGTHS),
    "unroll, no state": lambda: lstmjax.unroll(CELL, *ARGS[:2]),
    "unroll, a gradient of it": lambda: jax.grad(lambda p: lstmjax.unroll(CELL, p, *ARGS[1:])[1].sum())(ARGS[0]),
    "state_history": lambda: lstmjax.state_history(CELL, *ARGS, include_initial=True),
    "unroll_stack": lambda: lstmjax.unroll_stack(LAYERS, both_layers(), ARGS[1], dropout_rate=0.5, dropout_key=KEY),
    "adjoint_norms": lambda: gradients.adjoint_norms(CELL, ARGS[0], ARGS[1], last, ARGS[2]),
    "jacobian_norms": lambda: gradients.jacobian_norms(CELL, *ARGS),
    "cell_highway": lambda: gradients.cell_highway(CELL, *ARGS),
    "lyapunov_spectrum": lambda: gradients.lyapunov_spectrum(CELL, *ARGS),
    "decay_fit": lambda: gradients.decay_fit(np.arange(4.0), np.arange(4.0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name):
    with jax.numpy_dtype_promotion("standard"):
        CALLS[name]()
        with counted() as counts:
            CALLS[name]()
    assert counts[COMPILED] == 0


def test_cells_that_were_built_alike_share_a_program():
    lstmjax.unroll(lstmjax.lstm(5), *ARGS)
    with counted() as counts:
        lstmjax.unroll(lstmjax.lstm(5), *ARGS)
    assert counts[COMPILED] == 0


@pytest.mark.parametrize("cell", [lstmjax.lstm(7), lstmjax.gru(7), lstmjax.rnn(7)], ids=["lstm", "gru", "rnn"])
def test_parameters_are_drawn_by_one_program(cell):
    with counted() as counts:
        drawn = cell.init(KEY, 3)
    assert counts[COMPILED] <= 1
    # And are the numbers that its initialisers draw one by one, as a stranger's are.
    parts = [(name, lambda *args, draw=draw: draw(*args), shape) for name, draw, shape in cell.init.keywords["parts"]]
    one_by_one = draw_params(KEY, 3, kind=cell.init.keywords["kind"], parts=tuple(parts))
    chex.assert_trees_all_equal(drawn, one_by_one)


def test_a_strangers_initialiser_is_called_for_every_draw():
    drawn = iter(range(9))
    cell = lstmjax.rnn(2, b_init=lambda key, shape, dtype: jnp.full(shape, next(drawn), dtype))
    assert [float(cell.init(KEY, 3).b[0]) for _ in range(3)] == [0, 1, 2]


def counting(times):
    """A cell that counts how often its step is called, which is how often it is traced."""

    def step(p, s, x):
        times.append(1)
        return s + p, s

    return lstmjax.Cell(
        init=lambda key, size, dtype=jnp.float32: jnp.ones((), dtype),
        initial_state=lambda batch=(), dtype=jnp.float32: jnp.zeros(batch, dtype),
        step=step,
    )


def test_traces_of_a_step():
    times, xs = [], np.ones((4, 2, 3), np.float32)
    cell = counting(times)
    calls = []
    for _ in range(3):
        before = len(times)
        lstmjax.unroll(cell, np.float32(1), xs)
        calls.append(len(times) - before)
    # Once to check what it hands on and once to compile; and from then on only the check.
    assert calls[0] <= 2
    assert max(calls[1:]) <= 1
    times.clear()
    jax.jit(jax.grad(lambda p: lstmjax.unroll(cell, p, xs)[1].sum()))(np.float32(1))
    assert len(times) <= 2


def operations_in_loops(function, *args):
    """The operations in the body of each loop of the optimised program, without those that only name things."""
    text = jax.jit(function).lower(*args).compile(compiler_options=AS_USERS_COMPILE).as_text()
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    found = []
    for computation in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \()", text):
        name, *lines = computation.splitlines()
        if re.sub(r"^(ENTRY )?%?", "", name).split(" ")[0] in bodies:
            operations = re.findall(r"^ +(?:ROOT )?%?[\w.\-]+ = .*? ([\w\-]+)\(", "\n".join(lines), re.MULTILINE)
            names = {"parameter", "constant", "tuple", "get-tuple-element"}
            found.append(sum(operation not in names for operation in operations))
    return sorted(found)


# (cell, pass): operations in each loop, the smallest first.
OPERATIONS = {
    ("lstm", "forward"): [7],
    ("gru", "forward"): [11],
    ("rnn", "forward"): [6],
    ("lstm", "training"): [11, 20],
    ("gru", "training"): [12, 24],
    ("rnn", "training"): [5, 8],
}


@pytest.mark.skipif(
    jax.default_backend() != "cpu" or not jaxlib.__version__.startswith("0.10."),
    reason="the numbers are those of one compiler, jaxlib 0.10's for the CPU",
)
@pytest.mark.parametrize(("name", "which"), OPERATIONS)
def test_operations_in_loops(name, which):
    cell = getattr(lstmjax, name)(64)
    params, xs, _ = problem(cell, (50, 8, 16), dtype=jnp.float32)

    def forward(params, xs):
        return lstmjax.unroll(cell, params, xs, implementation="fused")[1]

    run = forward if which == "forward" else jax.grad(lambda *args: forward(*args).sum())
    found, most = operations_in_loops(run, params, xs), OPERATIONS[name, which]
    assert len(found) == len(most)
    assert all(n <= bound for n, bound in zip(found, most, strict=True)), found


def test_importing_the_library_brings_nothing_else_along():
    code = (
        "import sys, jax, jaxtyping; before = set(sys.modules); import lstmjax;"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before}, *{'jax.experimental.pallas'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(out.stdout.split()) <= {"lstmjax", "jax"}
