"""The kernels for CPU against the scan: values, coefficients, the transpose, and the accuracy of sigma and tanh."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax.recurrence import native
from lstmjax.recurrence.parts import take_apart
from lstmjax.recurrence.scan import Timeline, plain_scan
from tests.cells import compiled, problem, same

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def cell_of(kind, hidden):
    return {
        "lstm": lstmjax.lstm, "gru": lstmjax.gru, "rnn": lstmjax.rnn,
        "relu": lambda size: lstmjax.rnn(size, activation=jax.nn.relu),
    }[kind](hidden)  # fmt: skip


def weights_of(params):
    b = params.b if not hasattr(params, "b_n") else jnp.concatenate([params.b, params.b_n])
    return params.w_x, params.w_h, b


def of_weights(kind, params, d_w_x, d_w_h, d_b):
    hidden = params.w_h.shape[0]
    parts = (d_b[: 3 * hidden], d_b[3 * hidden :]) if kind == "gru" else (d_b,)
    return type(params)(d_w_x, d_w_h, *parts)


def flags(shape, seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.random(shape) < 0.7), jnp.asarray(rng.random(shape) < 0.3)


def both_ways(kind, shape, hidden, dtype, *, masked=False, reverse=False, states=False):
    """All that the kernels return and the gradients they make, and the same of a plain scan."""
    cell = cell_of(kind, hidden)
    params, xs, start = problem(cell, shape, dtype=dtype)
    fresh = jax.tree.map(lambda s: s[::-1] * 0.5 + 0.25, start) if masked else None
    valid, reset = flags(shape[:2], 3) if masked else (None, None)
    d_record = jax.tree.map(
        lambda s: jnp.asarray(np.random.default_rng(5).normal(size=(shape[0], *s.shape)), dtype), start
    )
    d_record = d_record if states else d_record.h
    d_final = jax.tree.map(lambda s: jnp.cos(s), start)
    options = {"valid": valid, "reset": reset, "reverse": reverse, "states": states}

    def here(params, start, fresh, xs):
        weights = weights_of(params)
        plain = native.forward(kind, xs, weights, tuple(start), fresh=fresh and tuple(fresh), **options)[:2]
        final, record, (coefficients, h_before) = native.forward(
            kind, xs, weights, tuple(start), fresh=fresh and tuple(fresh), emit=True, **options
        )
        dz, d_start, d_fresh = native.transposed(
            native.FORMS[kind], coefficients, params.w_h, tuple(d_record) if states else d_record, tuple(d_final),
            **options,
        )  # fmt: skip
        d_params = of_weights(kind, params, *native.weight_gradients(native.FORMS[kind], xs, h_before, dz))
        by_x = dz if kind != "gru" else dz[..., : 3 * hidden]
        return plain, (final, record), (d_params, d_start, d_fresh, by_x @ params.w_x.T)

    def there(params, start, fresh, xs):
        def way(params, start, fresh, xs):
            record = (lambda state, y: state) if states else (lambda state, y: y)
            final, kept = plain_scan(cell.step, record, reverse, None, params, start, fresh, Timeline(xs, valid, reset))
            return tuple(final), tuple(kept) if states else kept

        out, back = jax.vjp(way, params, start, fresh, xs)
        d_params, d_start, d_fresh, d_xs = back((tuple(d_final), tuple(d_record) if states else d_record))
        return out, out, (d_params, tuple(d_start), fresh and tuple(d_fresh), d_xs)

    return compiled(lambda *args: (here(*args), there(*args)), params, start, fresh, xs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", native.KINDS)
def test_values_and_gradients_are_those_of_the_scan(x64, kind, dtype):
    ours, theirs = both_ways(kind, (6, 7, 3), 19, dtype)
    same(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize(("reverse", "states"), [(False, False), (True, True)])
@pytest.mark.parametrize("kind", native.KINDS)
def test_skipped_steps_and_resets(x64, kind, reverse, states):
    ours, theirs = both_ways(kind, (9, 4, 3), 10, "float64", masked=True, reverse=reverse, states=states)
    same(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "hidden"),
    [
        ((50, 1, 3), 17),
        ((3, 2, 1), 40),
        ((5, 3, 0), 4),
        ((0, 3, 2), 4),
        ((4, 0, 2), 4),
        ((2, 100, 5), 3),
        ((1, 1, 1), 1),
        ((4, 7, 3), 8),  # one long vector of units
        ((5, 30, 300), 5),  # rows of x so long that the weights' gradient copies them
    ],
)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_every_shape(x64, kind, shape, hidden):
    ours, theirs = both_ways(kind, shape, hidden, "float64", reverse=True)
    same(ours, theirs)


@pytest.mark.parametrize("kind", native.KINDS)
def test_coefficients_are_those_of_the_parts(x64, kind):
    cell = cell_of(kind, 6)
    params, xs, start = problem(cell, (1, 3, 2))
    parts = take_apart(cell.step, params, start, xs[0])

    def ways(params, xs, start):
        _, _, (coefficients, h) = native.forward(kind, xs, weights_of(params), tuple(start), emit=True)
        z = cell.step.z(cell.step.pack(params), xs[0], start.h)
        derived = jax.tree.leaves(parts.linearise(z, start)[1])
        return (jnp.concatenate(coefficients, -1)[0], h[0]), (jnp.concatenate(derived, -1), start.h)

    same(*compiled(ways, params, xs, start))


def test_a_nan_stays_in_its_row(x64):
    cell = cell_of("lstm", 5)
    params, xs, start = problem(cell, (3, 8, 2))
    xs = xs.at[1, 2, 0].set(jnp.nan)
    _, ys, _ = native.forward("lstm", xs, weights_of(params), tuple(start))
    assert not np.isnan(ys[0]).any()
    assert np.isnan(ys[1:, 2]).all()
    assert not np.isnan(np.delete(np.asarray(ys), 2, axis=1)).any()


def ulps(value, exact):
    """The distance in units of the last place of the exact value."""
    return np.abs(value.astype(exact.dtype) - exact) / np.spacing(np.abs(exact).astype(value.dtype)).astype(exact.dtype)


@pytest.mark.slow
def test_sigma_and_tanh_keep_their_digits_at_both_ends():
    """Every 61st float32 from 1e-30 to 104, both signs: 3 ulp, slopes 6, from 8 times the least normal number on."""
    low, high = np.float32([1e-30, 104]).view(np.int32)
    z = np.arange(low, high, 61, dtype=np.int32).view(np.float32)
    z = np.concatenate([-z, z])
    exact_z = z.astype(np.float64)
    e = np.exp(-np.abs(exact_z))
    large, small = 1 / (1 + e), e / (1 + e)
    e2 = np.exp(-2 * np.abs(exact_z))
    wanted = (
        (np.where(z >= 0, large, small), 3),
        (large * small, 6),
        (np.tanh(exact_z), 3),
        (4 * e2 / (1 + e2) ** 2, 6),
    )
    for got, (exact, bound) in zip(jax.jit(native.functions)(z), wanted, strict=True):
        normal = np.abs(exact) > 8 * np.finfo(np.float32).tiny
        assert ulps(np.asarray(got)[normal], exact[normal]).max() <= bound


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigma_and_tanh_at_special_values(x64, dtype):
    z = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e4, -1e4], dtype)
    got = [np.asarray(a) for a in jax.jit(native.functions)(z)]
    np.testing.assert_array_equal(got[0], np.array([0.5, 0.5, 1, 0, np.nan, 1, 0], dtype))
    np.testing.assert_array_equal(got[1], np.array([0.25, 0.25, 0, 0, np.nan, 0, 0], dtype))
    np.testing.assert_array_equal(got[2], np.array([0, -0.0, 1, -1, np.nan, 1, -1], dtype))
    np.testing.assert_array_equal(np.signbit(got[2])[:4], np.signbit(z)[:4])
    np.testing.assert_array_equal(got[3], np.array([1, 1, 0, 0, np.nan, 0, 0], dtype))


@pytest.mark.parametrize("kind", native.KINDS)
def test_bits_depend_on_neither_the_batch_nor_how_it_is_split(kind):
    """A row of a batch large enough for threads, and the same rows in smaller batches, which meet x ahead or not."""
    cell = cell_of(kind, 40)
    params, xs, start = problem(cell, (20, 130, 9), dtype=jnp.float32)

    def run(rows):
        part = jax.tree.map(lambda s: s[rows], start)
        final, ys, emitted = native.forward(kind, xs[:, rows], weights_of(params), tuple(part), emit=True)
        back = native.transposed(native.FORMS[kind], emitted[0], params.w_h, ys, final)
        return jax.tree.map(np.asarray, (ys, emitted, back[0]))

    whole = run(slice(None))
    for rows in (slice(0, 1), slice(7, 9), slice(50, 53), slice(20, 25), slice(90, 97)):
        jax.tree.map(lambda a, b, rows=rows: np.testing.assert_array_equal(a[:, rows], b), whole, run(rows))


@pytest.mark.parametrize("kind", native.KINDS)
def test_bits_do_not_depend_on_whether_rows_or_units_are_split(kind):
    """Of 64 rows some go to each thread; of one row, or of five, some units do, which meet again after every step."""
    cell = cell_of(kind, 300)
    params, xs, start = problem(cell, (12, 64, 9), dtype=jnp.float32)
    rng = np.random.default_rng(0)
    valid, reset = jnp.asarray(rng.random((12, 64)) < 0.8), jnp.asarray(rng.random((12, 64)) < 0.2)
    fresh = jax.tree.map(jnp.cos, start)

    def run(rows):
        first, again = (tuple(leaf[rows] for leaf in state) for state in (start, fresh))
        flags = {"valid": valid[:, rows], "reset": reset[:, rows], "reverse": kind == "gru", "states": kind == "rnn"}
        final, record, (coefficients, h) = native.forward(
            kind, xs[:, rows], weights_of(params), first, fresh=again, emit=True, **flags
        )
        dz, *back = native.transposed(native.FORMS[kind], coefficients, params.w_h, record, final, **flags)
        return jax.tree.map(np.asarray, ((record, coefficients, h, dz), (final, back)))

    whole = run(slice(None))
    for rows in (slice(0, 1), slice(7, 9), slice(50, 55)):
        over_time, once = run(rows)
        jax.tree.map(lambda a, b, rows=rows: np.testing.assert_array_equal(a[:, rows], b), whole[0], over_time)
        jax.tree.map(lambda a, b, rows=rows: np.testing.assert_array_equal(a[rows], b), whole[1], once)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no large pages here")
def test_what_is_large_may_lie_in_large_pages():
    cell = cell_of("rnn", 64)
    params, xs, start = problem(cell, (256, 64, 3), dtype=jnp.float32)
    _, ys, _ = jax.jit(lambda *a: native.forward("rnn", a[0], weights_of(a[1]), tuple(a[2])))(xs, params, start)
    at = ys.unsafe_buffer_pointer() + ys.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= at < high
        elif inside and first == "VmFlags:":
            assert "hg" in rest
            return
    pytest.fail("the array lies in no part of the process's memory")
