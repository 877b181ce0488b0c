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
# # 5. Long sequences, many devices, weights from PyTorch
#
# What a model needs when it leaves the laptop. A laptop has one device, so JAX is asked for four virtual ones, before
# anything else of it runs.

# %%
# %matplotlib inline
import tempfile

import jax

jax.config.update("jax_num_cpu_devices", 4)

import jax.numpy as jnp
import numpy as np
import optax

import lstmjax
from lstmjax import convert, training
from lstmjax.gradients import truncation_bias
from lstmjax.plot import Curve, bands
from lstmjax.tasks import seattle_temperatures

cell = lstmjax.lstm(64)
params = cell.init(jax.random.key(0), 16)
xs = jax.random.normal(jax.random.key(1), (4000, 32, 16))  # [T, batch, features]
print(f"{jax.device_count()} devices")

# %% [markdown]
# ## Memory
#
# Backpropagation keeps something of every step, so memory grows with T. `remat_block=50` keeps the state at the border of
# every fiftieth step, and computes the rest of a block again when the backward pass comes to it: one more forward pass,
# and next to nothing kept. The sizes are the compiler's own.

# %%
grow = np.array([1000, 2000, 4000])
curves, gradients = {}, []
for name, block in {"every step kept": None, "remat_block=50": 50}.items():

    def loss(params, xs, block=block):
        return (lstmjax.unroll(cell, params, xs, remat_block=block)[0].h ** 2).sum()

    programs = [jax.jit(jax.grad(loss)).lower(params, xs[:steps]).compile() for steps in grow]
    sizes = np.array([program.memory_analysis().temp_size_in_bytes / 1e6 for program in programs])
    curves[name] = Curve(grow, sizes[None])
    gradients.append(programs[0](params, xs[:1000]))
    print(f"{name:<16}" + "".join(f"   T = {t}: {size:6.2f} MB" for t, size in zip(grow, sizes, strict=True)))


def apart(a, b):
    """The largest difference between two trees."""
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


print(f"largest difference between the two gradients {apart(*gradients):.0e}")

# %%
bands({"gradient of an LSTM": curves}, xlabel="steps T", ylabel="memory (MB)", logarithmic=False)

# %% [markdown]
# ## Streaming
#
# A sequence without end is consumed in pieces: hand the final state of one piece to the next. With
# `implementation="scan"` the outputs are the same bits however it is cut; the faster default agrees to rounding.

# %%
for implementation in ("fused", "scan"):
    _, whole = lstmjax.unroll(cell, params, xs, implementation=implementation)
    state, pieces = None, []
    for piece in jnp.split(xs, 20):
        state, ys = lstmjax.unroll(cell, params, piece, state, implementation=implementation)
        pieces.append(ys)
    print(f"{implementation:<6} largest difference {apart(whole, jnp.concatenate(pieces)):.0e}")

# %% [markdown]
# ## Rows of their own length
#
# Padded batches say how long each row is. Padding is never looked at, not even a NaN in it; the final state is each row's
# after its own last step, and a row of length 0 keeps its initial state. `mask` skips any steps, not only the last ones.

# %%
xs = xs[:1000, :8]
short = jnp.array([1000, 700, 300, 50, 10, 2, 1, 0])
inside = jnp.arange(1000)[:, None] < short
padded = jnp.where(inside[..., None], xs, jnp.nan)
by_lengths, ys = lstmjax.unroll(cell, params, padded, lengths=short)
by_mask, _ = lstmjax.unroll(cell, params, padded, mask=inside)
alone, _ = lstmjax.unroll(cell, params, xs[:700, 1])
print("any NaN:", bool(jnp.isnan(ys).any()), "  largest output of the empty row:", float(jnp.abs(ys[:, 7]).max()))
print(f"largest difference of row 1 from the same row by itself {apart(by_lengths.h[1], alone.h):.0e}", end=", ")
print(f"of mask from lengths {apart(by_mask, by_lengths):.0e}")

# %% [markdown]
# ## Truncated backpropagation
#
# Or the gradient is cut: every window of 60 steps makes an update; the state crosses the border, and the gradient does
# not. Here on a year of hourly temperatures, eight stretches side by side. `resets` begins each pass over the year afresh.

# %%
hours = jnp.asarray(seattle_temperatures())[: 8 * 1080].reshape(8, 18, 60, 1).transpose(1, 2, 0, 3)  # [window, T, B, 1]
first = jnp.zeros((18, 60, 8), bool).at[0, 0].set(True)
forecaster = lstmjax.lstm(32)


def errors(weights, ys, xs):
    return ((ys[:-1] @ weights["readout"] - xs[1:, :, 0]) ** 2).mean()


def loss_fn(weights, carry, batch, key):
    xs, resets = batch
    carry, ys = lstmjax.unroll(forecaster, weights["lstm"], xs, carry, resets=resets)
    return errors(weights, ys, xs), (carry, {})


weights = {"lstm": forecaster.init(jax.random.key(0), 1), "readout": jnp.zeros(32)}
optimizer = optax.adam(3e-3)
step = training.make_tbptt_step(loss_fn, optimizer, clip_norm=1.0)
state = training.init_state(weights, optimizer, jax.random.key(1), carry=forecaster.initial_state((8,)))
year = jax.jit(lambda state: jax.lax.scan(step, state, (hours, first)))
for epoch in (1, 2, 3, 4):
    state, metrics = year(state)
    print(f"pass {epoch}: squared error an hour ahead {metrics['loss'].mean():.4f}")

# %% [markdown]
# What does the cut leave out? `truncation_bias` holds the truncated gradient next to the full one.

# %%
weeks = hours[:9].reshape(540, 8, 1)
trained = state.params
windows = [1, 5, 20, 60, 180]
bias = truncation_bias(forecaster, trained["lstm"], weeks, lambda states: errors(trained, states.h[1:], weeks), windows)
for window, error, cosine in zip(*bias[:3], strict=True):
    print(f"windows of {window:>3}: relative error {error:6.1%}, cosine of the angle {cosine:.3f}")

# %% [markdown]
# ## Many devices
#
# `auto_mesh` takes all devices there are, `batch_sharding` says that a batch is split over them, and `shard_params` puts
# a copy of the weights on each, or, by a rule, a part. JAX does the rest; the training loop stays as it was.


# %%
def copy_loss(params, xs, key):  # put out the first input at the end
    final, _ = lstmjax.unroll(cell, params, xs)
    return ((final.h[:, :16] - jnp.tanh(xs[0])) ** 2).mean(), {}


batches = list(np.random.default_rng(0).normal(size=(4, 20, 64, 16)).astype("float32"))
step = training.make_train_step(copy_loss, optimizer, clip_norm=1.0)
one, every = (training.auto_mesh(devices, data=-1) for devices in (jax.devices()[:1], jax.devices()))
split = training.fsdp_rule(every, at_least=1000)
for name, mesh, rule in (("one device", one, None), ("all", every, None), ("all, weights split", every, split)):
    state = training.init_state(training.shard_params(params, mesh, rule), optimizer, jax.random.key(2))
    sharding = training.batch_sharding(mesh)
    result = training.fit(state, step, batches, steps=20, batch_sharding=sharding, progress=False)
    w_h = result.state.params.w_h
    print(f"{name:<19} loss {result.history['loss'][-1]:.6f}", end="   ")
    print(f"w_h {w_h.shape}, on every device {w_h.addressable_shards[0].data.shape}")

# %% [markdown]
# Over several processes it is the same script, with one line in front, before anything else of JAX:
#
# ```python
# training.initialize_distributed()  # does nothing in a single process
# ```
#
# Under SLURM, `srun` tells each process who it is. `--signal` gives a run that is about to be stopped a minute to save a
# checkpoint, from which the same command goes on.
#
# ```sh
# #SBATCH --nodes=4 --ntasks-per-node=8 --gpus-per-task=1
# #SBATCH --signal=TERM@60 --requeue
# srun --kill-on-bad-exit=1 python train.py
# ```
#
# Without a launcher, three variables do; here two processes on one machine:
#
# ```sh
# export JAX_COORDINATOR_ADDRESS=localhost:1234 JAX_NUM_PROCESSES=2
# JAX_PROCESS_ID=0 python train.py & JAX_PROCESS_ID=1 python train.py
# ```

# %% [markdown]
# ## Weights from PyTorch
#
# `from_torch` takes the `state_dict` of a `torch.nn.LSTM`, `GRU` or `RNN`, tensors or arrays, and gives a stack of layers.
# These arrays are laid out as that of `torch.nn.LSTM(8, 16, num_layers=2)`:

# %%
rng = np.random.default_rng(0)
state_dict = {}
for layer, inputs in enumerate((8, 16)):
    shapes = {"weight_ih": (64, inputs), "weight_hh": (64, 16), "bias_ih": (64,), "bias_hh": (64,)}
    state_dict |= {f"{name}_l{layer}": rng.uniform(-0.25, 0.25, s).astype("float32") for name, s in shapes.items()}

layers = [lstmjax.lstm(16), lstmjax.lstm(16)]
stack = convert.from_torch(state_dict)
inputs = rng.normal(size=(50, 4, 8)).astype("float32")
_, ys = lstmjax.unroll_stack(layers, stack, inputs)
print([jax.tree.map(jnp.shape, layer) for layer in stack])

try:
    import torch
except ImportError:
    print("PyTorch is not installed here, so nothing is compared")
else:
    module = torch.nn.LSTM(8, 16, num_layers=2)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict.items()})
    theirs = module(torch.from_numpy(inputs))[0].detach().numpy()
    print(f"largest difference from PyTorch's outputs {apart(ys, theirs):.0e}")

# %% [markdown]
# Files in the safetensors format go both ways under PyTorch's names; there,
# `module.load_state_dict(safetensors.torch.load_file(path))`.

# %%
path = tempfile.mkdtemp() + "/lstm.safetensors"
convert.save_safetensors(stack, path)
print("the same weights back:", apart(convert.load_safetensors(path), stack) == 0)
print(*(f"{name} {array.shape}" for name, array in convert.to_torch(stack).items()), sep=", ")
