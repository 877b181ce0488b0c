"""What is committed of programs compiled for accelerators: what a step may launch, and what it may send."""

import json

import pytest

from benchmarks import accelerators

RECORDS = {(r["machine"], r["program"]): r for r in json.loads(accelerators.RESULTS.read_text())["records"]}
LAYERS = [name for machine, name in RECORDS if machine == "one H100" and name != "adjoint_norms"]
MANY = [machine for machine in accelerators.MACHINES if not machine.startswith("one")]


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_on_a_gpu_launches_little(name):
    most = 4 if "forward" in name else 5
    loops = RECORDS["one H100", name]["loops"]
    assert loops
    assert all(loop["launches_a_step"] <= most for loop in loops)


@pytest.mark.parametrize("machine", MANY)
def test_many_devices_send_little(machine):
    parallel, split = (RECORDS[machine, f"LSTM, {name}"] for name in ("data parallel", "units split"))
    assert accelerators.a_step(parallel) == {}
    assert parallel["collectives_outside"] == {"all-reduce": 1}
    forward, backward = split["loops"]
    assert forward["collectives_a_step"] == {"all-gather": 1}
    assert backward["collectives_a_step"] == {"reduce-scatter": 1}


def test_what_is_checked_is_committed():
    assert all((machine, name) in RECORDS for machine, names in accelerators.SHORT.items() for name in names)


def test_a_compiler_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SystemExit, match=r"no environment compiles for cuda.* make accelerators makes it"):
        list(accelerators.compiled_there("one H100", [], str(tmp_path / "none")))
