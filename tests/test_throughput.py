"""The throughput benchmark: that its candidates agree, and that what it writes has the promised form. Times are not."""

import importlib.util
import json

import jax
import numpy as np
import pytest
import tyro

import lstmjax
from benchmarks import throughput as bench
from benchmarks.peers import JAX_PEERS


@pytest.fixture(autouse=True)
def _dtypes_as_the_peers_want_them():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def problem():
    key_params, key_xs = jax.random.split(jax.random.key(0))
    params = lstmjax.lstm(6, b_init=jax.nn.initializers.normal()).init(key_params, 3)
    return params, jax.random.normal(key_xs, (5, 4, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize("name", [n for n in (*JAX_PEERS, "PyTorch") if n != "lstmjax"])
@pytest.mark.parametrize("pass_name", ["forward", "train"])
def test_peers_compute_the_same(name, pass_name, problem):
    if name == "lstmjax cuDNN" and jax.default_backend() != "gpu":
        pytest.skip("no GPU")
    package = {"Haiku": "haiku", "Equinox": "equinox", "Keras": "keras", "PyTorch": "torch"}.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")  # not imported here: Keras wants to be told its backend first
    answers = {n: bench.build(n, pass_name, *problem)[1] for n in ("lstmjax", name)}
    bench.check_agreement(answers, "float32")


def test_disagreement_is_an_error():
    with pytest.raises(AssertionError, match=r"Haiku differs from lstmjax by 1\.00e-03"):
        bench.check_agreement({"lstmjax": np.ones(3), "Haiku": np.ones(3) + 1e-3}, "float32")
    with pytest.raises(AssertionError):
        bench.check_agreement({"lstmjax": np.ones(3), "Haiku": np.full(3, np.nan)}, "float32")


@pytest.mark.parametrize("pass_name", ["forward", "train"])
def test_floors_run(pass_name, problem):
    for program in bench.floor_programs(pass_name).values():
        bench.compiled(program, *problem)[0].run()


@pytest.mark.slow
def test_results_have_the_promised_form(tmp_path):
    peers = ("lstmjax scan", "Flax Linen OptimizedLSTMCell")
    settings = bench.Settings(
        out=tmp_path, shapes=("4,2,3,5",), memory_shape="9,2,3,5", peers=peers, seconds=0.0, progress=False
    )
    bench.main(settings)
    results = json.loads((tmp_path / "throughput.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["throughput.json", "throughput.png"]
    assert len(results["records"]) == 2 * 3
    promised = {"implementation", "pass", "dtype", "device", "median_ms", "ratio_to_lstmjax", "temp_bytes", "compile_s"}
    for r in results["records"]:
        assert {"T": 4, "B": 2, "I": 3, "H": 5}.items() <= r.items()
        assert promised <= set(r)
        if r["implementation"] == "lstmjax":
            assert r["ratio_to_lstmjax"] == 1.0
            assert r["ratio_to_floor"] > 0
    (linen,) = (r for r in results["records"] if r["pass"] == "train" and "Linen" in r["implementation"])
    best = results["geometric_means"]["train"]["best JAX peer of each point"]
    assert best == pytest.approx(linen["ratio_to_lstmjax"], rel=1e-3)
    assert {r["implementation"] for r in results["memory"]} == {
        "lstmjax", "lstmjax remat_block=16", "lstmjax remat_block=32", *peers,
    }  # fmt: skip
    assert all(r["temp_bytes"] > 0 and r["T"] == 9 for r in results["memory"])


def test_a_run_cut_short_leaves_what_it_measured(tmp_path, monkeypatch):
    def measure(settings, shape, pass_name, measure=bench.measure):
        if pass_name == "train":
            raise KeyboardInterrupt
        return measure(settings, shape, pass_name)

    monkeypatch.setattr(bench, "measure", measure)
    settings = bench.Settings(out=tmp_path, shapes=("4,2,3,5",), peers=("lstmjax scan",), seconds=0.0, progress=False)
    with pytest.raises(KeyboardInterrupt):
        bench.main(settings)
    assert {r["pass"] for r in json.loads((tmp_path / "throughput.json").read_text())["records"]} == {"forward"}


@pytest.mark.parametrize("shape", ["1,2,3", "1,2,3,0", "a,b,c,d", "1,2,3,-4"])
def test_bad_shapes_are_one_clear_error(shape, capsys):
    with pytest.raises(SystemExit) as ended:
        tyro.cli(bench.Settings, args=["--shapes", shape])
    assert ended.value.code != 0
    assert "wanted" in capsys.readouterr().err
