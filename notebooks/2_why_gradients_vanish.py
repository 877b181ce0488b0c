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
# # 2. Why gradients vanish and explode
#
# A weight learns from the derivative of the loss with respect to it, and the chain rule makes of that a product. Over two
# layers, $d_1 d_2$: if they are 0.03 and 0.05, the gradient is 0.0015. Over $n$ layers it is $d_1 d_2 d_3 \cdots d_n$.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import numpy as np

import lstmjax
from lstmjax.gradients import (
    adjoint_norms,
    cell_highway,
    decay_fit,
    depth_norms,
    feed_forward,
    lyapunov_spectrum,
)
from lstmjax.plot import Curve, bands, gradient_decay

print(f"0.03 · 0.05 = {0.03 * 0.05:.4f}    0.5^50 = {0.5**50:.2e}    2^50 = {2.0**50:.3e}")

# %% [markdown]
# ## Depth
#
# Thirty layers, each $y \leftarrow \varphi(y W + b)$. The logistic function's slope is at most 1/4, so every layer costs at least that; the
# first layers' weights hardly change, and the network hardly learns.

# %%
x = jax.random.normal(jax.random.key(1), (64, 32))
curves = {}
for name, activation in {"logistic": jax.nn.sigmoid, "tanh": jnp.tanh, "ReLU": jax.nn.relu}.items():
    init, apply = feed_forward(depth=30, width=32, activation=activation)
    norms = depth_norms(lambda p, apply=apply: ((apply(p, x) - 1) ** 2).mean(), init(jax.random.key(0)))
    curves[name] = Curve(np.arange(30), np.asarray(norms.relative_change)[None, ::-1] / np.log(10))
    moved = np.exp(norms.relative_change[0])
    print(f"{name:<9} a step of gradient descent moves the first layer's weights by {moved:.0e} of their size")

# %%
bands({"depth": curves}, xlabel="layers below the output", ylabel="relative change of the weights")

# %% [markdown]
# ## Time
#
# A recurrent network is as deep as its sequence is long, and its layers all have the same weights. Here are three cells on
# the same white noise, a loss that reads the last hidden state, and one backward pass for all lags.

# %%
xs = jax.random.normal(jax.random.key(0), (200, 8, 16))  # [T, batch, features]
cells = {
    "tanh RNN": lstmjax.rnn(64),
    "LSTM $b_f$=1": lstmjax.lstm(64, forget_bias=1.0),
    "LSTM chrono": lstmjax.lstm(64, b_init=lstmjax.init.chrono(200)),
}
lags, curves = np.arange(201), {}
for name, cell in cells.items():
    params = cell.init(jax.random.key(1), 16)
    norms = adjoint_norms(cell, params, xs, lambda states: (states.h[-1] ** 2).sum())
    log_norms = np.asarray(norms.h)[::-1].T  # [batch, lag]
    fit = decay_fit(lags.astype(np.float32), log_norms.mean(0))
    curves[name] = Curve(lags, log_norms / np.log(10))
    print(f"{name.replace('$', ''):<12} halves every {fit.half_life:8.2f} steps   R² {fit.r2:.3f}")

# %%
gradient_decay({"white noise": curves})

# %% [markdown]
# Explosion is the same product with factors above 1. With hardly any input, a tanh network whose recurrent weights have
# norm 1.5 is chaotic: its leading Lyapunov exponent is positive, and gradients grow by that much a step.

# %%
for scale in (0.5, 1.0, 1.5):
    cell = lstmjax.rnn(64, w_h_init=lstmjax.init.orthogonal(scale))
    params = cell.init(jax.random.key(1), 16)
    exponent = lyapunov_spectrum(cell, params, 0.01 * xs[:, 0], leading=1, burn_in=50)[0]
    print(f"‖W_h‖ = {scale}:  ln of the growth a step {exponent:+.3f}   (bound: ln {scale} = {np.log(scale):+.3f})")

# %% [markdown]
# ## The highway
#
# Along the LSTM's long-term memory there are no weights: $\partial c_T/\partial c_t$ is the product of the forget gates, $\prod f$, plus all that
# leaves $c$ for the gates and comes back. Without recurrent weights the product is all there is, and its rate is $\ln \sigma(b_f)$.

# %%
highway = lstmjax.lstm(64, forget_bias=1.0, w_h_init=jax.nn.initializers.zeros)
params = highway.init(jax.random.key(1), 16)
norms = adjoint_norms(highway, params, 0 * xs, lambda states: states.h[-1].sum())
rate = float(norms.c[0, 0] - norms.c[199, 0]) / 199
print(f"measured {rate:.6f}, ln σ(1) = {np.log(1 / (1 + np.exp(-1))):.6f}")

# %% [markdown]
# With them, the gates carry a share, and at long lags nearly all of it:

# %%
cell = lstmjax.lstm(32)
parts = cell_highway(cell, cell.init(jax.random.key(1), 16), xs[:, 0])
for lag in (1, 2, 5, 20, 100):
    print(f"lag {lag:>3}: ln ‖∏ f‖ = {parts.highway[-1 - lag]:7.2f}, the gates' share is {parts.share[-1 - lag]:.0%}")

# %% [markdown]
# What decides all this, measured at length, is in the [benchmarks](../benchmarks/README.md). Next:
# [training](3_training.ipynb), where what cannot be felt is not learned.
