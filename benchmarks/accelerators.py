"""What XLA makes of the library for a TPU and for a GPU, found by compiling for devices that are not there.

A compiler for each is all that is wanted, in an environment of its own: ``make accelerators`` makes both. What comes
out is the program as it would run: what each step of a loop launches, what talks to other devices, and where arrays
lie. No time comes out of it.

    make accelerators           compile all; write accelerators.json and the table made of it
    make accelerators-check     compile a few; fail where one launches or sends more a step than accelerators.json has
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compiled import Part, read_program
from lstmjax.numerals import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "accelerators.json"

# An H100 SXM as XLA wants it described: the facts of openxla/xla's own description of the card.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Machine(NamedTuple):
    """Devices to compile for.

    Attributes:
        platform: as JAX calls it, and the end of the name of the environment that compiles for it.
        topology: as ``jax.experimental.topologies`` takes it.
        chips: the name that libtpu has for a machine of so many.
        split: how a model that is too large for one is laid out, ``(data, model)``.
    """

    platform: str
    topology: str
    chips: str = ""
    split: tuple[int, int] = (1, 1)


MACHINES = {
    "one H100": Machine("cuda", "1x1x1"),
    "one v5e": Machine("tpu", "v5e:2x2", "v5litepod-4"),
    "one v6e": Machine("tpu", "v6e:2x2", "v6e-4"),
    "8 H100": Machine("cuda", "1x1x8", split=(2, 4)),
    "256 v5e": Machine("tpu", "v5e:16x16", "v5litepod-256", split=(64, 4)),
    "256 v6e": Machine("tpu", "v6e:16x16", "v6e-256", split=(64, 4)),
}
STEPS, ROWS, SIZE, LARGE = 128, 64, 256, 1024
"""T, B of one device, and I = H; of a model that is split I = H = LARGE, over 16 rows a device."""

# What `--check` compiles.
SHORT = {
    "one H100": ["LSTM, forward", "LSTM", "GRU", "LSTM, bfloat16", "LSTM, pallas"],
    "one v5e": ["LSTM", "GRU"],
    "8 H100": ["LSTM, data parallel", "LSTM, units split"],
    "256 v5e": ["LSTM, data parallel", "LSTM, units split"],
}


# In the environment of a compiler. -----------------------------------------------------------------------------------


def devices_of(machine: Machine) -> list[Any]:
    """The devices of a machine that is not there; the environment variables are set by :func:`compiled_there`."""
    from jax.experimental import topologies

    if machine.platform == "cuda":
        return topologies.get_topology_desc(platform="cuda", topology=machine.topology, target_config=H100).devices
    return topologies.get_topology_desc(topology_name=machine.topology, platform="tpu").devices


def programs(machine: Machine) -> dict[str, tuple[Any, tuple]]:
    """By name, what is compiled: a jitted function and what its arguments will be; training, unless forward is said."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    import lstmjax
    from lstmjax import gradients, training

    devices = np.array(devices_of(machine))
    auto = (AxisType.Auto, AxisType.Auto)
    mesh = Mesh(devices[: machine.split[0] * machine.split[1]].reshape(machine.split), ("data", "model"), auto)

    whole = P()

    def placed(tree: Any, spec: Any = whole) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec)), tree)

    def drawn(init: Callable, dtype: Any = jnp.float32) -> Any:
        return placed(jax.eval_shape(lambda key: init(key, dtype=dtype), jax.random.key(0)))

    def layer(cell: Any, dtype: Any = jnp.float32, **options: Any) -> tuple[Any, tuple]:
        def loss(params: Any, xs: Any) -> Any:
            _, ys = lstmjax.unroll(cell, params, xs, **options)
            return (ys.astype(jnp.float32) ** 2).mean()

        params = drawn(lambda key, dtype: cell.init(key, SIZE, dtype), dtype)
        return jax.jit(jax.grad(loss)), (params, placed(jax.ShapeDtypeStruct((STEPS, ROWS, SIZE), dtype)))

    lstm, gru = lstmjax.lstm(SIZE), lstmjax.gru(SIZE)
    if machine.split == (1, 1):
        both = [(lstm, lstm), (lstm, lstm)]

        def forward(cell: Any, **options: Any) -> tuple[Any, tuple]:
            return jax.jit(lambda params, xs: lstmjax.unroll(cell, params, xs, **options)[1]), layer(cell)[1]

        def stack_loss(params: Any, xs: Any) -> Any:
            return (lstmjax.unroll_stack(both, params, xs)[1] ** 2).mean()

        def norms(params: Any, xs: Any) -> Any:
            return gradients.adjoint_norms(lstm, params, xs, lambda states: (states.h[-1] ** 2).sum())

        stack_params = drawn(lambda key, dtype: lstmjax.init_stack(both, key, SIZE, dtype))
        ragged = {"lengths": np.arange(ROWS) * STEPS // ROWS}
        by_pallas = {
            "LSTM, forward, pallas": forward(lstm, implementation="pallas"),
            "LSTM, pallas": layer(lstm, implementation="pallas"),
            "GRU, pallas": layer(gru, implementation="pallas"),
            "LSTM, pallas, bfloat16": layer(lstm, jnp.bfloat16, implementation="pallas"),
        }
        return {
            "LSTM, forward": forward(lstm),
            "GRU, forward": forward(gru),
            "LSTM": layer(lstm),
            "GRU": layer(gru),
            "LSTM, lengths": layer(lstm, **ragged),
            "LSTM, remat_block=16": layer(lstm, remat_block=16),
            "LSTM, bfloat16": layer(lstm, jnp.bfloat16),
            "two bidirectional layers": (jax.jit(jax.grad(stack_loss)), (stack_params, layer(lstm)[1][1])),
            "adjoint_norms": (jax.jit(norms), layer(lstm)[1]),
            **(by_pallas if machine.platform == "cuda" else {}),
        }

    def step(cell: Any, size: int, rows: int, axes: Any, rule: Callable | None = None) -> tuple[Any, tuple]:
        """A step of ``fit``: Adam, the gradient clipped."""

        def loss_fn(params: Any, xs: Any, key: Any) -> Any:
            del key
            return (lstmjax.unroll(cell, params, xs)[1] ** 2).mean(), {}

        optimizer = optax.adam(1e-3)
        one = jax.jit(training.make_train_step(loss_fn, optimizer, clip_norm=1.0), donate_argnums=0)
        params = jax.eval_shape(lambda key: cell.init(key, size), jax.random.key(0))
        state = jax.eval_shape(
            lambda p, key: training.init_state(p, optimizer, key), params, jax.eval_shape(lambda: jax.random.key(0))
        )
        # The optimiser's moments lie as the parameters do.
        spec = rule or (lambda path, leaf: whole)
        state = jax.tree.map_with_path(lambda p, a: placed(a, spec(jax.tree_util.keystr(p[-1:]), a)), state)
        xs = placed(jax.ShapeDtypeStruct((STEPS, rows, size), jnp.float32), P(None, axes))
        return one, (state, xs)

    large, rows = lstmjax.lstm(LARGE), 16 * machine.split[0]
    columns = training.fsdp_rule(mesh, "model")
    split = lstmjax.split_units(large, mesh, "model", batch_axis="data")
    return {
        "LSTM, data parallel": step(lstm, SIZE, 16 * mesh.size, ("data", "model")),
        "LSTM, 4H split": step(large, LARGE, rows, "data", columns),
        "LSTM, units split": step(split, LARGE, rows, "data", columns),
    }


def compile_here(name: str, wanted: list[str]) -> None:
    """Compiles programs for a machine, and prints a record of each, one a line; called in a compiler's environment."""
    import jax

    machine = MACHINES[name]
    found = programs(machine)
    for program in wanted or found:
        function, args = found[program]
        compiled = function.lower(*args).compile()
        outside, *loops = read_program(compiled.as_text(), scalars_are_free=machine.platform == "tpu")
        memory = compiled.memory_analysis()
        record = {
            "machine": name,
            "program": program,
            "loops": [loop_record(loop) for loop in loops],
            "launches_outside": outside.launches,
            "collectives_outside": outside.collectives,
            "temporary_bytes": memory.temp_size_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
            "jax": jax.__version__,
        }
        print(json.dumps(record), flush=True)


def loop_record(loop: Part) -> dict[str, Any]:
    """What a step of a loop costs. A body may hold several steps, or all, and a loop be run by another."""
    backward, again = "transpose" in loop.name, "remat" in loop.name
    return {
        "loop": "recomputed" if again else "backward" if backward else "forward",
        "launches_a_step": loop.runs * loop.launches / STEPS,
        "collectives_a_step": {kind: loop.runs * n / STEPS for kind, n in loop.collectives.items()},
        "vmem_share": loop.fast_bytes / max(1, loop.carried_bytes),
    }


# In the environment of the library. ----------------------------------------------------------------------------------


def compiled_there(name: str, wanted: list[str], environments: str) -> Iterator[dict[str, Any]]:
    """Records of programs, compiled for a machine by the environment that has its compiler."""
    machine = MACHINES[name]
    folder = Path(f"{environments}-{machine.platform}").resolve()
    python = folder / "bin" / "python"
    if not python.exists():
        sys.exit(f"no environment compiles for {machine.platform}: {python} is not there. make accelerators makes it")
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if machine.platform == "cuda":  # ptxas is found before XLA asks for it
        (toolkit,) = folder.glob("lib/python*/site-packages/nvidia/cuda_nvcc")
        variables["PATH"] = f"{toolkit / 'bin'}:{variables['PATH']}"
        variables["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={toolkit}"
    else:  # and libtpu asks no cloud what it runs on
        variables.pop("XLA_FLAGS", None)
        variables |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        variables["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no device is held, so none need be kept for one process
        variables["TPU_ACCELERATOR_TYPE"] = machine.chips
    command = [python, "-m", "benchmarks.accelerators", "--compile", name, "--programs", *wanted]
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            record = json.loads(line)
            print(f"{record['machine']}, {record['program']}: {summary(record)}", flush=True)
            yield record
    if process.returncode:
        sys.exit(f"compiling for {name} failed")


def summary(record: dict[str, Any]) -> str:
    """One line of what was found."""
    loops = "; ".join(f"{loop['loop']} {loop['launches_a_step']:g} launches a step" for loop in record["loops"])
    return f"{loops}; collectives a step {a_step(record) or 'none'}; outside {record['collectives_outside'] or 'none'}"


def a_step(record: dict[str, Any]) -> dict[str, float]:
    """The collectives of all loops, a step of each."""
    total: dict[str, float] = {}
    for loop in record["loops"]:
        for kind, count in loop["collectives_a_step"].items():
            total[kind] = total.get(kind, 0) + count
    return total


def more_than(record: dict[str, Any], bound: dict[str, Any]) -> list[str]:
    """Where a program launches or sends more than the same one did.

    >>> loop = {"loop": "forward", "launches_a_step": 2.5, "collectives_a_step": {}}
    >>> was = {"loops": [loop], "collectives_outside": {}}
    >>> more_than({"loops": [{**loop, "launches_a_step": 2.75}], "collectives_outside": {"all-gather": 1}}, was)
    ['loop 0, forward: 2.75 launches a step, and not 2.5', 'outside: 1 all-gather, and not 0']
    """
    if len(record["loops"]) != len(bound["loops"]):
        return [f"{len(record['loops'])} loops, and not {len(bound['loops'])}"]
    found = []
    for n, (now, was) in enumerate(zip(record["loops"], bound["loops"], strict=True)):
        place = f"loop {n}, {now['loop']}"
        if now["launches_a_step"] > was["launches_a_step"]:
            found.append(f"{place}: {now['launches_a_step']:g} launches a step, and not {was['launches_a_step']:g}")
        for kind, count in now["collectives_a_step"].items():
            if count > was["collectives_a_step"].get(kind, 0):
                found.append(f"{place}: {count:g} {kind} a step, and not {was['collectives_a_step'].get(kind, 0):g}")
    for kind, count in record["collectives_outside"].items():
        if count > bound["collectives_outside"].get(kind, 0):
            found.append(f"outside: {count} {kind}, and not {bound['collectives_outside'].get(kind, 0)}")
    return found


def format_table(records: list[dict[str, Any]]) -> str:
    """A row for each program on each machine."""

    def loops(record: dict[str, Any], kind: str) -> str:
        counts = [loop["launches_a_step"] for loop in record["loops"] if loop["loop"] == kind]
        return ", ".join(f"{n:g}" if n > 0.1 else f"1/{1 / n:g}" for n in counts) or "–"

    def collectives(counts: dict[str, float]) -> str:
        return ", ".join(f"{count:g} {kind}" for kind, count in sorted(counts.items())) or "–"

    def vmem(record: dict[str, Any]) -> str:
        shares = [loop["vmem_share"] for loop in record["loops"]]
        return "–" if "H100" in record["machine"] or not shares else f"{100 * min(shares):.0f} %"

    head = [
        "machine", "program", "forward", "recomputed", "backward", "collectives a step", "and outside", "temporary, MB",
        "in VMEM",
    ]  # fmt: skip
    rows = [
        [
            r["machine"], r["program"], loops(r, "forward"), loops(r, "recomputed"), loops(r, "backward"),
            collectives(a_step(r)), collectives(r["collectives_outside"]), f"{r['temporary_bytes'] / 1e6:.1f}", vmem(r),
        ]
        for r in records
    ]  # fmt: skip
    return markdown_table(head, rows)


def main() -> None:
    """Compiles all programs, or the few of ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", default=".venv", help="their folders, without -tpu and -cuda at the end")
    parser.add_argument("--check", action="store_true", help="compile a few, and compare with what is committed")
    parser.add_argument("--compile", metavar="MACHINE", help="compile for this machine, here; print what was found")
    parser.add_argument("--programs", nargs="*", default=[], help="of that machine; all unless given")
    options = parser.parse_args()
    if options.compile:
        compile_here(options.compile, options.programs)
        return
    wanted = SHORT if options.check else {name: [] for name in MACHINES}
    records = [r for name, some in wanted.items() for r in compiled_there(name, some, options.environments)]
    if not options.check:
        from lstmjax.program.output import dump_json

        settings = {"T": STEPS, "B": ROWS, "I": SIZE, "H": SIZE, "H of a split model": LARGE}
        compiled = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "jax": records[0]["jax"]}
        RESULTS.write_text(dump_json({"compiled": compiled, "settings": settings, "records": records}))
        return
    bounds = {(r["machine"], r["program"]): r for r in json.loads(RESULTS.read_text())["records"]}
    worse = {(r["machine"], r["program"]): more_than(r, bounds[r["machine"], r["program"]]) for r in records}
    lines = [f"{machine}, {program}: {line}" for (machine, program), found in worse.items() for line in found]
    if lines:
        sys.exit("\n".join(["A step launches or sends more than benchmarks/results/accelerators.json has:", *lines]))


if __name__ == "__main__":
    main()
