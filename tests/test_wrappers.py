"""Wrappers over cells: against loops in NumPy, the fast way against the plain scan, and what stays as it was."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import (
    LSTMState,
    candidate_dropout,
    draw_masks,
    learned_state,
    unroll,
    variational_dropout,
    weight_drop,
    zoneout,
)
from lstmjax.cells.base import Products
from lstmjax.gradients import adjoint_norms, gate_values
from lstmjax.recurrence.parts import Parts, take_apart
from tests.cells import cases, compiled, loss_of, problem, same

SHAPE = (9, 3, 4)
H = 5
KEY = jax.random.key(7)
RATE = 0.3


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm_loop(params, xs, *, h_mask=None, g_mask=None, keep_c=None, keep_h=None, state=None):
    """An LSTM with every mask that there is, step by step; a mask of a step is ``[T, B, H]``."""
    steps, batch, _ = xs.shape
    c, h = state or (np.zeros((batch, H)), np.zeros((batch, H)))
    ys = []
    for t in range(steps):
        read = h if h_mask is None else h_mask * h
        i, f, g, o = np.split(xs[t] @ params.w_x + read @ params.w_h + params.b, 4, axis=-1)
        g = np.tanh(g) if g_mask is None else g_mask[t] * np.tanh(g)
        new_c = sigmoid(f) * c + sigmoid(i) * g
        new_h = sigmoid(o) * np.tanh(new_c)
        c = new_c if keep_c is None else keep_c[t] * c + (1 - keep_c[t]) * new_c
        h = new_h if keep_h is None else keep_h[t] * h + (1 - keep_h[t]) * new_h
        ys.append(h)
    return LSTMState(jnp.asarray(c), jnp.asarray(h)), np.stack(ys)


def gru_loop(params, xs, *, h_mask=None, keep_h=None):
    h, ys = np.zeros((xs.shape[1], H)), []
    for t, x in enumerate(xs):
        by_x, by_h = x @ params.w_x + params.b, (h if h_mask is None else h_mask * h) @ params.w_h
        r, z = sigmoid(by_x[:, :H] + by_h[:, :H]), sigmoid(by_x[:, H : 2 * H] + by_h[:, H : 2 * H])
        n = np.tanh(by_x[:, 2 * H :] + r * (by_h[:, 2 * H :] + params.b_n))
        new = (1 - z) * n + z * h
        h = new if keep_h is None else keep_h[t] * h + (1 - keep_h[t]) * new
        ys.append(h)
    return (h,), np.stack(ys)


def drawn(cell):
    params, xs, _ = problem(cell, SHAPE)
    return params, np.asarray(xs), draw_masks(KEY, cell, params, xs)


def numpy(tree):
    return jax.tree.map(lambda a: np.asarray(a).astype(np.float64), tree)


def test_variational_dropout_is_one_mask_a_sequence(x64):
    cell = variational_dropout(lstmjax.lstm(H), RATE, input_rate=0.4)
    params, xs, (noisy, with_mask, dropped) = drawn(cell)
    assert with_mask[1].shape == (3, H)
    h_mask = numpy(with_mask[1]) / (1 - RATE)
    assert set(np.unique(h_mask)) == {0, 1 / (1 - RATE)}
    x_mask = np.asarray(dropped) / xs
    assert set(np.unique(x_mask.round(12))) == {0, np.round(1 / 0.6, 12)}
    np.testing.assert_array_equal(x_mask == 0, np.broadcast_to(x_mask[0] == 0, SHAPE))
    want = lstm_loop(numpy(params), np.asarray(dropped), h_mask=h_mask)
    same(unroll(noisy, with_mask, dropped, implementation="fused"), want)


def test_variational_dropout_leaves_what_meets_no_weight(x64):
    params, xs, (noisy, with_mask, same_xs) = drawn(variational_dropout(lstmjax.gru(H), RATE))
    np.testing.assert_array_equal(same_xs, xs)
    want = gru_loop(numpy(params), xs, h_mask=numpy(with_mask[1]) / (1 - RATE))
    same(unroll(noisy, with_mask, xs, implementation="fused")[1], want[1])


def test_candidate_dropout_is_one_mask_a_step(x64):
    params, xs, (noisy, _, (_, (mask,))) = drawn(candidate_dropout(lstmjax.lstm(H), RATE))
    assert mask.shape == (9, 3, H)
    assert not (np.asarray(mask) == np.asarray(mask[0])).all()
    want = lstm_loop(numpy(params), xs, g_mask=numpy(mask) / (1 - RATE))
    got = unroll(noisy, params, (xs, (mask,)), implementation="fused")
    same(got, want)


def test_zoneout_keeps_units_of_each_part_of_the_state(x64):
    params, xs, (noisy, _, (_, masks)) = drawn(zoneout(lstmjax.lstm(H), {"c": 0.5, "h": 0.1}))
    keep_c, keep_h = numpy(masks)
    assert abs(keep_c.mean() - 0.5) < 0.1
    assert abs(keep_h.mean() - 0.1) < 0.1
    want = lstm_loop(numpy(params), xs, keep_c=keep_c, keep_h=keep_h)
    same(unroll(noisy, params, (xs, masks), implementation="fused"), want)


@pytest.mark.parametrize("cell_of", [lstmjax.lstm, lstmjax.gru])
def test_without_masks_zoneout_takes_the_expectation(cell_of, x64):
    cell = zoneout(cell_of(H), 0.3)
    params, xs, _ = problem(cell, SHAPE)
    keep = np.full((9, 1, H), 0.3)
    options = {"keep_c": keep, "keep_h": keep} if cell_of is lstmjax.lstm else {"keep_h": keep}
    loop = lstm_loop if cell_of is lstmjax.lstm else gru_loop
    want = loop(numpy(params), np.asarray(xs), **options)
    same(unroll(cell, params, xs, implementation="fused")[1], want[1])


def test_weight_drop_is_one_mask_a_batch(x64):
    params, xs, (noisy, dropped, _) = drawn(weight_drop(lstmjax.lstm(H), RATE))
    assert noisy.step == lstmjax.lstm(H).step
    mask = np.asarray(dropped.w_h) / np.asarray(params.w_h)
    assert set(np.unique(mask.round(12))) == {0, np.round(1 / (1 - RATE), 12)}
    np.testing.assert_array_equal(dropped.w_x, params.w_x)
    same(unroll(noisy, dropped, xs)[1], lstm_loop(numpy(dropped), xs)[1])


def test_masks_have_their_expectation():
    cell = variational_dropout(zoneout(lstmjax.lstm(64), {"c": 0.2, "h": 0.6}), 0.3)
    _, (_, h_mask), (_, (keep_c, keep_h)) = draw_masks(KEY, cell, jnp.zeros(()), jnp.ones((10, 40, 3)))
    for mask, share in ((h_mask, 0.7), (keep_c, 0.2), (keep_h, 0.6)):
        assert abs(float(mask.mean()) - share) < 5 * (share * (1 - share) / mask.size) ** 0.5


def everything(cell):
    return weight_drop(variational_dropout(candidate_dropout(zoneout(learned_state(cell), 0.2), 0.3), 0.3), 0.2)


WRAPPED = {
    "variational lstm": variational_dropout(lstmjax.lstm(H), RATE, input_rate=RATE),
    "variational gru": variational_dropout(lstmjax.gru(H), RATE),
    "variational peephole": variational_dropout(lstmjax.peephole_lstm(H), RATE),
    "candidate peephole": candidate_dropout(lstmjax.peephole_lstm(H), RATE),
    "candidate gru": candidate_dropout(lstmjax.gru(H), RATE),
    "zoneout rnn": zoneout(lstmjax.rnn(H), RATE),
    "variational projected": variational_dropout(lstmjax.projected_lstm(H, 3), RATE),
    "all over an lstm": everything(lstmjax.lstm(H)),
    "all over an mgu": everything(lstmjax.mgu(H)),
}


@pytest.mark.parametrize("name", cases(WRAPPED, slow=WRAPPED.keys() - {"all over an lstm", "zoneout rnn"}))
def test_the_fast_way_is_the_scan(name, x64):
    cell = WRAPPED[name]
    params, xs, _ = problem(cell, SHAPE)
    resets = np.zeros(SHAPE[:2], bool)
    resets[4, 1] = True
    options = {"lengths": np.array([9, 6, 0]), "resets": resets}

    def both(params, xs):
        def by(implementation):
            def way(params, xs):
                return unroll(*draw_masks(KEY, cell, params, xs), implementation=implementation, **options)

            return jax.value_and_grad(loss_of(way), argnums=(0, 1))

        ahead = 1e-5
        loss = loss_of(lambda p, xs: unroll(*draw_masks(KEY, cell, p, xs), **options))
        move = [jax.tree.map(lambda p, d=d: p + d * ahead, params) for d in (1, -1)]
        slope = (loss(move[0], xs) - loss(move[1], xs)) / (2 * ahead)
        return by("fused")(params, xs), by("scan")(params, xs), slope

    fused, scan, slope = compiled(both, params, xs)
    same(fused, scan)
    np.testing.assert_allclose(sum(g.sum() for g in jax.tree.leaves(fused[1][0])), slope, rtol=1e-6)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(fused[1]))


@pytest.mark.parametrize("name", ["variational lstm", "candidate gru", "all over an lstm"])
def test_products_of_all_inputs_at_once(name, x64):
    cell = WRAPPED[name]
    params, xs, _ = problem(cell, SHAPE)
    noisy, params, xs = draw_masks(KEY, cell, params, xs)
    state = jax.tree.map(jnp.asarray, noisy.begin(params, SHAPE[1:2], jnp.float64))
    parts = take_apart(noisy.step, params, state, jax.tree.map(lambda a: a[0], xs))
    assert isinstance(parts, Parts)
    step = parts.step
    assert isinstance(step.pre, Products)
    weights = step.pack(params)
    still = jnp.zeros_like(state.h)
    same(parts.z_by_x(weights, xs, still)[3], step.z(weights, jax.tree.map(lambda a: a[3], xs), still))


ZERO = {
    "variational": variational_dropout(lstmjax.lstm(H), 0.0),
    "candidate": candidate_dropout(lstmjax.lstm(H), 0.0),
    "zoneout": zoneout(lstmjax.lstm(H), 0.0),
    "weight drop": weight_drop(lstmjax.lstm(H), 0.0),
}


@pytest.mark.parametrize("name", ZERO)
def test_a_rate_of_zero_is_the_cell_bit_for_bit(name):
    cell = ZERO[name]
    params, xs, _ = problem(cell, SHAPE, dtype=jnp.float32)

    def ways(params, xs):
        # Of one implementation; the kernels for CPU round otherwise.
        fused = partial(unroll, implementation="fused")
        return fused(lstmjax.lstm(H), params, xs), fused(*draw_masks(KEY, cell, params, xs)), fused(cell, params, xs)

    with jax.disable_jit():  # a compiler may round a product and a sum of one program together
        plain, noisy, calm = ways(params, xs)
    for got in (noisy, calm):
        jax.tree.map(np.testing.assert_array_equal, plain, got)


def test_a_learned_state_is_where_rows_begin_and_resets_lead(x64):
    cell = learned_state(lstmjax.lstm(H))
    params, xs, _ = problem(cell, SHAPE)
    start = tuple(np.broadcast_to(numpy(leaf), (3, H)) for leaf in params.state)
    resets = np.zeros(SHAPE[:2], bool)
    resets[4] = True
    ys = unroll(cell, params, xs, resets=resets, implementation="fused")[1]
    same(ys[:4], lstm_loop(numpy(params.cell), numpy(xs[:4]), state=start)[1])
    same(ys[4:], lstm_loop(numpy(params.cell), numpy(xs[4:]), state=start)[1])
    given = LSTMState(jnp.ones((3, H)), jnp.zeros((3, H)))
    same(unroll(cell, params, xs, given)[1], lstm_loop(numpy(params.cell), numpy(xs), state=tuple(numpy(given)))[1])


def test_the_instruments_take_what_was_drawn(x64):
    cell = variational_dropout(candidate_dropout(lstmjax.lstm(H), RATE), RATE)
    params, xs, _ = problem(cell, SHAPE)
    noisy, params, xs = draw_masks(KEY, cell, params, xs)
    norms = adjoint_norms(noisy, params, xs, lambda states: states.h[-1].sum())

    def loss(state):
        return unroll(noisy, params, xs, state)[0].h.sum()

    start = LSTMState(jnp.zeros((3, H)), jnp.zeros((3, H)))
    by_start = jax.jit(jax.grad(loss))(start)
    same(np.exp(norms.c[0]), np.linalg.norm(by_start.c, axis=-1))
    assert set(gate_values(noisy, params, xs)) == {"input", "forget", "candidate", "output"}


def test_rows_by_vmap_and_cells_of_functions(x64):
    # A step that is a function: its output is its state, and is zoned out with it.
    plain = lstmjax.lstm(H)
    cell = zoneout(plain.replace(step=lambda p, s, x: plain.step(p, s, x)), {"c": 0.4, "h": 0.2})
    params, xs, _ = problem(cell, SHAPE)
    noisy, _, (_, masks) = draw_masks(KEY, cell, params, xs)
    keep_c, keep_h = numpy(masks)
    want = lstm_loop(numpy(params), numpy(xs), keep_c=keep_c, keep_h=keep_h)[1]
    rows = jax.vmap(lambda xs: unroll(noisy, params, xs)[1], in_axes=1, out_axes=1)
    same(rows((xs, masks)), want)


def test_a_stack_draws_for_its_cells(x64):
    noisy = variational_dropout(lstmjax.lstm(H), RATE)
    layers = [(noisy, noisy), zoneout(lstmjax.gru(H), RATE)]
    plain = [(lstmjax.lstm(H), lstmjax.lstm(H)), lstmjax.gru(H)]
    xs = problem(noisy, SHAPE)[1]
    ahead, back = problem(noisy, SHAPE, seed=1)[0], problem(noisy, SHAPE, seed=2)[0]
    params = (ahead, back), problem(plain[1], (9, 3, 2 * H))[0]

    def ways(key, params, xs):
        return lstmjax.unroll_stack(layers, params, xs, dropout_key=key)[1]

    def by_hand(key, params, xs):
        keys = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        both = [
            unroll(*draw_masks(jax.random.fold_in(keys[0], n), noisy, params[0][n], xs), reverse=bool(n))[1]
            for n in range(2)
        ]
        first = jnp.concatenate(both, axis=-1)
        return unroll(*draw_masks(jax.random.fold_in(keys[1], 0), layers[1], params[1], first))[1]

    got, want, other = compiled(
        lambda *args: (ways(KEY, *args), by_hand(KEY, *args), ways(jax.random.key(8), *args)), params, xs
    )
    same(got, want)
    assert np.abs(got - other).max() > 1e-3
    calm = lstmjax.unroll_stack([layers[0], plain[1]], params, xs)[1]
    np.testing.assert_array_equal(calm, lstmjax.unroll_stack(plain, params, xs)[1])
    with pytest.raises(ValueError, match="wanted both, or, to evaluate, neither"):
        lstmjax.unroll_stack(plain, params, xs, dropout_key=KEY)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: variational_dropout(lstmjax.lstm(H), 1.0), ValueError, "rate is 1.0; wanted 0 ≤ rate < 1"),
        (lambda: zoneout(lstmjax.lstm(H), 1.1), ValueError, "rates is 1.1; wanted 0 ≤ rate ≤ 1"),
        (lambda: zoneout(lstmjax.lstm(H), {"n": 0.1}), ValueError, "wanted a number, or numbers by parts of the state"),
        (lambda: candidate_dropout(lstmjax.rnn(H), 0.1), TypeError, "wanted one whose activate is Gated"),
        (lambda: variational_dropout(lstmjax.lem(H, dt=0.1), 0.1), TypeError, "wanted a Recurrence"),
        (lambda: draw_masks(KEY, lstmjax.lstm(H), None, np.ones(SHAPE)), ValueError, "no noise to draw"),
        (
            lambda: draw_masks(KEY, weight_drop(lstmjax.min_gru(H), 0.1), {"a": np.ones(2)}, np.ones(SHAPE)),
            ValueError,
            "names of parameters, of which there are a",
        ),
    ],
)
def test_what_cannot_be_wrapped_is_said(make, error, message):
    with pytest.raises(error, match=message):
        make()
