"""The study of what decides the decay: every section runs, and what theory knows exactly comes out."""

import json
import math

import jax
import numpy as np
import pytest

import lstmjax
from benchmarks import gradient_study as bench


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    settings = bench.Settings(
        out=out, seeds=1, hidden_size=8, length=40, long_length=60, layers=12, recurrent_layers=2, train_steps=2,
        train_length=12, progress=False,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(bench, "trained_cells", lambda steps: {"tanh RNN": lstmjax.rnn})  # each compiles
        bench.main(settings)
    return json.loads((out / "gradient_study.json").read_text()), sorted(p.name for p in out.iterdir())


@pytest.mark.slow
def test_files(results):
    found, files = results
    assert list(found["tables"]) == list(bench.SECTIONS)
    assert files == [
        "gradient_study.json", "gradient_study_depth.png", "gradient_study_forget_bias.png",
        "gradient_study_initialisers.png", "gradient_study_long_lags.png", "gradient_study_spectral_norm.png",
        "gradient_study_trained_sign.png", "gradient_study_trained_text.png",
    ]  # fmt: skip
    assert all(found[name] for name in bench.SECTIONS)


@pytest.mark.slow
def test_without_recurrent_weights_the_rate_is_that_of_the_forget_gate(results):
    rows = [r for r in results[0]["forget bias"] if r["input"] == "zero input" and r["recurrent"] == "W_h = 0"]
    assert len(rows) == 9
    for r in rows:
        assert r["rate"] == pytest.approx(-math.log1p(math.exp(-r["b_f"])), abs=1e-5)


@pytest.mark.slow
def test_the_same_word_orthogonal_means_different_singular_values(results):
    values = {(r["cell"], r["recurrent"]): r["rms_singular_value"] for r in results[0]["initialisers"]}
    assert values["LSTM, b_f = 1", "orthogonal, each gate"] == pytest.approx(1, abs=1e-5)
    assert values["LSTM, b_f = 1", "orthogonal, all gates at once"] == pytest.approx(0.5, abs=1e-5)
    assert values["GRU", "orthogonal, all gates at once"] == pytest.approx(3**-0.5, abs=1e-5)
    assert values["LSTM, b_f = 1", "uniform ±1/√H (PyTorch)"] == pytest.approx(3**-0.5, rel=0.2)


@pytest.mark.slow
def test_linear_networks_meet_the_bound_and_tanh_stays_below(results):
    for r in results[0]["spectral norm"]:
        bound = math.log(r["spectral_norm"])
        if r["cell"] == "linear RNN":
            assert r["rate"] == pytest.approx(bound, abs=1e-4)
            assert r["lyapunov"] == pytest.approx(bound, abs=1e-4)
        elif r["cell"] == "tanh RNN":
            assert r["rate"] <= bound + 1e-4


@pytest.mark.slow
def test_the_logistic_network_loses_the_most_by_depth(results):
    rows = [r for r in results[0]["depth"] if r["what"] == "gradient, feed-forward"]
    deepest = {r["network"]: r["log10"] for r in rows if r["layers_below_output"] == 11}
    assert deepest["logistic"] < deepest["ReLU"] < deepest["tanh"]


@pytest.mark.slow
def test_a_run_cut_short_leaves_what_it_measured(tmp_path, monkeypatch):
    def cut(settings):
        raise KeyboardInterrupt

    monkeypatch.setitem(bench.SECTIONS, "depth", cut)
    settings = bench.Settings(
        out=tmp_path, sections=("initialisers", "depth"), seeds=1, hidden_size=4, length=20, progress=False
    )
    with pytest.raises(KeyboardInterrupt):
        bench.main(settings)
    found = json.loads((tmp_path / "gradient_study.json").read_text())
    assert "depth" not in found
    assert np.isfinite([r["rate"] for r in found["initialisers"]]).all()


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"sections": ()}, {"sections": ("depth", "depth")}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match="wanted"):
        bench.Settings(**bad)
