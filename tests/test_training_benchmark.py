"""The training benchmark: every library's training comes to the same, and results have the promised form."""

import importlib.util
import json
import math

import jax
import numpy as np
import pytest
import tyro

from benchmarks import training as bench
from benchmarks.character_models import TRAINERS, draw_weights
from lstmjax.tasks import Windows, character_windows, english_text

TEXT = english_text()[:4000]


@pytest.fixture(autouse=True)
def _dtypes_as_the_peers_want_them():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def ours():
    return trained("lstmjax")


def trained(name):
    """Losses of updates in two calls, and of the test afterwards."""
    data = character_windows(TEXT, steps=6, batch_size=8)
    weights = draw_weights(jax.random.key(0), len(data.vocabulary), hidden_size=12, features=5)
    trainer = TRAINERS[name](weights, 8, 1e-2, 4)
    parts = [Windows(*(a[slice(*at)] for a in data.train)) for at in ((0, 8), (8, 20))]
    losses = np.concatenate([trainer.train(part) for part in parts])
    return losses, trainer.test(data.held_out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize("name", [n for n in TRAINERS if n != "lstmjax"])
def test_every_library_trains_the_same_model(name, ours):
    if name == "PyTorch" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    losses, tested = trained(name)
    assert losses.shape == (20,)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, ours[0], rtol=1e-4)  # float32, 20 updates of Adam
    np.testing.assert_allclose(tested, ours[1], rtol=1e-4)


@pytest.mark.slow
def test_results_have_the_promised_form(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    settings = bench.Settings(
        out=tmp_path / "out", text=text, shapes=("6,8,12",), peers=("lstmjax, a step a call", "Flax Linen + Optax"),
        steps_per_round=2, seconds=0.0, epochs=2, characters_shape="6,8,10", progress=False,
    )  # fmt: skip
    bench.main(settings)
    assert sorted(p.name for p in settings.out.iterdir()) == ["training.json", "training.png"]
    results = json.loads((settings.out / "training.json").read_text())
    assert [r["implementation"] for r in results["speed"]] == ["lstmjax", *settings.peers]
    for r in results["speed"]:
        assert {"T": 6, "B": 8, "H": 12}.items() <= r.items()
        assert r["steps_per_second"] > 0
        assert r["rounds"] >= 7
    assert results["speed"][0]["time_over_lstmjax"] == 1.0
    assert [r["implementation"] for r in results["characters"]] == ["lstmjax", "Flax Linen + Optax"]
    for r in results["characters"]:
        before, *after = r["held_out"]
        assert len(after) == len(r["training"]) == 2
        assert after[-1] < before < 2 * math.log2(len(set(TEXT)))
        assert after == pytest.approx(results["characters"][0]["held_out"][1:], rel=1e-3)
    assert results["entropies"]["bigram"] < results["entropies"]["unigram"]


@pytest.mark.slow
def test_disagreement_is_an_error(monkeypatch):
    def off(*arguments):
        trainer = TRAINERS["lstmjax"](*arguments)
        monkeypatch.setattr(trainer, "train", lambda windows, train=trainer.train: train(windows) + 0.1)
        return trainer

    monkeypatch.setitem(bench.TRAINERS, "PyTorch", off)
    settings = bench.Settings(steps_per_round=2, seconds=0.0)
    with pytest.raises(AssertionError, match="PyTorch has losses"):
        bench.measure_speed(settings, (6, 8, 12), ("lstmjax", "PyTorch"), TEXT)


def test_a_text_without_enough_windows_is_one_clear_error():
    with pytest.raises(ValueError, match="wanted 200, steps_per_round, or more"):
        bench.measure_speed(bench.Settings(steps_per_round=200), (6, 8, 12), ("lstmjax",), TEXT)


@pytest.mark.parametrize("shape", ["1,2", "1,2,0", "a,b,c"])
def test_bad_shapes_are_one_clear_error(shape, capsys):
    with pytest.raises(SystemExit) as ended:
        tyro.cli(bench.Settings, args=["--characters-shape", shape])
    assert ended.value.code != 0
    assert "wanted T,B,H" in capsys.readouterr().err
