"""The benchmark of gradients in bfloat16: that its error is the one by hand, and small where nothing is narrow."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("flax.linen")

from benchmarks import half_precision as bench


@pytest.mark.slow
def test_errors_are_those_of_bfloat16_and_every_way_is_there(tmp_path, capsys):
    settings = bench.Settings(out=tmp_path, lengths=(6,), batch=2, inputs=3, hidden_size=4, seeds=2)
    with jax.numpy_dtype_promotion("standard"):  # Flax begins from a state in float32
        bench.main(settings)
    records = json.loads((tmp_path / "half_precision.json").read_text())["records"]
    assert [(r["implementation"], r["loss"], r["T"]) for r in records] == [
        (name, loss, 6) for loss in bench.LOSSES for name in bench.WAYS
    ]
    errors = np.array([r["errors"] for r in records])
    # Of 8 bits: one rounding is 2⁻⁹ at most, and not a hundredth of it.
    assert errors.shape == (6, 2)
    assert (errors > 2.0**-16).all()
    assert (errors < 2.0**-4).all()
    assert "| lstmjax | " in capsys.readouterr().out
