"""A training run as a user's script, for the tests to kill, stop and start again: the same command every time."""

import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstmjax import training

STEPS, EVERY = 120, 20
SIZE = 4


def loss_fn(params, batch, key):
    noise = 0.01 * jax.random.uniform(key, batch["x"].shape)
    predicted = jnp.tanh((batch["x"] + noise) @ params["w"]) @ params["v"]
    return jnp.mean((predicted - batch["y"]) ** 2), {"x_sum": jnp.sum(batch["x"])}


def batches(rows, seed):
    """Shuffled batches whose position Grain keeps."""
    import grain

    x = np.random.default_rng(seed).normal(size=(96, SIZE)).astype(np.float32)
    items = [{"x": x[i], "y": np.sin(x[i])} for i in range(len(x))]
    return grain.MapDataset.source(items).seed(1).shuffle().repeat().batch(rows).to_iter_dataset()


def params(width=16):
    draw = np.random.default_rng(0).normal
    return {"w": jnp.asarray(draw(size=(SIZE, width)), jnp.float32), "v": jnp.zeros((width, SIZE))}


def slowed(rows, seed):
    """Batches at a pace at which the run can be caught in the middle."""
    pause = float(os.environ.get("PAUSE", "0"))
    iterator = iter(batches(rows, seed))

    class Slow:
        def __iter__(self):
            return self

        def __next__(self):
            time.sleep(pause)
            return next(iterator)

        get_state, set_state = iterator.get_state, iterator.set_state

    return Slow()


def main(directory):
    training.initialize_distributed(heartbeat_seconds=10)
    optimizer = optax.adam(1e-2)
    weights, sharding = params(int(os.environ.get("WIDTH", "16"))), None
    if jax.device_count() > 1:
        mesh = training.auto_mesh(data=-1)
        weights, sharding = training.shard_params(weights, mesh), training.batch_sharding(mesh, dim=0)
    state = training.init_state(weights, optimizer, jax.random.key(1))
    result = training.fit(
        state,
        training.make_train_step(loss_fn, optimizer, clip_norm=1.0),
        slowed(rows=8 // jax.process_count(), seed=jax.process_index()),
        steps=STEPS,
        steps_per_call=5,
        batch_sharding=sharding,
        checkpoints=training.Checkpoints(directory / "checkpoints", every=EVERY, keep_last=3),
        metrics=directory / "metrics.jsonl",
        callbacks=[training.probe(lambda p: {"w": jnp.abs(p["w"]).max()}, every=30)],
        progress=False,
    )
    if jax.process_index() == 0:
        final = result.state.params
        np.savez(directory / "final.npz", w=np.asarray(final["w"]), v=np.asarray(final["v"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
