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
# # 3. Training: the loan sentences and the two companies
#
# "Today, due to my current job situation and family conditions, I need to take a loan." "Last year, …, I had to take a
# loan." The verb depends on the first word. Put enough words between the two, and a network whose gradient does not reach
# the first word cannot learn it.

# %%
# %matplotlib inline
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lstmjax
from lstmjax import training
from lstmjax.gradients import adjoint_norms
from lstmjax.plot import Curve, gradient_decay
from lstmjax.tasks import LOAN_VOCABULARY, loan_sentences, loan_text

gap = 300
draw = loan_sentences(gap, batch_size=20)
short = loan_sentences(4, batch_size=4)(jax.random.key(2))
for b in range(4):
    print(loan_text(short.xs[:, b], short.targets[b]))

# %% [markdown]
# ## Who learns the verb?
#
# The same readout, optimiser and sentences for both cells; batches are drawn on the device, a hundred steps to a dispatch.

# %%
cells = {"tanh RNN": lstmjax.rnn(32), "LSTM chrono": lstmjax.lstm(32, b_init=lstmjax.init.chrono(gap + 13))}


def make_loss(cell):
    def loss_fn(params, batch, key):
        final, _ = lstmjax.unroll(cell, params["cell"], batch.xs)
        logits = final.h @ params["readout"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()
        return loss, {"right": (logits.argmax(-1) == batch.targets).mean()}

    return loss_fn


optimizer, trained = optax.adam(3e-3), {}
for name, cell in cells.items():
    key_cell, key_readout, key = jax.random.split(jax.random.key(0), 3)
    readout = jax.nn.initializers.lecun_normal()(key_readout, (32, 2))
    params = {"cell": cell.init(key_cell, len(LOAN_VOCABULARY)), "readout": readout}
    step = training.make_train_step(make_loss(cell), optimizer, clip_norm=1.0)
    state = training.init_state(params, optimizer, key)
    result = training.fit(state, step, draw, steps=500, steps_per_call=100, progress=False)
    trained[name] = params, result.state.params
    print(f"{name:<12} right in the last 100 steps: {result.history['right'][-100:].mean():.0%}")

# %% [markdown]
# ## Why
#
# The gradient of the verb's loss with respect to every earlier hidden state, before training and after. Before, the tanh
# RNN's is down to 1e-15 at the first word, and the LSTM's is not. After, the LSTM's is small as a whole, since its loss is,
# and still level; the RNN's reaches all the way now, but by a network at the edge of chaos that has not found the verb.

# %%
batch = draw(jax.random.key(1))
panels = {"before training": {}, "after": {}}
for name, cell in cells.items():
    for when, params in zip(panels, trained[name], strict=True):

        def loss(states, params=params):
            logits = states.h[-1] @ params["readout"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).sum()

        norms = np.asarray(adjoint_norms(cell, params["cell"], batch.xs, loss).h)[::-1].T
        panels[when][name] = Curve(np.arange(norms.shape[1]), norms / np.log(10))
gradient_decay(panels)

# %% [markdown]
# ## The two companies, as published
#
# One unit, squared error, Adam at 1e-3, A then B, five thousand epochs; in one compiled call.

# %%
from lstmjax.tasks import COMPANIES, INITIAL_WEIGHTS, company_values, slide_unit

unit = lstmjax.lstm(1)


def predict(params, xs):
    return lstmjax.unroll(unit, params, xs)[0].h[0]


step = training.make_train_step(lambda p, batch, key: ((predict(p, batch[0]) - batch[1]) ** 2, {}), optax.adam(1e-3))
days = [(company_values(name), jnp.float32(company.target)) for name, company in COMPANIES.items()]
in_order = jax.tree.map(lambda *leaves: jnp.stack(leaves), *days)
state = training.init_state(slide_unit(INITIAL_WEIGHTS), optax.adam(1e-3), jax.random.key(0))
epochs = jax.jit(lambda s: jax.lax.scan(lambda s, _: (jax.lax.scan(step, s, in_order)[0], None), s, length=5000)[0])
for when, at in (("before", state), ("after 5000 epochs", epochs(state))):
    print(f"{when:<18}" + "   ".join(f"{n}: {predict(at.params, company_values(n)):7.4f}" for n in COMPANIES))

# %% [markdown]
# ## Nothing is lost
#
# With a directory for checkpoints, the same command goes on where it was cut off, and ends in the same bits.

# %%
cell = cells["LSTM chrono"]
step = training.make_train_step(make_loss(cell), optimizer, clip_norm=1.0)
state = training.init_state(trained["LSTM chrono"][0], optimizer, jax.random.key(2))
directory = tempfile.mkdtemp()
options = {"steps_per_call": 20, "checkpoints": directory, "progress": False}
training.fit(state, step, draw, steps=40, **options)  # stopped here, and then, as if nothing had been:
again = training.fit(state, step, draw, steps=80, **options)
once = training.fit(state, step, draw, steps=80, steps_per_call=20, progress=False)
same = jax.tree.map(lambda a, b: bool((a == b).all()), again.state.params, once.state.params)
print("the same parameters, bit for bit:", all(jax.tree.leaves(same)))

# %% [markdown]
# Next: [your own experiment](4_your_own_experiment.ipynb).
