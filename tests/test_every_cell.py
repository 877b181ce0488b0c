"""Every cell under every option, transformation and instrument: one table, one program a cell.

What is wanted comes from each cell's own step in a plain scan, which knows no option: the equations themselves are held
to NumPy's and to other libraries' in the tests of the cells.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import gradients, unroll
from lstmjax.program.cells import CONVOLUTIONAL, ZOO
from tests.cells import cases, compiled, loss_of, problem, same

T, B, I, H = 5, 2, 3, 4
SETTINGS = {
    "projected_lstm": {"projection_size": 3}, "conv_lstm": {"spatial_shape": (3,)}, "slstm": {"heads": 2},
    "leaky_rnn": {"tau": 2.0}, "co_rnn": {"dt": 0.3, "gamma": 0.9, "epsilon": 0.4},
}  # fmt: skip
CELLS = {name: getattr(lstmjax, name)(H, **SETTINGS.get(name, {})) for name in (*ZOO, CONVOLUTIONAL)}
# The one that is asked for most.
QUICK = ("lstm",)

LENGTHS = np.array([4, 2])
MASK = np.array([[1, 1], [0, 1], [1, 0], [1, 1], [0, 1]], bool)
RESETS = np.array([[0, 0], [0, 1], [0, 0], [1, 1], [0, 0]], bool)
TAKEN = np.arange(T)[:, None] < LENGTHS
# Backwards a sequence ends where forwards it begins: between the same two steps.
BACKWARDS = np.concatenate([RESETS[1:], RESETS[:1]])[::-1]
EVERY, NEVER = np.ones((T, B), bool), np.zeros((T, B), bool)
STEP = 3e-5


def drawn(name):
    """Parameters, inputs and a state in bfloat16 and, the same numbers, in float64."""
    space = (3,) if name == CONVOLUTIONAL else ()
    params, xs, state = problem(CELLS[name], (T, B, *space, I), dtype=jnp.bfloat16)
    if name == "slstm":  # a normaliser is not negative
        state = state._replace(n=1 + abs(state.n))
    return (params, xs, state), jax.tree.map(lambda a: a.astype(jnp.float64), (params, xs, state))


def by_steps(cell, taken, fresh, params, xs, state):
    """An unroll of the cell's step, with which steps are taken and which begin anew."""
    start = cell.initial_state((B,), jnp.float64)

    def pick(flag, a, b):
        return jax.tree.map(lambda a, b: jnp.where(flag.reshape(B, *(1,) * (a.ndim - 1)), a, b), a, b)

    def body(state, at):
        x, taken, fresh = at
        before = pick(fresh, start, state)
        after, y = cell.step(params, before, x)
        return pick(taken, after, before), pick(taken, y, jnp.zeros_like(y))

    return jax.lax.scan(body, state, (xs, taken, fresh))


def moved(args, tangent, by):
    return jax.tree.map(lambda a, t: a + by * t, args, tangent)


def with_gradient(way, args):
    """What an unroll returns, and the gradient of a loss of it by all that it is given."""

    def loss(*args):
        out = way(*args)
        return loss_of(lambda: out)(), out

    by_args, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
    return out, by_args


def unrolls(cell, narrow, args, tangent):
    """By :func:`lstmjax.unroll`, every option and transformation; and with bfloat16 weights and inputs."""

    def run(**options):
        return lambda *args: unroll(cell, *args, **options)

    params, xs, state = args
    _, d_out = jax.jvp(run(), args, tangent)
    _, d_gradient = jax.jvp(lambda *args: with_gradient(run(), args)[1], args, tangent)
    half, first = unroll(cell, params, xs[:2], state)
    end, second = unroll(cell, params, xs[2:], half)
    wide_state = jax.tree.map(lambda s: s.astype(jnp.float32), narrow[2])
    return {
        "plain": with_gradient(run(), args),
        "remat": with_gradient(run(remat_block=2), args),
        "lengths": with_gradient(run(lengths=LENGTHS, resets=RESETS), args),
        "reverse": with_gradient(run(mask=MASK, resets=RESETS, reverse=True), args),
        "vmap": with_gradient(jax.vmap(run(), in_axes=(None, 1, 0), out_axes=(0, 1)), args),
        "streaming": (end, jnp.concatenate([first, second])),
        "jvp": d_out,
        "hessian": d_gradient,
    }, with_gradient(run(), (*narrow[:2], wide_state))


def wanted(cell, args, tangent):
    """The same by steps, all of them in one program; derivatives along the tangent by differences of fourth order."""

    def flipped(args):
        return args[0], args[1][::-1], args[2]

    rows = [
        (EVERY, NEVER, args),
        *((EVERY, NEVER, moved(args, tangent, n * STEP)) for n in (-2, -1, 1, 2)),
        (TAKEN, RESETS & TAKEN, args),
        (MASK[::-1], BACKWARDS, flipped(args)),
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    every = jax.vmap(lambda taken, fresh, args: with_gradient(lambda *a: by_steps(cell, taken, fresh, *a), args))
    found = every(*stacked)
    plain, *around, lengths, reverse = (jax.tree.map(lambda a, n=n: a[n], found) for n in range(len(rows)))
    slope = jax.tree.map(lambda a, b, c, d: (a - 8 * b + 8 * c - d) / (12 * STEP), *around)
    (end, ys), by_args = reverse
    return {
        "plain": plain, "remat": plain, "lengths": lengths, "reverse": ((end, ys[::-1]), flipped(by_args)),
        "vmap": plain, "streaming": plain[0], "jvp": slope[0], "hessian": slope[1],
    }  # fmt: skip


def instruments(cell, args):
    """What every instrument finds, and what it must be, from the steps alone: pairs by name."""
    params, xs, state = args
    parts = [leaf.reshape(B, -1).shape[1] for leaf in jax.tree.leaves(state)]

    def flat(state):
        return jnp.concatenate([leaf.reshape(B, -1) for leaf in jax.tree.leaves(state)], -1)

    def after_two(rows):
        leaves, tree = jax.tree.flatten(state)
        split = jnp.split(rows, np.cumsum(parts)[:-1], -1)
        begin = jax.tree.unflatten(tree, [r.reshape(leaf.shape) for r, leaf in zip(split, leaves, strict=True)])
        return flat(by_steps(cell, EVERY[:2], NEVER[:2], params, xs[:2], begin)[0])

    def loss(states):
        return loss_of(lambda: (jax.tree.map(lambda s: s[-1], states), states.h[1:]))()

    two = params, xs[:2], state
    basis = jnp.broadcast_to(jnp.eye(sum(parts))[:, None], (sum(parts), B, sum(parts)))
    jacobian = jax.vmap(lambda e: jax.jvp(after_two, (flat(state),), (e,))[1])(basis).transpose(1, 2, 0)
    _, by_args = with_gradient(lambda *a: by_steps(cell, EVERY, NEVER, *a), args)
    norms = gradients.jacobian_norms(cell, *two, times=[0])
    spectrum = gradients.lyapunov_spectrum(cell, *two)
    bias = gradients.truncation_bias(cell, params, xs, loss, [1, T], state)
    found = {
        "adjoint_norms": (
            jax.tree.map(lambda n: jnp.exp(n[0]), gradients.adjoint_norms(cell, params, xs, loss, state)),
            jax.tree.map(lambda g: jnp.linalg.norm(g.reshape(B, -1), axis=-1), by_args[2]),
        ),
        "per_step_param_grads": (
            jax.tree.map(lambda g: g.sum(0), gradients.per_step_param_grads(cell, params, xs, loss, state)), by_args[0]
        ),
        "truncation_bias": (bias.relative_error[1], 0.0),
        "jacobian_norms": (jnp.exp(norms.frobenius["full"][0]), jnp.linalg.norm(jacobian, axis=(-2, -1))),
        # The volume that is left; where a direction is lost, none but for rounding.
        "lyapunov_spectrum": (jnp.maximum(2 * spectrum.sum(0), -25.0), jnp.maximum(log_volume(jacobian), -25.0)),
        "flossing_penalty": (
            gradients.flossing_penalty(cell, *two, leading=sum(parts)), (spectrum**2).sum(0).mean()
        ),
        "with_output": (gradients.with_output(cell, I).step(params, state, xs[0]), cell.step(params, state, xs[0])),
    }  # fmt: skip
    if set(getattr(state, "_fields", ())) == {"c", "h"}:
        found["cell_highway"] = gradients.cell_highway(cell, *two).full[0], norms.frobenius["cc"][0]
    if getattr(cell.step, "gates", None):
        values = gradients.gate_values(cell, *args)
        for gate, statistics in gradients.gate_statistics(cell, *args).items():
            found[gate] = statistics.mean, values[gate].mean((0, 1))
    return found


def log_volume(matrices):
    return jnp.linalg.slogdet(matrices)[1]


def test_every_cell_is_in_the_table():
    made = {name.partition("_params")[0] for name in lstmjax.cells.__all__ if name in CELLS}
    assert made == CELLS.keys()


@pytest.mark.parametrize("name", cases(CELLS, slow=set(CELLS) - set(QUICK)))
def test_every_option_and_transformation(name, x64):
    cell, (narrow, args) = CELLS[name], drawn(name)
    tangent = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), args)
    (got, rounded), want = compiled(
        lambda narrow, *a: (unrolls(cell, narrow, *a), wanted(cell, *a)), narrow, args, tangent
    )
    for option in got:
        same(got[option], want[option], {"jvp": 1e-8, "hessian": 1e-8}.get(option, 1e-11))
    (out, by_args), (exact, exactly_by_args) = rounded, want["plain"]
    # The state is float32 as it was given, and so is what comes out; a gradient is of the dtype of what it is by.
    assert {leaf.dtype for leaf in jax.tree.leaves((out, by_args[2]))} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(by_args[:2])} == {np.dtype(jnp.bfloat16)}
    same(jax.tree.map(np.float64, out), exact, 0.03)
    for a, b in zip(jax.tree.leaves(by_args), jax.tree.leaves(exactly_by_args), strict=True):
        assert np.linalg.norm(np.float64(a) - b) < 0.05 * np.linalg.norm(b)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(want["plain"]))


# More to compile. Of the cells that are asked for most, each instrument has tests of its own.
@pytest.mark.parametrize("name", cases(CELLS, slow=set(CELLS)))
def test_every_instrument(name, x64):
    found = compiled(lambda args: instruments(CELLS[name], args), drawn(name)[1])
    for instrument, (value, identity) in found.items():
        assert jax.tree.structure(value) == jax.tree.structure(identity), instrument
        same(value, identity, 1e-9)
