"""Several devices and several processes: the same run, and what happens when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from lstmjax import training
from tests.test_checkpoints import ROOT, lines, start, steps_in, wait_for

DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import PartitionSpec as P
import lstmjax
from lstmjax import training

directory = sys.argv[1]
cell, optimizer = lstmjax.rnn(16), optax.sgd(1e-2, momentum=0.9)

def loss_fn(params, xs, key):
    _, ys = lstmjax.unroll(cell, params, xs, implementation="scan")
    return jnp.mean((ys[-1, :, :2] - jnp.tanh(xs[0])) ** 2), {}

def draw(key):
    return jax.random.uniform(key, (5, 16, 2))

step = training.make_train_step(loss_fn, optimizer, clip_norm=0.05)
curves, specs = {}, {}

def run(name, devices, rule, batches, steps=20, **options):
    mesh = training.make_mesh(devices, data=-1)
    params = training.shard_params(cell.init(jax.random.key(0), 2), mesh, rule and rule(mesh))
    state = training.init_state(params, optimizer, jax.random.key(1))
    result = training.fit(state, step, batches, steps=steps, steps_per_call=10, progress=False,
                          batch_sharding=training.batch_sharding(mesh), **options)
    curves[name] = result.history["loss"].tolist() if result.history else []
    specs[name] = [str(result.state.params.w_h.sharding.spec), str(result.state.opt_state[0].trace.w_h.sharding.spec)]
    return result.state

split = lambda mesh: training.split_largest(mesh, at_least=1)
for n in (1, 2, 8):
    run(f"drawn on {n}", jax.devices()[:n], None, draw)
data = [np.asarray(draw(jax.random.key(i))) for i in range(3)]
run("given on 1", jax.devices()[:1], None, data)
run("given on 8", jax.devices(), None, data)
run("split over 8", jax.devices(), split, draw)
# Saved by eight devices that share the parameters, gone on with by one.
half = run("first half", jax.devices(), split, draw, steps=10, checkpoints=directory)
run("second half", jax.devices()[:1], None, draw, checkpoints=directory)
print(json.dumps({"curves": curves, "specs": specs}))
"""


@pytest.mark.slow
def test_one_two_and_eight_devices_have_the_same_curve(tmp_path):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DEVICES, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    curves, specs = found["curves"], found["specs"]
    for name in ("drawn on 2", "drawn on 8", "split over 8"):
        np.testing.assert_allclose(curves[name], curves["drawn on 1"], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(curves["given on 8"], curves["given on 1"], rtol=1e-4)
    np.testing.assert_allclose(curves["first half"] + curves["second half"], curves["drawn on 1"], rtol=1e-4)
    assert len(curves["second half"]) == 10
    assert "data" in specs["split over 8"][0]
    assert "data" in specs["split over 8"][1]
    assert "data" not in specs["drawn on 8"][0]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_two(directory, cache, **environment):
    address = f"127.0.0.1:{free_port()}"
    return [
        start(directory, cache, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=2, JAX_PROCESS_ID=i, **environment)
        for i in range(2)
    ]


def finish_two(processes):
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return said


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    directory = tmp_path_factory.mktemp("whole")
    finish_two(start_two(directory, cache))
    return directory


@pytest.mark.slow
def test_of_two_processes_one_is_killed(whole, cache, tmp_path):
    """First the one, then, gone on from the checkpoint, the other, which leads; then to the end."""
    for killed, at in ((1, 35), (0, 75)):
        processes = start_two(tmp_path, cache, PAUSE=0.01)
        try:
            wait_for(lambda: lines(tmp_path) >= at, processes[0])  # noqa: B023
            processes[killed].kill()
            said = processes[1 - killed].communicate(timeout=60)[1]
            assert processes[1 - killed].returncode != 0
            # Where it hears of it before the computation does, JAX ends the process itself.
            ours, jaxs = "another process of this run is gone", "most likely indicates that another task died"
            assert ours in said or jaxs in said, said
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    kept = max(steps_in(tmp_path / "checkpoints"))
    said = finish_two(start_two(tmp_path, cache))
    assert f"going on from step {kept}" in said[0]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    with np.load(tmp_path / "final.npz") as a, np.load(whole / "final.npz") as b:
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
def test_two_processes_agree_where_to_stop(whole, cache, tmp_path):
    """A signal to one of them stops both, after the same step."""
    processes = start_two(tmp_path, cache, PAUSE=0.01)
    wait_for(lambda: lines(tmp_path) >= 7, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], "\n".join(said)
    saved = max(steps_in(tmp_path / "checkpoints"))
    assert f"SIGTERM: stopped after step {saved}" in said[0]
    finish_two(start_two(tmp_path, cache))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_half_a_launcher(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    message = "has JAX_PROCESS_ID and not JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES; wanted all three, or none"
    with pytest.raises(ValueError, match=message):
        training.start_processes()


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # inside the batch script, before srun
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_a_launcher_is_recognised(variables, joins, monkeypatch):
    calls = []
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **limits: calls.append(limits))
    monkeypatch.setattr(type(jax.config), "update", lambda self, name, value: None)
    training.start_processes(heartbeat_seconds=7)
    wanted = {"heartbeat_timeout_seconds": 7, "shutdown_timeout_seconds": 7}
    assert calls == ([wanted] if joins else [])
