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
# # Does the gradient survive the lag?
#
# A gradient that travels back through n steps is a product of n derivatives, d1 · d2 · … · dn. Fifty of them at 0.5
# leave 8.9e-16; fifty at 2 make 1.1e15. Here is the same product inside three recurrent cells.

# %%
import jax
import numpy as np

import lstmjax
from lstmjax.gradients import adjoint_norms, decay_fit
from lstmjax.plot import Curve, gradient_decay

0.5**50, 2.0**50

# %% [markdown]
# The same white noise for every cell, a loss that reads the last hidden state, and one backward pass for all lags.

# %%
xs = jax.random.normal(jax.random.key(0), (200, 8, 16))  # [T, batch, features]
cells = {
    "tanh RNN": lstmjax.rnn(64),
    "LSTM b_f=1": lstmjax.lstm(64, forget_bias=1.0),
    "LSTM chrono": lstmjax.lstm(64, b_init=lstmjax.init.chrono(200)),
}
lags = np.arange(201)
curves = {}
for name, cell in cells.items():
    params = cell.init(jax.random.key(1), 16)
    norms = adjoint_norms(cell, params, xs, lambda states: (states.h[-1] ** 2).sum())
    log_norms = np.asarray(norms.h)[::-1].T  # [batch, lag]
    fit = decay_fit(lags.astype(np.float32), log_norms.mean(0))
    curves[name] = Curve(lags, log_norms / np.log(10))
    print(f"{name:<12} halves every {fit.half_life:8.2f} steps   R² {fit.r2:.3f}")

# %%
gradient_decay({"white noise": curves})

# %% [markdown]
# Without recurrent weights, nothing is left of the LSTM but its highway, ∂c_T/∂c_t = ∏ f: the cell state decays as
# σ(b_f) to the power of the lag.

# %%
highway = lstmjax.lstm(64, forget_bias=1.0, w_h_init=jax.nn.initializers.zeros)
params = highway.init(jax.random.key(1), 16)
norms = adjoint_norms(highway, params, 0 * xs, lambda states: states.h[-1].sum())
rate = float(norms.c[0, 0] - norms.c[199, 0]) / 199
print(f"measured {rate:.6f}, ln σ(1) = {np.log(1 / (1 + np.exp(-1))):.6f}")
