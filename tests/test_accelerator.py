"""The ways an accelerator runs the recurrence, run here: the same numbers as those of the CPU, in float64 to 1e-11."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import gradients
from lstmjax.recurrence import accelerator, linear, platforms
from lstmjax.recurrence.inputs import Sequence, prepare
from lstmjax.recurrence.parts import Parts, Plan, take_apart
from lstmjax.recurrence.scan import first_step, record_output, record_state
from tests.cells import cases, compiled, problem, same


@pytest.fixture(autouse=True, scope="module")
def _x64():
    with jax.enable_x64(True):
        yield


CELLS = {
    "lstm": lstmjax.lstm(5),
    "gru": lstmjax.gru(5),
    "rnn": lstmjax.rnn(5),
    "projected": lstmjax.projected_lstm(5, 2),
    "peephole": lstmjax.peephole_lstm(5),
    "slstm": lstmjax.slstm(4, heads=2),
    "star": lstmjax.star(5),
}
T, B, I = 9, 3, 2
MASK, RESETS = np.arange(T * B).reshape(T, B) % 5 != 1, np.arange(T * B).reshape(T, B) % 7 == 3
OPTIONS = {
    "mask and resets": {"mask": MASK, "resets": RESETS},
    "reverse": {"reverse": True, "lengths": np.array([9, 4, 0]), "resets": RESETS},
}


def both(cell, record, *, reverse=False, **data):
    """The forward recurrence, the linear one of it and its transpose, on the CPU and as an accelerator runs them."""
    params, xs, state = problem(cell, (T, B, I))
    along = [problem(cell, (T, B, I), seed)[:2] for seed in (1, 2)]

    def run(params, xs, state):
        data_of = Sequence(xs, state, *(jax.tree.map(jnp.asarray, data.get(n)) for n in ("lengths", "mask", "resets")))
        prepared = prepare(cell, params, data_of, reverse=reverse)
        start, fresh, timeline = prepared
        parts = take_apart(cell.step, params, start, first_step(xs))
        assert isinstance(parts, Parts)
        plan = Plan(parts, record, reverse, None)
        arguments = (params, start, fresh, timeline)
        for platform in (None, "cuda"):
            there = linear if platform is None else accelerator
            final, recorded, kept = there.linearised_forward(plan)(arguments, ())
            tangents = (along[0][0], jax.tree.map(jnp.cos, start), None if fresh is None else fresh, along[0][1])

            def tangent(tangents, platform=platform, kept=kept):
                return linear.linear(plan, on_accelerator=platform is not None)((arguments, kept), tangents)

            out = tangent(tangents)
            pulled = jax.linear_transpose(tangent, tangents)(jax.tree.map(jnp.sin, out))
            yield there.forward(plan)(arguments, ()), (final, recorded), kept, out, pulled

    return compiled(lambda *args: list(run(*args)), params, xs, state)


EVERY = list(itertools.product(CELLS, OPTIONS))
QUICK = [("lstm", "reverse"), ("gru", "mask and resets")]


@pytest.mark.parametrize("case", cases(EVERY, slow=[case for case in EVERY if case not in QUICK]), ids=str)
def test_the_same_numbers(case):
    name, options = case
    cell = CELLS[name]
    record = record_state if options == "reverse" else record_output
    (forward, *others), (forward_there, *others_there) = both(cell, record, **OPTIONS[options])
    same(forward_there, forward, 1e-11)
    same(forward_there, others_there[0], 1e-11)
    same(others_there, others, 1e-11)


def lowered_for(platforms, function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad, lambda f: jax.grad(jax.checkpoint(f)), jax.hessian])
def test_a_program_is_of_the_platform_it_is_lowered_for(transform):
    # On an accelerator the product with the inputs, [T·B, I] by [I, 4H], is outside the loop.
    cell = CELLS["lstm"]
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    loss = transform(lambda xs: jnp.sin(lstmjax.unroll(cell, params, xs, implementation="fused")[1]).sum())
    texts = {platform: lowered_for((platform,), loss, xs) for platform in ("cpu", "cuda", "tpu")}
    hoisted = {platform: f"tensor<{T}x{B}x{I}xf32>, tensor<{I}x20xf32>" in text for platform, text in texts.items()}
    assert hoisted == {"cpu": False, "cuda": transform is not jax.hessian, "tpu": transform is not jax.hessian}


def test_batched_and_transposed_the_ways_stay_apart():
    def ways(platform):
        return lambda fixed, moving: moving * fixed if platform is None else fixed * moving

    def run(x):
        return platforms.by_platform(ways, jnp.arange(3.0), x)

    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(jax.vmap(run)(x), jnp.arange(3.0) * x)
    np.testing.assert_array_equal(jax.linear_transpose(jax.vmap(run), x)(x)[0], jnp.arange(3.0) * x)
    np.testing.assert_array_equal(jax.jvp(jax.vmap(run), (x,), (x,))[1], jnp.arange(3.0) * x)
    with jax.disable_jit():
        np.testing.assert_array_equal(run(x[0]), jnp.arange(3.0))


def test_exported_for_several_platforms_at_once():
    cell = CELLS["lstm"]
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    gradient = jax.jit(jax.grad(lambda p, xs: lstmjax.unroll(cell, p, xs)[1].sum()))
    exported = jax.export.export(gradient, platforms=("cpu", "cuda", "tpu"))(params, xs)
    same(jax.jit(exported.call)(params, xs), gradient(params, xs), 1e-6)


def log_norms(cell, params, xs):
    return gradients.adjoint_norms(cell, params, xs, lambda states: (states.h[-1] ** 2).sum())


@pytest.mark.parametrize(
    "instrument",
    [
        log_norms,
        gradients.jacobian_norms,
        gradients.cell_highway,
        gradients.lyapunov_spectrum,
        gradients.gate_values,
        lambda *args: gradients.per_step_param_grads(*args, lambda states: states.h.sum()),
    ],
)
def test_the_instruments_take_their_products_at_the_highest_precision(instrument):
    cell = CELLS["lstm"]
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    text = lowered_for(("cpu", "cuda", "tpu"), lambda *args: instrument(cell, *args), params, xs)
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_a_precision_set_where_the_unroll_stands_is_that_of_every_way():
    cell = CELLS["lstm"]
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)

    def run(xs):
        with jax.default_matmul_precision("highest"):
            ys, pull = jax.vjp(lambda xs: lstmjax.unroll(cell, params, xs)[1], xs)
        return pull(ys)

    products = [line for line in lowered_for(("cpu", "cuda"), run, xs).splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_nothing_asks_where_jax_runs():
    for path in Path(lstmjax.__file__).parent.rglob("*.py"):
        assert "default_backend" not in path.read_text(), path
