# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Your own experiment
#
# Any cell, any data, a report in ten lines. Here: hourly temperatures at Seattle, windows of ten days, and the question
# how far back the gradient of tomorrow's prediction reaches, before and after training.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp

import lstmjax
from lstmjax.gradients import gradient_report, jacobian_norms
from lstmjax.tasks import seattle_temperatures

series = jnp.asarray(seattle_temperatures())


def data(key):
    starts = jax.random.randint(key, (16,), 0, len(series) - 264)
    windows = series[starts + jnp.arange(264)[:, None]]  # [T, B, 1]
    return windows[:240], windows[-1]  # 240 hours, and the temperature a day after them


cells = {"RNN": lstmjax.rnn, "GRU": lstmjax.gru, "LSTM": lstmjax.lstm}
report = gradient_report(cells, data, hidden_size=32, match="parameters", seeds=3, train_steps=50)
print(report.table())

# %%
report.figure()

# %% [markdown]
# ## A cell of your own
#
# A cell is three pure functions. This one leaks: $h' = a h + (1 - a) \tanh(x W + h U)$, with $a$ learned for every unit.

# %%
from typing import NamedTuple


class Params(NamedTuple):
    w_x: jax.Array
    w_h: jax.Array
    leak: jax.Array


class State(NamedTuple):
    h: jax.Array


def leaky(hidden_size):
    def init(key, input_size, dtype=jnp.float32):
        k_x, k_h = jax.random.split(key)
        draw = jax.nn.initializers.lecun_normal()
        return Params(
            draw(k_x, (input_size, hidden_size), dtype),
            draw(k_h, (hidden_size, hidden_size), dtype),
            jnp.linspace(-2, 6, hidden_size, dtype=dtype),
        )

    def initial_state(batch_shape=(), dtype=jnp.float32):
        return State(jnp.zeros((*batch_shape, hidden_size), dtype))

    def step(params, state, x):
        a = jax.nn.sigmoid(params.leak)
        h = a * state.h + (1 - a) * jnp.tanh(x @ params.w_x + state.h @ params.w_h)
        return State(h), h

    return lstmjax.Cell(init, initial_state, step)


report = gradient_report({"leaky": leaky, "RNN": lstmjax.rnn}, data, hidden_size=32, seeds=3)
print(report.table())

# %% [markdown]
# Everything else takes it, too: `unroll` with lengths and masks, stacks, Jacobians, Lyapunov exponents.

# %%
cell = leaky(16)
params = cell.init(jax.random.key(0), 1)
norms = jacobian_norms(cell, params, series[:240], times=[239, 230, 140, 0])
for lag, log_norm in zip((1, 10, 100, 240), norms.operator["full"], strict=True):
    print(f"lag {lag:>3}: ‖∂h_T/∂h_t‖ = e^{log_norm:.2f}")

# %% [markdown]
# Next: [long sequences, many devices, weights from PyTorch](5_long_sequences.ipynb).
