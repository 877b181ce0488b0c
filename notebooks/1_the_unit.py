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
# # 1. The unit
#
# A long short-term memory unit keeps two memories. The *long-term memory* (cell state, c) runs along the top of the unit,
# and meets one multiplication and one addition a step. The *short-term memory* (hidden state, h) goes through the weights.
# Everything else decides percentages: how much of the long-term memory to remember, how much to add to it, and how much
# of it to show.
#
# Two functions do that. The sigmoid turns any number into a percentage, between 0 and 1; tanh turns any number into one
# between −1 and 1.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp

from lstmjax import lstm_step
from lstmjax.cells import LSTMState
from lstmjax.drawing import memory_diagram, unit_diagram
from lstmjax.explain import explain_sequence, explain_step, format_explanation, format_sequence
from lstmjax.tasks.companies import COMPANIES, company_values, slide_unit

for z in (-5.0, -1.0, 0.0, 1.0, 5.0):
    print(f"z = {z:4.0f}   sigmoid {jax.nn.sigmoid(z):.4f}   tanh {jnp.tanh(z):7.4f}")

# %% [markdown]
# ## One step, by hand
#
# One unit with one input: a weight for the short-term memory, a weight for the input and a bias, four times over. It
# starts with a long-term memory of 2, a short-term memory of 1, and reads an input of 1.

# %%
params = slide_unit()
memory = LSTMState(c=jnp.array([2.0]), h=jnp.array([1.0]))
step = explain_step(params, memory, jnp.array([1.0]))
print(format_explanation(step))

# %%
unit_diagram(step)

# %% [markdown]
# The forget gate read 5.95 and made 99.7 % of it: the long-term memory is kept nearly whole. The candidate, 0.966, is
# added nearly whole, too, for a new long-term memory of 2.95; and 99.2 % of its tanh is the unit's output. The function
# that does this in the library is one line to call:

# %%
memory, output = lstm_step(params, memory, jnp.array([1.0]))
print(f"long-term {memory.c[0]:.6f}, short-term {memory.h[0]:.6f}")

# %% [markdown]
# An input of −10 instead makes the candidate as negative as it can be:

# %%
negative = explain_step(params, LSTMState(c=jnp.array([2.0]), h=jnp.array([1.0])), jnp.array([-10.0]))
print(f"candidate: tanh({negative.candidate.z:.2f}) = {negative.candidate.value:.3f}")

# %% [markdown]
# ## Four days of two companies
#
# The share values of companies A and B differ on day 1 alone, and on day 5 they differ again: what the unit says of day 5
# has to come from day 1. These weights were trained to do that.

# %%
days = {name: explain_sequence(params, company_values(name)) for name in COMPANIES}
for name, sequence in days.items():
    print(f"Company {name}: day 5 is predicted as {sequence.new_h[-1]:.4f}; it was {COMPANIES[name].target:g}\n")
    print(format_sequence(sequence, step="day"), "\n")

# %%
memory_diagram(
    {f"company {n}": s for n, s in days.items()},
    step="day",
    targets={f"company {n}": c.target for n, c in COMPANIES.items()},
)

# %% [markdown]
# Next: [why gradients vanish](2_why_gradients_vanish.ipynb), and why the line along the top of the unit helps.
