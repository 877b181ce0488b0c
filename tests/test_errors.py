"""Bad input: one clear error each, naming the argument, what was given and what was wanted."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import lstmjax
from lstmjax import gru, init_stack, lstm, projected_lstm, rnn, state_history, unroll, unroll_stack
from lstmjax.gradients import adjoint_norms, decay_fit
from lstmjax.recurrence.cudnn import unflatten_lstm


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    """Without the runtime type checker of the tests, which would get in first with errors of its own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


T, B, I, H = 6, 2, 3, 5
cell = lstm(H)
params = cell.init(jax.random.key(0), I)
xs = jnp.ones((T, B, I))
key = jax.random.key(0)


def state(**leaves):
    return cell.initial_state((B,))._replace(**leaves)


# name: (exception, what the message must hold, the call)
BAD_CALLS = {
    "rank of xs": (ValueError, r"xs has shape \(3,\); wanted \[T, \*B, I\]", lambda: unroll(cell, params, xs[0, 0])),
    "features of xs": (ValueError, r"x has shape \(2, 4\); wanted .* I = 3", lambda: unroll(cell, params, jnp.ones((T, B, 4)))),
    "integer xs": (TypeError, "x has dtype int32; wanted a floating dtype", lambda: unroll(cell, params, jnp.ones((T, B, I), jnp.int32))),
    "complex xs": (TypeError, "x has dtype complex64", lambda: unroll(cell, params, xs.astype(jnp.complex64))),
    "integer x in a step": (TypeError, "x has dtype int32", lambda: cell.step(params, state(), jnp.ones((B, I), jnp.int32))),
    "lengths beyond T": (ValueError, "lengths run from 1 to 7; wanted 0 to T = 6", lambda: unroll(cell, params, xs, lengths=jnp.array([1, 7]))),
    "negative lengths": (ValueError, "lengths run from -1 to 6; wanted 0 to T = 6", lambda: unroll(cell, params, xs, lengths=np.array([-1, 6]))),
    "shape of lengths": (ValueError, r"lengths has shape \(3,\); wanted .* \(2,\)", lambda: unroll(cell, params, xs, lengths=jnp.array([1, 2, 3]))),
    "float lengths": (TypeError, "lengths has dtype float32; wanted whole", lambda: unroll(cell, params, xs, lengths=jnp.array([1.0, 2.0]))),
    "shape of mask": (ValueError, r"mask has shape \(2, 6\); wanted .* \(6, 2\)", lambda: unroll(cell, params, xs, mask=jnp.ones((B, T), bool))),
    "float mask": (TypeError, "mask has dtype float32; wanted bool", lambda: unroll(cell, params, xs, mask=jnp.ones((T, B)))),
    "shape of resets": (ValueError, r"resets has shape \(6,\); wanted .* \(6, 2\)", lambda: unroll(cell, params, xs, resets=jnp.ones(T, bool))),
    "integer resets": (TypeError, "resets has dtype int32; wanted bool", lambda: unroll(cell, params, xs, resets=jnp.ones((T, B), jnp.int32))),
    "batch of state": (ValueError, r"state.c has shape \(3, 5\); wanted \(2, 5\)", lambda: unroll(cell, params, xs, cell.initial_state((3,)))),
    "kind of state": (ValueError, "state has structure .*GRUState.* wanted .*LSTMState", lambda: unroll(cell, params, xs, gru(H).initial_state((B,)))),
    "bare tuple as state": (ValueError, "state has structure", lambda: unroll(cell, params, xs, (jnp.ones((B, H)), jnp.ones((B, H))))),
    "size of state": (ValueError, r"state.c has shape \(2, 4\); wanted \(2, 5\)", lambda: unroll(cell, params, xs, lstm(4).initial_state((B,)))),
    "integer state": (TypeError, "state.h has dtype int32", lambda: unroll(cell, params, xs, state(h=jnp.ones((B, H), jnp.int32)))),
    "state of another step": (ValueError, r"state.h has shape \(4, 5\); wanted \(2, 5\)", lambda: cell.step(params, cell.initial_state((4,)), xs[0])),
    "another size's params": (ValueError, r"^params are of H = 4 hidden units, and the cell, or a state given, of H = 5: state.h has shape \(2, 5\); wanted \(2, 4\)", lambda: unroll(cell, lstm(4).init(key, I), xs)),
    "another size's params in a stack": (ValueError, "^layer 1: params are of H = 4 hidden units, and the cell, or a state given, of H = 5", lambda: unroll_stack([cell, lstm(5)], [params, lstm(4).init(key, H)], xs)),
    "a dict of params": (TypeError, "params is a dict with keys 'lstm', 'w'; wanted LSTMParams", lambda: unroll(cell, {"lstm": params, "w": jnp.ones(H)}, xs)),
    "a pair's params": (TypeError, "params is a tuple of 2; wanted LSTMParams; unroll_stack takes layers and pairs", lambda: unroll(cell, (params, params), xs)),
    "a cell's params for a pair": (TypeError, "layer 0: params is a LSTMParams; wanted a pair", lambda: unroll_stack([(cell, cell)], [params], xs)),
    "no params": (TypeError, "params is a NoneType; wanted GRUParams", lambda: unroll(gru(H), None, xs)),
    "a state as params": (TypeError, "params is a LSTMState; wanted ProjectedLSTMParams", lambda: unroll(projected_lstm(H, 2), state(), xs)),
    "weights of another cell": (ValueError, r"params.w_h has shape \(5, 15\); wanted \[H, 4·H\]", lambda: unroll(cell, params._replace(w_h=params.w_h[:, :15]), xs)),
    "a step that changes its carry": (ValueError, "the cell's step was given state .* and returned", lambda: unroll(cell.replace(step=lambda p, s, x: (s.c, s.h)), params, xs)),
    "remat_block": (ValueError, "remat_block is 0; wanted a whole number", lambda: unroll(cell, params, xs, remat_block=0)),
    "scan_unroll": (ValueError, "scan_unroll is 1.5; wanted a whole number", lambda: state_history(cell, params, xs, scan_unroll=1.5)),
    "implementation": (ValueError, "implementation is 'cuda'; wanted None, 'fused', 'native', 'pallas', 'scan' or, to unroll, 'cudnn'", lambda: unroll(cell, params, xs, implementation="cuda")),
    "no recurrence": (ValueError, "implementation is 'fused', which cannot run this cell: its step is not made of two parts", lambda: unroll(cell.replace(step=lambda *a: cell.step(*a)), params, xs, implementation="fused")),
    "cuDNN with a mask": (ValueError, "'cudnn', which cannot serve this: mask is given$", lambda: unroll(cell, params, xs, mask=jnp.ones((T, B), bool), implementation="cudnn")),
    "cuDNN for split units": (ValueError, "'cudnn', which cannot serve this: the cell's units are split over devices$", lambda: unroll(lstmjax.split_units(cell, jax.sharding.Mesh(jax.devices()[:1], ("model",))), params, xs, implementation="cudnn")),
    "cuDNN for another cell": (ValueError, "the cell is no LSTM with σ and tanh; .* hold bfloat16, not float32", lambda: unroll(gru(H), gru(H).init(key, I, jnp.bfloat16), xs.astype(jnp.bfloat16), implementation="cudnn")),
    "cuDNN for a history": (ValueError, "implementation is 'cudnn'; wanted None", lambda: state_history(cell, params, xs, implementation="cudnn")),
    "cuDNN's vector": (ValueError, r"flat has shape \(7,\); wanted \(20,\)", lambda: unflatten_lstm(jnp.ones(7), 2, 1)),
    "unknown option": (TypeError, "time_major", lambda: unroll(cell, params, xs, time_major=True)),
    "unknown option of a stack": (TypeError, "time_major", lambda: unroll_stack([cell], [params], xs, time_major=True)),
    "hidden_size": (ValueError, "hidden_size is 0; wanted", lambda: lstm(0)),
    "fractional hidden_size": (ValueError, "hidden_size is 2.0; wanted", lambda: gru(2.0)),
    "two biases": (ValueError, "forget_bias and b_init both", lambda: lstm(H, forget_bias=1.0, b_init=lstmjax.init.chrono(9))),
    "activation": (TypeError, "activation is 'tanh'; wanted an elementwise function", lambda: rnn(H, activation="tanh")),
    "gate_activation": (TypeError, "gate_activation is None; wanted an elementwise function", lambda: lstm(H, gate_activation=None)),
    "chrono": (ValueError, "max_lag is 2; wanted at least 3", lambda: lstmjax.init.chrono(2)),
    "per_gate": (ValueError, r"shape is \(4, 10\); wanted a last axis that 4 gates share", lambda: lstmjax.init.per_gate(jax.nn.initializers.zeros, 4)(key, (4, 10))),
    "no layer": (ValueError, r"layers is \[\]; wanted", lambda: init_stack([], key, I)),
    "a cell for a stack": (TypeError, r"^layers is a Cell; wanted a sequence, \[cell\]$", lambda: init_stack(cell, key, I)),
    "a layer of three": (TypeError, "layer 1 is a tuple of 3; wanted a Cell, or a tuple of two", lambda: init_stack([cell, (cell,) * 3], key, I)),
    "a merge": (ValueError, "^merge is 'add'; wanted 'concatenate', 'sum', 'mean', 'product'$", lambda: unroll_stack([(cell, cell)], [(params, params)], xs, merge="add")),
    "a merge to draw for": (ValueError, "^merge is 'mul'; wanted", lambda: init_stack([cell], key, I, merge="mul")),
    "directions that do not add up": (ValueError, r"layer 0: merge is 'sum', and the outputs have shapes .* and .*, 1\); wanted the same", lambda: unroll_stack([(cell, lstm(1))], [(params, lstm(1).init(key, I))], xs, merge="sum")),
    "too few params": (ValueError, "params has 1 entries; wanted one for each of the 2 layers", lambda: unroll_stack([cell, cell], [params], xs)),
    "too many states": (ValueError, "state has 2 entries; wanted one for each of the 1 layers", lambda: unroll_stack([cell], [params], xs, [None, None])),
    "dropout_rate": (ValueError, "dropout_rate is 1.5; wanted 0 ≤ rate < 1", lambda: unroll_stack([cell], [params], xs, dropout_rate=1.5, dropout_key=key)),
    "dropout without key": (ValueError, "dropout_rate is 0.5 with no dropout_key", lambda: unroll_stack([cell], [params], xs, dropout_rate=0.5)),
    "key without dropout": (ValueError, "dropout_rate is 0.0 with a dropout_key", lambda: unroll_stack([cell], [params], xs, dropout_key=key)),
    "loss that is no scalar": (TypeError, "scalar", lambda: adjoint_norms(cell, params, xs, lambda states: states.h[-1])),
    "lags": (ValueError, r"lags have shape \(3,\) and log_norms \(4,\)", lambda: decay_fit(jnp.arange(3), jnp.ones(4))),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    exception, message, call = BAD_CALLS[name]
    with pytest.raises(exception, match=message):
        call()


@pytest.mark.parametrize(
    "name", ["features of xs", "shape of lengths", "integer state", "kind of state", "a dict of params"]
)
def test_bad_calls_under_jit(name):
    exception, message, call = BAD_CALLS[name]
    with pytest.raises(exception, match=message):
        jax.jit(call)()


def test_lengths_beyond_t_under_jit_count_as_t():
    run = jax.jit(lambda n: unroll(cell, params, xs, lengths=n)[0])
    np.testing.assert_array_equal(run(jnp.array([T + 9, T])).h, run(jnp.array([T, T])).h)
