"""Runs that are cut off: killed, stopped, out of disk, gone wrong; and go on as if nothing had been."""

import concurrent.futures
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstmjax import training
from lstmjax.training.checkpoints import Store
from lstmjax.training.fingerprints import fingerprints
from tests import train_script
from tests.test_training import OPTIMIZER, STEP, draw_batch, fresh

ROOT = Path(__file__).parents[1]
EVERY = train_script.EVERY


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def start(directory, cache, **environment):
    """The script as a process of its own; compiled programs are kept between the many runs of it."""
    directory.mkdir(exist_ok=True)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **{name: str(value) for name, value in environment.items()},
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "tests/train_script.py"), str(directory)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=directory)


def finish(process, code=0):
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return err


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.0005)


def lines(directory):
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def steps_in(directory):
    return sorted(int(p.name) for p in Path(directory).iterdir() if p.name.isdigit())


def timeless(path):
    """The bytes of a file of metrics without the time at which each line was written."""
    return re.sub(rb'"time": [0-9.]+, ', b"", path.read_bytes())


def same_run(directory, whole):
    assert timeless(directory / "metrics.jsonl") == timeless(whole / "metrics.jsonl")
    with np.load(directory / "final.npz") as a, np.load(whole / "final.npz") as b:
        assert sorted(a) == sorted(b)
        for name in a:
            np.testing.assert_array_equal(a[name].view(np.uint32), b[name].view(np.uint32))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    directory = tmp_path_factory.mktemp("whole")
    finish(start(directory, cache))
    return directory


@pytest.mark.slow
class TestKilled:
    def test_at_random_moments(self, whole, cache, tmp_path):
        """Killed at four random steps, and in two checkpoint writes; the seventh start runs to the end."""
        moments, began = random.Random(0), []
        for attempt in range(6):
            process, before = start(tmp_path, cache, PAUSE=0.004), lines(tmp_path)
            if attempt in (1, 4):
                wait_for(lambda: any((tmp_path / "checkpoints").glob("*tmp*")), process)
            else:
                target = before + moments.randrange(1, 30)
                wait_for(lambda: lines(tmp_path) >= target or process.poll() is not None, process)  # noqa: B023
                time.sleep(moments.random() * 0.05)
            process.kill()
            began.append(finish(process, -signal.SIGKILL))
        began.append(finish(start(tmp_path, cache)))
        assert sum("going on from step" in err for err in began) >= 2
        same_run(tmp_path, whole)
        assert not list((tmp_path / "checkpoints").glob("*tmp*"))

    def test_within_a_long_write(self, whole, cache, tmp_path):
        """What a kill inside a write leaves, at its worst: the temporary directory, and half a line."""
        process = start(tmp_path, cache, PAUSE=0.004)
        wait_for(lambda: (tmp_path / "checkpoints" / str(EVERY)).exists(), process)
        process.kill()
        finish(process, -signal.SIGKILL)
        kept = max(steps_in(tmp_path / "checkpoints"))
        partial = tmp_path / "checkpoints" / f"{kept + EVERY}.orbax-checkpoint-tmp"
        (partial / "state").mkdir(parents=True, exist_ok=True)
        (partial / "state" / "manifest.ocdbt").write_bytes(b"half")
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 9')
        err = finish(start(tmp_path, cache))
        assert f"going on from step {kept}" in err
        same_run(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_so_and_the_run_goes_on(number, code, whole, cache, tmp_path):
    process = start(tmp_path, cache, PAUSE=0.01)
    wait_for(lambda: lines(tmp_path) >= 7, process)
    process.send_signal(number)
    err = finish(process, code)
    assert f"lstmjax: {number.name}: stopped after step" in err
    saved = max(steps_in(tmp_path / "checkpoints"))
    assert saved % 5 == 0
    assert f"the last checkpoint is step {saved} in" in err
    assert training.read_jsonl(tmp_path / "metrics.jsonl")[-1]["step"] == saved
    finish(start(tmp_path, cache))
    same_run(tmp_path, whole)


def fit(directory, steps=40, state=None, **options):
    directory = Path(directory)
    settings = {"every": 10, "keep_last": 3, **options.pop("checkpoints", {})}
    return training.fit(
        fresh() if state is None else state, options.pop("step", STEP), options.pop("batches", draw_batch),
        steps=steps, steps_per_call=5, checkpoints=training.Checkpoints(directory / "c", **settings),
        metrics=directory / "m.jsonl", progress=False, **options,
    )  # fmt: skip


class Source:
    """What Grain's loader reads from."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __repr__(self):
        return "Source()"  # by which Grain knows it again


class TestResumed:
    @pytest.mark.parametrize(
        "kind", ["drawn", "list", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dataset", "loader"))]
    )
    def test_every_kind_of_batches(self, kind, tmp_path):
        import grain

        data = [np.asarray(draw_batch(jax.random.key(i))) for i in range(7)]
        batches = {
            "drawn": lambda: draw_batch,
            "list": lambda: data,
            "dataset": lambda: grain.MapDataset.source(data).seed(3).shuffle().repeat(),
            "loader": lambda: grain.DataLoader(
                data_source=Source(data),
                sampler=grain.samplers.IndexSampler(len(data), shuffle=True, seed=3, num_epochs=None),
            ),
        }[kind]
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        once = fit(whole, batches=batches())
        fit(parts, steps=20, batches=batches())
        twice = fit(parts, batches=batches())
        chex.assert_trees_all_equal(twice.state.params, once.state.params)
        chex.assert_trees_all_equal(twice.state.opt_state, once.state.opt_state)
        assert timeless(parts / "m.jsonl") == timeless(whole / "m.jsonl")
        assert twice.history["step"][0] == 21

    def test_early_stopping_remembers(self, tmp_path):
        calls = itertools.count(1)

        def evaluate(params):
            return {"loss": abs(next(calls) - 2.0)}  # 1, 0, 1, 2, 3, …

        def run(steps):
            stopping = training.EarlyStopping(patience=3)
            return fit(tmp_path, steps, evaluate=evaluate, evaluate_every=5, early_stopping=stopping)

        assert not run(20).stopped_early
        assert int(run(100).state.step) == 25
        again = run(100)  # the same command once more: it had stopped, and stays stopped
        assert again.stopped_early
        assert again.history["loss"].shape == (0,)

    def test_a_finished_run_is_finished_and_says_so(self, tmp_path, capsys):
        first = fit(tmp_path, 10)
        again = fit(tmp_path, 10)
        chex.assert_trees_all_equal(again.state.params, first.state.params)
        assert again.history["step"].shape == again.history["loss"].shape == (0,)
        assert f"lstmjax: already at step 10 in {tmp_path / 'c'}; nothing to do" in capsys.readouterr().err


class TestKept:
    def test_the_best_and_the_last(self, tmp_path):
        losses = iter([5.0, 3.0, 1.0, 4.0, 2.0, 6.0, 7.0, 8.0])
        result = fit(
            tmp_path, evaluate=lambda params: {"loss": next(losses)}, evaluate_every=5,
            checkpoints={"keep_last": 1, "keep_best": 1},
        )  # fmt: skip
        assert steps_in(tmp_path / "c") == [15, 40]
        best, last = (training.load_state(tmp_path / "c", fresh(), which) for which in ("best", None))
        assert (int(best.step), int(last.step)) == (15, 40)
        chex.assert_trees_all_equal(last.params, result.state.params)

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("parts", [(20,), (10, 20)])
    def test_a_nan_is_never_best(self, sign, parts, tmp_path):
        """Also where the NaN is the last value before a restart."""
        values = iter([1.0, np.nan, 2.0, 3.0])
        for steps in parts:
            fit(
                tmp_path, steps, evaluate=lambda params: {"loss": sign * next(values)}, evaluate_every=5,
                checkpoints={"every": 5, "keep_last": 1, "keep_best": 1, "mode": "min" if sign == 1 else "max"},
            )  # fmt: skip
        assert steps_in(tmp_path / "c") == [5, 20]
        assert int(training.load_state(tmp_path / "c", fresh(), "best").step) == 5

    def test_where_all_are_nan_there_is_no_best(self, tmp_path):
        fit(
            tmp_path, 10, evaluate=lambda params: {"loss": np.float32(np.nan)}, evaluate_every=5,
            checkpoints={"keep_best": 1},
        )  # fmt: skip
        with pytest.raises(training.CheckpointError, match="has an evaluation; wanted one kept with keep_best"):
            training.load_state(tmp_path / "c", fresh(), "best")

    def test_an_infinite_one_is_better_than_none(self, tmp_path):
        store = Store(training.Checkpoints(tmp_path, keep_last=1, keep_best=1))
        for step, value in ((1, np.inf), (2, np.nan), (3, None)):
            store.save(step, fresh(), {}, value)
        store.close()
        assert steps_in(tmp_path) == [1, 3]
        assert int(Store(training.Checkpoints(tmp_path), read_only=True).restore(fresh(), "best").step) == 1

    def test_everything_of_the_state(self, tmp_path):
        key = jax.random.PRNGKey(5)
        state = training.init_state({"w": jnp.ones(3, jnp.bfloat16)}, optax.adam(1e-3), key, (jnp.arange(3), None))
        store = Store(training.Checkpoints(tmp_path))
        store.save(1, state, {})
        store.close()
        chex.assert_trees_all_equal(training.load_state(tmp_path, state), state)

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(training.CheckpointError, match="there is no checkpoint in"):
            training.load_state(tmp_path, fresh())
        fit(tmp_path, 10)
        with pytest.raises(training.CheckpointError, match=r"no checkpoint of step 7 .* there are \[10\]"):
            training.load_state(tmp_path / "c", fresh(), 7)
        with pytest.raises(training.CheckpointError, match="has an evaluation; wanted one kept with keep_best"):
            training.load_state(tmp_path / "c", fresh(), "best")

    def test_of_a_store_that_cannot_be_had(self, tmp_path, monkeypatch):
        """Before the first step, and nothing is left behind."""
        monkeypatch.chdir(tmp_path)
        file = tmp_path / "file"
        file.touch()

        def untouched(state, batch):
            raise AssertionError("a step was made")

        for place in (file, file / "below", "/proc", "gs://a-bucket-of-nobody/run", "s3://a-bucket-of-nobody/run"):
            with pytest.raises(training.CheckpointError, match=f"checkpoints.directory is '{place}', which cannot be"):
                training.fit(fresh(), untouched, draw_batch, steps=1, checkpoints=place, progress=False)
        with pytest.raises(ValueError, match=r"checkpoints.directory is 'ftp://host/run'; wanted a directory of this"):
            training.fit(fresh(), untouched, draw_batch, steps=1, checkpoints="ftp://host/run", progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_several_runs_in_threads(self, tmp_path):
        def run(name):
            return fit(tmp_path / name, checkpoints={"every": 5})

        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            results = list(threads.map(run, "abc"))
        for name, result in zip("abc", results, strict=True):
            restored = training.load_state(tmp_path / name / "c", fresh())
            chex.assert_trees_all_equal(restored.params, result.state.params, results[0].state.params)

    def test_another_model_is_not_damage(self, tmp_path):
        fit(tmp_path, 10)
        other = training.init_state({"w": jnp.ones(3)}, OPTIMIZER, jax.random.key(0))
        with pytest.raises(
            training.CheckpointMismatchError,
            match=r"checkpoint of step 10 has .* at state.*, and this run has nothing there; wanted the model",
        ):
            fit(tmp_path, 20, state=other)
        assert steps_in(tmp_path / "c") == [10]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def damage_data(checkpoint):
    flip(max((checkpoint / "state").glob("**/d/*"), key=lambda p: p.stat().st_size))


def damage_about(checkpoint):
    path = checkpoint / "about" / "metadata"
    path.write_text(path.read_text().replace('"taken": 0', '"taken": 1').replace('"step": 20', '"step": 21'))


def damage_by_loss(checkpoint):
    for path in (checkpoint / "state").glob("**/d/*"):
        path.unlink()


# What Orbax's threads and loops throw away, once it has been reported.
reported = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)


@reported
class TestDamaged:
    @pytest.mark.parametrize("damage", [damage_data, damage_about, damage_by_loss])
    def test_the_one_before_it_is_used(self, damage, tmp_path, capsys):
        whole, other = tmp_path / "whole", tmp_path / "other"
        once = fit(whole)
        fit(other, steps=20)
        damage(other / "c" / "20")
        twice = fit(other)
        said = capsys.readouterr().err
        assert f"checkpoint {other / 'c' / '20'} is damaged" in said
        assert "going on from step 10" in said
        assert steps_in(other / "c" / "damaged") == [20]
        chex.assert_trees_all_equal(twice.state.params, once.state.params)
        assert timeless(other / "m.jsonl") == timeless(whole / "m.jsonl")

    def test_all_of_them(self, tmp_path, capsys):
        fit(tmp_path, 20)
        for step in steps_in(tmp_path / "c"):
            damage_by_loss(tmp_path / "c" / str(step))
        with pytest.raises(training.CheckpointError, match=r"steps \[20, 10\] are damaged.*begins at step 0"):
            fit(tmp_path)
        assert int(fit(tmp_path).state.step) == 40

    def test_one_changed_bit_in_the_values(self, tmp_path, monkeypatch):
        state = fresh()
        before = fingerprints(state)
        for dtype in (jnp.float32, jnp.bfloat16, jnp.int8, jnp.bool_, jnp.complex64):
            ones = jnp.ones((2, 3), dtype)
            assert fingerprints(ones) != fingerprints(ones.at[1, 1].set(jnp.zeros((), dtype)))
            assert fingerprints(ones) != fingerprints(jnp.ones((3, 3), dtype))
        assert fingerprints(state) == before
        mesh = training.auto_mesh(data=-1)
        assert fingerprints(training.shard_params(state.params, mesh)) == fingerprints(state.params)


@reported
class TestFullDisk:
    def test_of_a_checkpoint(self, tmp_path, capsys):
        """A limit on the size of files stands in for a disk that is full: the large checkpoint no longer fits."""
        fit(tmp_path, 10)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill(step, state):
            if step == 15:
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))

        try:
            with pytest.raises((training.CheckpointError, OSError)) as caught:
                training.fit(
                    fresh(), STEP, draw_batch, steps=40, steps_per_call=5, progress=False, callbacks=[fill],
                    checkpoints=training.Checkpoints(tmp_path / "c", every=10),
                )  # fmt: skip
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "the checkpoint of step 20 could not be written" in str(caught.value)
        assert f"the last checkpoint is step 10 in {tmp_path / 'c'}" in str(caught.value)
        assert "stopped by CheckpointError" in capsys.readouterr().err
        assert int(training.load_state(tmp_path / "c", fresh()).step) == 10
        assert int(fit(tmp_path).state.step) == 40

    def test_of_the_metrics(self, tmp_path, monkeypatch, capsys):
        write = training.JSONLines.write

        def full(self, record):
            if record["step"] == 18:
                raise OSError(28, "No space left on device")
            write(self, record)

        monkeypatch.setattr(training.JSONLines, "write", full)
        with pytest.raises(OSError, match="No space left"):
            fit(tmp_path)
        monkeypatch.undo()
        assert "stopped by OSError; the last checkpoint is step 10 in" in capsys.readouterr().err
        assert training.read_jsonl(tmp_path / "m.jsonl")[-1]["step"] == 17
        assert int(fit(tmp_path).state.step) == 40
        assert [r["step"] for r in training.read_jsonl(tmp_path / "m.jsonl")] == list(range(1, 41))


class TestNotFinite:
    @staticmethod
    def step_that_fails(at):
        def step(state, batch):
            state, metrics = STEP(state, batch)
            bad = state.step == at
            params = jax.tree.map(lambda p: jnp.where(bad, jnp.nan, p), state.params)
            return state._replace(params=params), {**metrics, "loss": jnp.where(bad, jnp.nan, metrics["loss"])}

        return step

    def test_stops_names_the_step_and_saves_nothing_of_it(self, tmp_path, capsys):
        with pytest.raises(FloatingPointError, match=r"loss is nan at step 20; the last checkpoint is step 10 in .*c;"):
            fit(tmp_path, step=self.step_that_fails(20))
        assert "lstmjax: stopped by FloatingPointError" in capsys.readouterr().err
        assert steps_in(tmp_path / "c") == [10]
        last = json.loads((tmp_path / "m.jsonl").read_text().splitlines()[-1])
        assert (last["step"], last["loss"]) == (20, None)
        assert int(fit(tmp_path).state.step) == 40  # mended, the same command goes on

    def test_parameters_that_no_metric_gave_away(self, tmp_path):
        def step(state, batch):
            state, metrics = STEP(state, batch)
            return state._replace(
                params=jax.tree.map(lambda p: p / (state.step < 15).astype(p.dtype), state.params)
            ), metrics

        with pytest.raises(FloatingPointError, match=r"w_x.* is not finite at step|is nan at step"):
            fit(tmp_path, step=step)
        assert steps_in(tmp_path / "c") == [10]
