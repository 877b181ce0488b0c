"""The unit of the slides, run by hand with numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import gates

UNIT = json.loads((Path(__file__).parent / "data" / "unit.json").read_text())
ORDER = ("input", "forget", "candidate", "output")


def unit_params(weights, dtype):
    def row(name):
        return jnp.array([weights[gate].get(name, 0.0) for gate in ORDER], dtype)

    return lstmjax.LSTMParams(w_x=row("w_x")[None], w_h=row("w_h")[None], b=row("b"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 2e-6)])
def test_worked_example(dtype, tolerance, x64):
    example = UNIT["worked_example"]
    params = unit_params(UNIT["weights_2dp"], dtype)
    state = lstmjax.LSTMState(**{k: jnp.array([v], dtype) for k, v in example["state"].items()})
    x = jnp.array([example["x"]], dtype)

    z = gates.split_gates(gates.pre_activation(*params, x=x, h=state.h), 4)
    functions = (gates.input_gate, gates.forget_gate, gates.candidate, gates.output_gate)
    for name, z_gate, gate in zip(ORDER, z, functions, strict=True):
        np.testing.assert_allclose(z_gate[0], example["pre_activation"][name], atol=tolerance, rtol=0)
        np.testing.assert_allclose(gate(z_gate)[0], example["activation"][name], atol=tolerance, rtol=0)

    new, y = lstmjax.lstm_step(params, state, x)
    np.testing.assert_allclose(new.c[0], example["new_state"]["c"], atol=tolerance, rtol=0)
    np.testing.assert_allclose(new.h[0], example["new_state"]["h"], atol=tolerance, rtol=0)
    assert y is new.h


def test_candidate_of_a_large_negative_input(x64):
    example = UNIT["worked_example"]["x_minus_10"]
    params = unit_params(UNIT["weights_2dp"], "float64")
    z = gates.pre_activation(*params, x=jnp.array([-10.0]), h=jnp.array([1.0]))[2]
    np.testing.assert_allclose(z, example["candidate_pre_activation"], atol=1e-6)
    np.testing.assert_allclose(gates.candidate(z), example["candidate"], atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 5e-5), ("float32", 5e-5)])
@pytest.mark.parametrize("company", ["A", "B"])
def test_companies(company, dtype, tolerance, x64):
    # The reference gives four decimals, hence half of the last of them as tolerance.
    days = jnp.array(UNIT["companies"][company]["days_1_to_4"], dtype)[:, None]
    cell, params = lstmjax.lstm(1), unit_params(UNIT["weights_2dp"], dtype)
    final, _ = lstmjax.unroll(cell, params, days)
    expected = UNIT["companies"]["prediction_2dp_weights_from_zero_state"][company]
    np.testing.assert_allclose(final.h[0], expected, atol=tolerance)


@pytest.mark.parametrize("company", ["A", "B"])
def test_companies_before_training(company, x64):
    protocol = UNIT["training_protocol"]
    params = unit_params(protocol["initial_weights"], "float64")
    days = jnp.array(UNIT["companies"][company]["days_1_to_4"])[:, None]
    final, _ = lstmjax.unroll(lstmjax.lstm(1), params, days)
    # Weights and predictions are both given to four decimals.
    np.testing.assert_allclose(final.h[0], protocol["predictions"]["epoch_0"][company], atol=1e-4)


def test_long_term_memory_passes_no_weight(x64):
    # With both gates wide open, c is carried unchanged through any number of units.
    params = lstmjax.lstm(4, forget_bias=60.0).init(jax.random.key(0), 2, jnp.float64)
    params = params._replace(b=params.b.at[:4].set(-60.0))
    start = lstmjax.LSTMState(c=jnp.arange(4.0), h=jnp.zeros(4))
    final, _ = lstmjax.unroll(lstmjax.lstm(4), params, jnp.ones((500, 2)), start)
    np.testing.assert_allclose(final.c, start.c, atol=1e-12)
