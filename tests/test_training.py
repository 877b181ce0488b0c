"""Training: a step is the hand-written one, a loop is its steps, and what is measured is what happened."""

import functools
import gc
import io
import json
import sys
import time
import weakref
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

import lstmjax
from lstmjax import training
from lstmjax.training.progress import Progress, _Lines
from tests.board import events, scalars

T, B, I, H = 6, 4, 3, 5
CELL = lstmjax.rnn(H)
OPTIMIZER = optax.sgd(0.05, momentum=0.9)


def loss_fn(params, xs, key):
    y = jnp.tanh((xs + 0.1 * jax.random.uniform(key, xs.shape, xs.dtype)) @ params.w_x + params.b) @ params.w_h
    return jnp.mean((y[..., :I] - xs) ** 2), {"largest": jnp.abs(y).max()}


def draw_batch(key):
    return jax.random.uniform(key, (T, B, I))


def fresh(optimizer=OPTIMIZER, carry=None):
    return training.init_state(CELL.init(jax.random.key(0), I), optimizer, jax.random.key(1), carry)


STEP = training.make_train_step(loss_fn, OPTIMIZER, clip_norm=0.05)


class TestStep:
    def test_is_the_hand_written_one(self):
        clipped = optax.chain(optax.clip_by_global_norm(0.05), OPTIMIZER)
        params, xs = fresh().params, draw_batch(jax.random.key(3))
        state, step = fresh(), jax.jit(STEP)
        by_hand, opt_state = params, clipped.init(params)
        for i in range(3):
            loss_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
            (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(by_hand, xs, loss_key)
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = clipped.update(grads, opt_state, by_hand)
            by_hand = optax.apply_updates(by_hand, updates)
            state, metrics = step(state, xs)
            np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
            np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
            np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(updates), rtol=1e-4)
        chex.assert_trees_all_close(state.params, by_hand, rtol=1e-4, atol=1e-6)
        assert int(state.step) == 3

    @pytest.mark.parametrize(("clip_norm", "after"), [(None, 5.0), (1.0, 1.0), (7.0, 5.0)])
    def test_norms_before_and_after_clipping(self, clip_norm, after):
        optimizer = optax.sgd(0.5)
        step = training.make_train_step(lambda w, g, key: (jnp.vdot(w, g), {}), optimizer, clip_norm=clip_norm)
        state = training.init_state(jnp.zeros(2), optimizer, jax.random.key(0))
        state, metrics = step(state, jnp.array([3.0, 4.0]))
        np.testing.assert_allclose([metrics["grad_norm"], metrics["clipped_grad_norm"]], [5.0, after], rtol=1e-6)
        np.testing.assert_allclose(metrics["update_norm"], after / 2, rtol=1e-6)
        np.testing.assert_allclose(state.params, -after * np.array([0.3, 0.4]), rtol=1e-6)

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_a_norm_neither_overflows_nor_vanishes(self, scale):
        tree = {"a": jnp.full(3, scale), "b": jnp.full((2, 3), 2 * scale, jnp.float32)}
        np.testing.assert_allclose(training.global_norm(tree), np.float32(np.sqrt(27) * scale), rtol=1e-6)

    def test_norms_of_nothing_and_of_what_is_not_finite(self):
        assert training.global_norm({"a": jnp.zeros(3)}) == 0
        assert jnp.isinf(training.global_norm(jnp.array([1.0, jnp.inf])))
        assert jnp.isnan(training.global_norm(jnp.array([1.0, jnp.nan])))

    def test_mixed_precision_keeps_the_parameters(self):
        seen = []

        def loss(params, xs, key):
            seen.append(jax.tree.map(lambda p: p.dtype, params))
            return loss_fn(params, xs.astype(params.w_x.dtype), key)

        state, xs = fresh(), draw_batch(jax.random.key(3))
        new, metrics = training.make_train_step(loss, OPTIMIZER, compute_dtype=jnp.bfloat16)(state, xs)
        _, exact = training.make_train_step(loss, OPTIMIZER)(state, xs)
        assert set(jax.tree.leaves(seen[0])) == {jnp.dtype(jnp.bfloat16)}
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves((new.params, new.opt_state[0].trace)))
        assert metrics["loss"].dtype == jnp.float32
        np.testing.assert_allclose(metrics["grad_norm"], exact["grad_norm"], rtol=0.1)

    @pytest.mark.parametrize(
        "optimizer",
        [
            optax.lbfgs(),
            optax.chain(optax.clip_by_global_norm(1.0), optax.lbfgs()),
            optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))),
            optax.contrib.sam(
                optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), opaque_mode=True
            ),
            optax.polyak_sgd(),
            optax.contrib.sophia(0.1),
        ],
        ids=["lbfgs", "lbfgs in a chain", "sam", "opaque sam", "polyak", "sophia"],
    )
    def test_an_optimiser_is_given_what_it_asks_for(self, optimizer):
        def loss(w, scale, key):
            return jnp.sum(scale * (w - 1) ** 2), {}

        state = training.init_state(jnp.zeros(2), optimizer, jax.random.key(0))
        step, scale = training.make_train_step(loss, optimizer), jnp.array([1.0, 3.0])
        losses = training.fit(state, step, [scale], steps=40, steps_per_call=40, progress=False).history["loss"]
        assert losses[0] == 4
        assert losses[-1] < 0.1

    def test_sam_within_a_chain_is_refused(self):
        optimizer = optax.chain(optax.clip(1.0), optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1), reset_state=False))
        with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
            training.make_train_step(loss_fn, optimizer)(fresh(optimizer), draw_batch(jax.random.key(0)))

    @pytest.mark.slow
    def test_lbfgs_is_the_hand_written_one(self):
        def loss(w):
            return jnp.sum(jnp.array([1.0, 30.0]) * (w - 1) ** 2) + jnp.sum(w**4)

        optimizer, params = optax.lbfgs(), jnp.zeros(2)
        step = jax.jit(training.make_train_step(lambda w, batch, key: (loss(w), {}), optimizer))
        state, opt_state = training.init_state(params, optimizer, jax.random.key(0)), optimizer.init(params)
        for _ in range(3):
            state, _ = step(state, None)
            value, grad = jax.value_and_grad(loss)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = optimizer.update(grad, opt_state, params, value=value, grad=grad, value_fn=loss)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(state.params, params, rtol=1e-5)

    def test_an_optimiser_that_asks_for_the_loss_is_given_it(self):
        optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
        step = training.make_train_step(loss_fn, optimizer)
        state, metrics = jax.jit(step)(fresh(optimizer), draw_batch(jax.random.key(0)))
        assert state.opt_state[1].best_value == metrics["loss"]


def test_a_loop_is_its_steps_bit_for_bit():
    state, metrics = training.make_train_loop(STEP, draw_batch, steps=7)(fresh())
    one, singly, losses = jax.jit(STEP), fresh(), []
    for i in range(7):
        _, key = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
        singly, m = one(singly, jax.jit(draw_batch)(key))
        losses.append(m["loss"])
    chex.assert_trees_all_equal(state.params, singly.params)
    np.testing.assert_array_equal(metrics["loss"], losses)


class TestTruncation:
    xs = np.random.default_rng(0).normal(size=(3, T, B, I)).astype(np.float32)
    resets = np.zeros((3, T, B), bool)
    resets[1, 2, 1] = True

    @staticmethod
    def loss_fn(params, carry, batch, key):
        carry, ys = lstmjax.unroll(CELL, params, batch[0], carry, resets=batch[1])
        return jnp.mean(ys**2), (carry, {"steps": jnp.int32(T)})

    def test_is_the_manual_one(self):
        optimizer = optax.sgd(0.5)
        step = jax.jit(training.make_tbptt_step(self.loss_fn, optimizer))
        state = fresh(optimizer, CELL.initial_state((B,)))
        params, carry = state.params, state.carry
        for window in zip(self.xs, self.resets, strict=True):
            state, metrics = step(state, window)
            (_, (carry, _)), grads = jax.value_and_grad(self.loss_fn, has_aux=True)(params, carry, window, state.key)
            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
            np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
        chex.assert_trees_all_close((state.params, state.carry), (params, carry), rtol=1e-5, atol=1e-6)

    def test_no_gradient_crosses_the_border(self):
        step = training.make_tbptt_step(self.loss_fn, OPTIMIZER)
        window = (self.xs[0], self.resets[0])

        def later_loss(carry):
            return step(fresh(carry=carry), window)[1]["loss"]

        grads = jax.grad(later_loss)(CELL.initial_state((B,)))
        assert all((g == 0).all() for g in jax.tree.leaves(grads))

    def test_the_carry_goes_through_fit(self):
        step = training.make_tbptt_step(self.loss_fn, OPTIMIZER)
        windows = list(zip(self.xs, self.resets, strict=True))
        state = fresh(carry=CELL.initial_state((B,)))
        together = training.fit(state, step, windows, steps=3, steps_per_call=3, progress=False).state
        for window in windows:
            state, _ = jax.jit(step)(state, window)
        chex.assert_trees_all_close((together.params, together.carry), (state.params, state.carry), rtol=1e-5)


class TestMeans:
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_of_an_evaluation_are_taken_in_float64(self, dtype):
        evaluate = training.make_evaluate(lambda p, x: {"a": p * x}, [np.full((), 0.75, dtype)] * 3000)
        assert evaluate(jnp.ones((), dtype)) == {"a": 0.75}

    def test_of_batches_that_weigh_by_their_rows(self):
        rows = np.arange(10, dtype=np.float32)
        batches = [rows[:4], rows[4:8], rows[8:], rows[:0]]
        evaluate = training.make_evaluate(lambda p, x: {"mean": jnp.mean(p * x)}, batches, weight_fn=len)
        assert evaluate(jnp.float32(2)) == {"mean": 9.0}
        masks = [(rows[:4], np.array([1, 0, 0, 0], np.int8)), (rows[4:8], np.ones(4, np.int8))]

        def masked(p, batch):
            xs, mask = batch
            return {"mean": jnp.sum(p * xs, where=mask == 1) / mask.sum(dtype=jnp.float32)}

        evaluate = training.make_evaluate(masked, masks, weight_fn=lambda batch: jnp.sum(batch[1], dtype=jnp.bfloat16))
        assert evaluate(jnp.float32(1)) == {"mean": 22 / 5}

    def test_of_a_history_of_bfloat16_are_exact(self):
        step = training.make_train_step(
            lambda w, x, key: (w * w, {"a": jnp.bfloat16(0.75), "n": jnp.int8(3), "half": jnp.float16(0.75)}), OPTIMIZER
        )
        state = training.init_state(jnp.float32(1), OPTIMIZER, jax.random.key(0))
        history = training.fit(state, step, [0.0], steps=600, steps_per_call=600, progress=False).history
        assert [history[name].dtype for name in ("a", "half", "n")] == [np.float32, np.float32, np.int8]
        assert history["a"].mean() == 0.75

    def test_of_a_norm_in_half_precision(self):
        tree = {"a": jnp.full(30000, 3, jnp.float16), "b": jnp.full(10000, 5, jnp.bfloat16)}
        norm = training.global_norm(tree)
        assert norm.dtype == jnp.float32
        np.testing.assert_allclose(norm, np.sqrt(30000 * 9.0 + 10000 * 25.0), rtol=1e-6)

    def test_early_stopping_compares_in_float64(self):
        """In bfloat16, 1 − 2⁻⁸ and 1 are neighbours, and 1 − min_delta rounds to 1."""
        values = iter([1.0, 1 - 2**-8, 1 - 2**-7])
        result = training.fit(
            fresh(), STEP, draw_batch, steps=3, evaluate=lambda p: {"loss": jnp.bfloat16(next(values))},
            evaluate_every=1, early_stopping=training.EarlyStopping(patience=1, min_delta=jnp.bfloat16(0.001)),
            progress=False,
        )  # fmt: skip
        assert not result.stopped_early


class Pair(NamedTuple):
    xs: Any
    ys: Any


XS, ROWS = np.ones((T, B, I), np.float32), np.ones(B, np.float32)
ONE_BATCH = {
    "ndarray": XS, "Array": jnp.ones((T, B, I)), "tuple of arrays": (XS, jnp.ones(B)), "dict": {"xs": XS},
    "Pair": Pair(XS, ROWS), "Pair of dicts": Pair({"xs": XS}, None), "LSTMState": lstmjax.lstm(2).initial_state((B,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_BATCH)
def test_one_batch_is_not_batches(name):
    batch = ONE_BATCH[name]
    message = "batches is .*, which looks like one batch; wanted an iterable of batches, such as"
    with pytest.raises(TypeError, match=message):
        short(batches=batch)
    with pytest.raises(TypeError, match=message):
        training.make_evaluate(lambda params, batch: {"a": 0.0}, batch)


class TestFit:
    def test_every_kind_of_batches_and_of_call_is_the_same_run(self):
        import grain

        data = [np.asarray(draw_batch(jax.random.key(i))) for i in range(4)]
        dataset = grain.MapDataset.source(data).repeat().to_iter_dataset()
        runs = [
            training.fit(fresh(), STEP, batches, steps=8, steps_per_call=n, progress=False)
            for batches, n in ((data, 1), (data, 4), (iter(data * 2), 2), (dataset, 4), (map(jnp.asarray, data * 2), 4))
        ]
        for run in runs[1:]:
            chex.assert_trees_all_close(run.state.params, runs[0].state.params, rtol=1e-5, atol=1e-7)
        assert runs[0].history["step"].tolist() == list(range(1, 9))

    def test_draws_on_the_device_as_the_loop_does(self):
        state = fresh()
        result = training.fit(state, STEP, draw_batch, steps=7, steps_per_call=7, progress=False)
        looped, metrics = training.make_train_loop(STEP, draw_batch, steps=7)(state)  # the state was not given up
        chex.assert_trees_all_equal(result.state.params, looped.params)
        np.testing.assert_array_equal(result.history["loss"], metrics["loss"])

    @pytest.mark.parametrize("drawn", [True, False])
    def test_a_step_is_compiled_once_and_not_kept(self, drawn):
        traces, big = [], np.ones((T, B, I), np.float32)
        kept = weakref.ref(big)

        def loss(params, xs, key, big=big):
            traces.append(1)
            return loss_fn(params, xs + big, key)

        def draw(key, big=big):
            return jnp.asarray(big)

        step = training.make_train_step(loss, OPTIMIZER)
        for _ in range(2):
            training.fit(fresh(), step, draw if drawn else [big], steps=2, progress=False)
        assert len(traces) == 1
        del big, loss, draw, step
        gc.collect()
        assert kept() is None

    def test_a_step_that_cannot_be_referred_to_weakly(self):
        class Slotted:
            __slots__ = ()

            def __call__(self, state, batch):
                return STEP(state, batch)

        assert int(training.fit(fresh(), Slotted(), draw_batch, steps=2, progress=False).state.step) == 2

    def test_whole_numbers_are_numpys_as_well(self, tmp_path, monkeypatch):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        two = np.int64(2)
        result = training.fit(
            fresh(), STEP, draw_batch, steps=np.int32(4), steps_per_call=two, log_every=two, metrics=tmp_path / "m.jsonl",
            evaluate=lambda p: {"loss": 1.0}, evaluate_every=two, callbacks=[training.probe(lambda p: p.b, every=two)],
            checkpoints=training.Checkpoints(tmp_path / "c", every=two, keep_last=two, keep_best=np.int8(1)),
            early_stopping=training.EarlyStopping(patience=two), progress=False,
        )  # fmt: skip
        assert int(result.state.step) == 4
        assert len(training.read_jsonl(tmp_path / "m.jsonl")) == 6
        assert training.make_train_loop(STEP, draw_batch, steps=two)(fresh())[1]["loss"].shape == (2,)

    def test_records_and_periods(self, tmp_path):
        calls, began = [], time.time()

        def watch(step, state):
            calls.append((step, int(state.step)))

        result = training.fit(
            fresh(), STEP, draw_batch, steps=10, steps_per_call=4, evaluate=lambda p: {"w": jnp.abs(p.w_h).max()},
            evaluate_every=5, metrics=tmp_path / "m.jsonl", log_every=2, progress=False,
            callbacks=[watch, training.probe(lambda p: (p.b, p.b.sum()), every=5, name="b")],
        )  # fmt: skip
        records = training.read_jsonl(tmp_path / "m.jsonl")
        assert [r["step"] for r in records if "loss" in r] == [2, 4, 6, 8, 10]
        assert [r["step"] for r in records if "eval/w" in r] == [5, 10]
        assert [len(r["b"][0]) for r in records if "b" in r] == [H, H]
        assert calls == [(s, s) for s in (4, 5, 8, 10)]
        assert records[0]["loss"] == float(result.history["loss"][1])
        times = [r["time"] for r in records]
        assert began - 0.01 < times[0] <= times[-1] < time.time() + 0.01
        assert times == sorted(times)
        assert [r["step"] for r in result.records] == [5, 5, 10, 10]

    def test_early_stopping(self):
        values = iter([3.0, 2.0, 2.5, 2.0, 1.0])
        result = training.fit(
            fresh(), STEP, draw_batch, steps=100, steps_per_call=2, evaluate=lambda params: {"loss": next(values)},
            evaluate_every=2, early_stopping=training.EarlyStopping(patience=2), progress=False,
        )  # fmt: skip
        assert result.stopped_early
        assert int(result.state.step) == 8

    def test_an_old_file_is_put_aside_by_a_new_run(self, tmp_path):
        for _ in range(2):
            training.fit(fresh(), STEP, draw_batch, steps=2, metrics=str(tmp_path / "m.jsonl"), progress=False)
        first, second = (training.read_jsonl(tmp_path / name) for name in ("m.jsonl.1", "m.jsonl"))
        assert [{**r, "time": 0} for r in first] == [{**r, "time": 0} for r in second]

    def test_tensorboard_takes_scalars(self, tmp_path):
        training.fit(
            fresh(), STEP, draw_batch, steps=2, metrics=[tmp_path / "m.jsonl", training.TensorBoard(tmp_path)],
            callbacks=[training.probe(lambda p: {"curve": p.b, "sum": p.b.sum()}, every=2)], progress=False,
        )  # fmt: skip
        # A file begins with the step from which on older ones do not count.
        assert [e.step for e in events(tmp_path) if e.session_log.status == e.session_log.START] == [1]
        written = scalars(tmp_path)
        numbers = {
            (record["step"], name): value
            for record in training.read_jsonl(tmp_path / "m.jsonl")
            for name, value in record.items()
            if name not in ("step", "time") and isinstance(value, int | float)
        }
        assert {(1, "loss"), (2, "probe/sum")} <= numbers.keys() == written.keys()
        for at, number in numbers.items():
            np.testing.assert_allclose(written[at], number, rtol=1e-6)


class TestMetricsFile:
    def test_goes_on_after_a_step(self, tmp_path):
        path = tmp_path / "m.jsonl"
        whole = [{"step": i, "loss": i / 7} for i in range(1, 5)]
        path.write_text("".join(json.dumps(r) + "\n" for r in whole) + '{"step": 5, "lo')
        lines = training.JSONLines(path)
        lines.open(3)
        lines.write({"step": 4, "loss": float("nan"), "time": 7})
        lines.close()
        assert training.read_jsonl(path) == [*whole[:3], {"step": 4, "loss": None, "time": 7}]
        assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]

    @pytest.mark.parametrize("step", [0, 1])
    def test_a_link_stays_a_link(self, step, tmp_path):
        target, link = tmp_path / "target", tmp_path / "link"
        target.write_text('{"step": 1}\n{"step": 2}\n')
        link.symlink_to(target)
        lines = training.JSONLines(link)
        lines.open(step)
        lines.write({"step": 3})
        lines.close()
        assert link.is_symlink()
        assert [r["step"] for r in training.read_jsonl(target)] == [1, 3][1 - step :]
        assert (tmp_path / "target.1").exists() == (step == 0)

    def test_a_full_disk_leaves_whole_lines(self, tmp_path, monkeypatch):
        path = tmp_path / "m.jsonl"
        lines = training.JSONLines(path)
        lines.open(0)
        lines.write({"step": 1, "time": 0})

        class Full:
            def __init__(self, file):
                self.file = file

            def write(self, data):
                if len(data) < 5:
                    raise OSError(28, "No space left on device")
                return self.file.write(data[:4])

            def __getattr__(self, name):
                return getattr(self.file, name)

        monkeypatch.setattr(lines, "_file", Full(lines._file))
        with pytest.raises(OSError, match="could not write metrics of step 2: No space left"):
            lines.write({"step": 2})
        assert path.read_text() == '{"step": 1, "time": 0}\n'
        monkeypatch.undo()
        lines.close()


class TestProgress:
    def test_in_a_log_file_it_is_lines(self, capsys):
        progress = Progress(0, 10, True)
        progress.advance(10, 0.5)
        progress.close()
        shown = capsys.readouterr().err
        assert "10/10 steps" in shown
        assert "loss 0.5" in shown
        assert "\r" not in shown
        assert shown.endswith("\n")

    def test_with_no_step_left_there_is_none(self, capsys):
        Progress(2100, 2000, True).close()
        assert capsys.readouterr().err == ""

    def test_lines_are_not_repeated(self):
        stream = io.StringIO()
        lines = _Lines(stream)
        for text in ("\r1/3", "\r1/3", "\r3/3", "\n"):
            lines.write(text)
        assert stream.getvalue() == "1/3\n3/3\n"

    def test_in_a_terminal_it_is_redrawn(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        progress = Progress(0, 10, True)
        progress.advance(10, 0.5)
        progress.close()
        assert "\r" in capsys.readouterr().err


def short(**options):
    return training.fit(fresh(), STEP, options.pop("batches", draw_batch), **{"steps": 2, "progress": False, **options})


def stepped(result):
    step = training.make_train_step(lambda w, x, key: result, OPTIMIZER)
    return step(training.init_state(jnp.ones(2), OPTIMIZER, jax.random.key(0)), None)


# One row a line.
# ruff: noqa: E501
BAD_CALLS = {
    "clip_norm": (ValueError, "clip_norm is -1", lambda: training.make_train_step(loss_fn, OPTIMIZER, clip_norm=-1)),
    "compute_dtype": (TypeError, "compute_dtype is .*int32", lambda: training.make_train_step(loss_fn, OPTIMIZER, compute_dtype=jnp.int32)),
    "no metrics": (ValueError, r"loss_fn returned one value; wanted a pair, \(loss, metrics\), metrics {} where", lambda: stepped(jnp.float32(1))),
    "three values": (ValueError, "loss_fn returned 3 values; wanted a pair", lambda: stepped((jnp.float32(1), {}, {}))),
    "arguments of a loss": (TypeError, r"loss_fn takes \(w, x\); wanted loss_fn\(params, batch, key\)", lambda: training.make_train_step(lambda w, x: (w, {}), OPTIMIZER)),
    "arguments of a loss with a carry": (TypeError, r"wanted loss_fn\(params, carry, batch, key\)", lambda: training.make_tbptt_step(loss_fn, OPTIMIZER)),
    "a vector of losses": (ValueError, r"loss of shape \(3,\); wanted a scalar", lambda: stepped((jnp.ones(3), {}))),
    "a vector as a metric": (ValueError, r"metric 'a' of shape \(3,\)", lambda: stepped((jnp.float32(1), {"a": jnp.ones(3)}))),
    "a metric's name": (ValueError, "a metric 'grad_norm', which is one of the step's own", lambda: stepped((jnp.float32(1), {"grad_norm": 1.0}))),
    "steps of a loop": (ValueError, "steps is 0; wanted", lambda: training.make_train_loop(STEP, draw_batch, steps=0)),
    "steps of a loop, a float": (ValueError, "steps is 2.0; wanted a whole number", lambda: training.make_train_loop(STEP, draw_batch, steps=2.0)),
    "steps": (ValueError, "steps is -1; wanted a whole number of at least 0", lambda: short(steps=-1)),
    "steps, a float": (ValueError, "steps is 3.0; wanted a whole number", lambda: short(steps=3.0)),
    "steps_per_call": (ValueError, "steps_per_call is 0; wanted a whole number", lambda: short(steps_per_call=0)),
    "steps_per_call, a bool": (ValueError, "steps_per_call is True; wanted a whole number", lambda: short(steps_per_call=True)),
    "log_every": (ValueError, "log_every is 1.5; wanted a whole number", lambda: short(log_every=1.5)),
    "evaluate_every, zero": (ValueError, "evaluate_every is 0; wanted a whole number", lambda: short(evaluate_every=0)),
    "patience": (ValueError, "early_stopping.patience is 2.0; wanted a whole number", lambda: short(evaluate=lambda p: {"loss": 1.0}, evaluate_every=1, early_stopping=training.EarlyStopping(patience=2.0))),
    "every of a callback": (ValueError, "callback.every is 0.5; wanted a whole number", lambda: short(callbacks=[training.callbacks.Probe(lambda p: p, 0.5)])),
    "what evaluate returns": (ValueError, "evaluate returned 0.5; wanted a dict", lambda: short(evaluate=lambda p: 0.5)),
    "what a callback returns": (ValueError, "a callback returned 0.5; wanted a dict", lambda: short(callbacks=[lambda step, state: 0.5])),
    "what a metric_fn returns": (ValueError, "metric_fn returned .*0.5.*; wanted a dict", lambda: training.make_evaluate(lambda p, b: 0.5, [0.0])(1.0)),
    "a vector of a metric_fn": (ValueError, r"metric_fn returned 'a' of shape \(3,\); wanted a scalar", lambda: training.make_evaluate(lambda p, b: {"a": b}, [np.ones(3)])(1.0)),
    "negative weights": (ValueError, r"weight_fn returned \[-1.0\]; wanted finite weights", lambda: training.make_evaluate(lambda p, b: {"a": b}, [0.0], weight_fn=lambda b: -1)(1.0)),
    "no weight": (ValueError, r"weight_fn returned \[0.0\]; wanted .* one above 0", lambda: training.make_evaluate(lambda p, b: {"a": b}, [0.0], weight_fn=lambda b: 0)(1.0)),
    "a function to evaluate on": (TypeError, "batches is a function; wanted a list", lambda: training.make_evaluate(lambda p, b: {}, draw_batch)),
    "metrics": (TypeError, "metrics holds 42; wanted the path", lambda: short(metrics=42)),
    "metrics in a store": (ValueError, "metrics is 'gs://b/m.jsonl'; wanted a path on this machine", lambda: short(metrics="gs://b/m.jsonl")),
    "evaluate_every": (ValueError, "evaluate_every is 3 and evaluate is None", lambda: short(evaluate_every=3)),
    "early_stopping": (ValueError, "early_stopping wants evaluate", lambda: short(early_stopping=training.EarlyStopping())),
    "the metric of early stopping": (ValueError, r"goes by 'eval/loss', and evaluate returned \['eval/w'\]", lambda: short(early_stopping=training.EarlyStopping(), evaluate=lambda p: {"w": 1.0}, evaluate_every=1)),
    "batches": (TypeError, "batches is int; wanted an iterable", lambda: short(batches=3)),
    "one batch, a tuple": (TypeError, r"batches is a tuple of arrays, which looks like one batch; wanted .*\[batch\]", lambda: short(batches=(np.ones((T, B, I)), np.ones(B)))),
    "one batch, a dict": (TypeError, "batches is a dict, which looks like one batch", lambda: short(batches={"xs": np.ones((T, B, I))})),
    "no batches": (ValueError, "batches is empty", lambda: short(batches=[])),
    "batches that end": (ValueError, "batches ended after 1; wanted more", lambda: short(batches=iter([np.ones((T, B, I), np.float32)]))),
    "batches that differ": (ValueError, r"batch 2 has shapes \(6, 1, 3\), and batch 1 \(6, 4, 3\)", lambda: short(batches=[np.ones((T, B, I), np.float32), np.ones((T, 1, I), np.float32)], steps_per_call=2)),
    "an iterator to evaluate on": (ValueError, "batches is an iterator", lambda: training.make_evaluate(lambda p, b: {}, iter([1]))),
    "every of a probe": (ValueError, "every is 0; wanted", lambda: training.probe(lambda p: p, every=0)),
    "every of checkpoints": (ValueError, "checkpoints.every is 1.0; wanted a whole number", lambda: short(checkpoints=training.Checkpoints("nowhere", every=1.0))),
    "a mesh of a float": (ValueError, "data is 1.0; wanted a whole number", lambda: training.auto_mesh(data=1.0)),
    "an axis of a mesh": (ValueError, "model", lambda: training.batch_sharding(training.auto_mesh(data=-1), "model")),
    "dim": (ValueError, "dim is -1; wanted a whole number of at least 0", lambda: training.batch_sharding(training.auto_mesh(data=-1), dim=-1)),
    "heartbeats": (ValueError, "heartbeat_seconds is 0; wanted a whole number", lambda: training.initialize_distributed(heartbeat_seconds=0)),
    "a mesh": (ValueError, "axes are {'data': 7}; wanted sizes whose product", lambda: training.auto_mesh(data=7)),
    "keep_best": (ValueError, "checkpoints.keep_best is 1 and evaluate is None; wanted evaluate", lambda: short(checkpoints=training.Checkpoints("nowhere", keep_best=1))),
    "keep_last": (ValueError, "checkpoints.keep_last is 0; wanted a whole number", lambda: short(checkpoints=training.Checkpoints("nowhere", keep_last=0))),
    "mode": (ValueError, "checkpoints.mode is 'low'; wanted 'min' or 'max'", lambda: short(checkpoints=training.Checkpoints("nowhere", mode="low"))),
}  # fmt: skip


@pytest.mark.parametrize(
    "loss", [jax.jit(loss_fn), jax.checkpoint(loss_fn), functools.partial(lambda n, *rest: loss_fn(*rest), 1), max]
)
def test_a_loss_is_anything_that_takes_the_arguments(loss):
    training.make_train_step(loss, OPTIMIZER)


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_gets_one_clear_error(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    error, message, call = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()
