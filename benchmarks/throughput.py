"""How fast is the LSTM? Times lstmjax next to other libraries, and next to what the processor can do.

All candidates compute the same function with the same weights, which is checked before anything is timed. They run
interleaved, in an order drawn anew each round, in one process; a ratio is the median over rounds of two times from
the same round, so that a machine that slows down slows both.

    python -m benchmarks.throughput --quick
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from tqdm import tqdm

import lstmjax
from benchmarks import peak
from benchmarks.peers import JAX_PEERS, Peer, TorchPeer, lstmjax_peer
from lstmjax.files import replacing
from lstmjax.plot import speed_ratios
from lstmjax.program.output import dump_json, environment
from lstmjax.progress import progress_bar

GRID = (
    "28,128,28,128", "100,32,64,128", "128,64,128,256", "1000,1,32,64", "200,16,8,32", "512,8,64,512", "50,256,32,64",
    # Many rows and few units, and a call as small as they come.
    "30,1024,8,16", "10,4096,4,32", "100,256,8,16", "20,1,4,8",
)  # fmt: skip
PassName = Literal["forward", "train"]
PeerName = Literal[
    "lstmjax fused", "lstmjax scan", "lstmjax cuDNN", "Flax Linen LSTMCell", "Flax Linen OptimizedLSTMCell",
    "Flax NNX LSTMCell", "Flax NNX OptimizedLSTMCell", "Haiku", "Equinox", "Keras", "PyTorch",
]  # fmt: skip
QUICK_GRID, QUICK_PEERS = ("28,128,28,128", "200,16,8,32"), ("Flax Linen OptimizedLSTMCell", "Haiku", "PyTorch")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time the LSTM of lstmjax next to those of other libraries, forwards and in training."""

    out: Path = Path("out")
    """Folder for throughput.json and .png."""
    shapes: tuple[str, ...] = GRID
    """Points to measure, each T,B,I,H: time steps, batch, input features, hidden units."""
    memory_shape: str | None = "1024,64,128,256"
    """A point at which the training program is compiled and its memory read, not run; None: leave it out."""
    passes: tuple[PassName, ...] = ("forward", "train")
    """forward: outputs alone. train: gradients with respect to parameters and input of the mean squared output."""
    peers: tuple[PeerName, ...] = get_args(PeerName)
    """Whom to time next to lstmjax; one that is not installed is left out, and that is said."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights, inputs and states."""
    device: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; default: JAX's own."""
    seconds: float = 6.0
    """Time for the rounds of one point and pass."""
    quick: bool = False
    """Two points, three peers and short rounds, in under a minute."""
    progress: bool = True
    """Show a progress bar on standard error."""

    def __post_init__(self):
        """Refuses shapes that are not four positive numbers."""
        for shape in (*self.shapes, *([self.memory_shape] if self.memory_shape else [])):
            parse_shape(shape)


class Candidate(NamedTuple):
    """Something to time: ``run`` blocks until its result is there."""

    run: Callable[[], Any]
    compile_s: float | None
    temp_bytes: int | None


def main(settings: Settings) -> None:
    """Measures every point and pass, prints a table, writes the results; what is measured is written in any case."""
    if settings.quick:
        quick = {"shapes": QUICK_GRID, "peers": QUICK_PEERS, "seconds": 1.5, "memory_shape": None}
        settings = dataclasses.replace(settings, **quick)
    if settings.device is not None:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(settings.device, settings.device))
    settings.out.mkdir(parents=True, exist_ok=True)
    points: list[tuple[str, PassName]] = [
        (shape, pass_name) for shape in settings.shapes for pass_name in settings.passes
    ]
    records: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    bar = progress_bar(points, "throughput", "point", shown=settings.progress)
    try:
        for shape, pass_name in bar:
            bar.set_postfix_str(f"{shape} {pass_name}")
            records += measure(settings, parse_shape(shape), pass_name)
        memory = measure_memory(settings)
    finally:
        bar.close()
        if records:
            write_results(settings, records, memory)
            print(format_table(records))
            if memory:
                print(f"\n{format_memory(memory)}")
            print(f"\nWrote throughput.json and .png to {settings.out}/")


def parse_shape(shape: str, like: str = "T,B,I,H, four positive whole numbers, as 28,128,28,128") -> tuple[int, ...]:
    """The sizes of a point, as many as ``like`` begins with names of."""
    parts = shape.split(",")
    if len(parts) != len(like.split(", ")[0].split(",")) or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise ValueError(f"shape is {shape!r}; wanted {like}")
    return tuple(map(int, parts))


def draw(shape: tuple[int, ...], dtype: str) -> tuple[lstmjax.LSTMParams, jax.Array]:
    """Parameters and inputs of a point."""
    steps, batch, inputs, hidden = shape
    key_params, key_xs = jax.random.split(jax.random.key(0))
    params = lstmjax.lstm(hidden).init(key_params, inputs, jnp.dtype(dtype))
    return params, jax.random.normal(key_xs, (steps, batch, inputs), dtype)


def measure(settings: Settings, shape: tuple[int, ...], pass_name: PassName) -> list[dict[str, Any]]:
    """One point and pass: builds the candidates, checks that they agree, times them, returns a record for each."""
    params, xs = draw(shape, settings.dtype)
    candidates, answers = {}, {}
    for name in ("lstmjax", *settings.peers):
        try:
            candidates[name], answers[name] = build(name, pass_name, params, xs)
        except ImportError as error:
            say_left_out(name, str(error))
    check_agreement(answers, settings.dtype)
    floors = {f"floor {n}": compiled(f, params, xs)[0] for n, f in floor_programs(pass_name).items()}
    runs = {n: c.run for n, c in (candidates | floors).items()}
    device = jax.devices()[0]
    limit = peak.multiply_adds() if device.platform == "cpu" and settings.dtype == "float32" else None
    if limit is not None:
        runs["limit"] = limit[0]
    times = run_rounds(runs, settings.seconds)
    floor = min((times[n] for n in floors), key=np.median)
    # What disturbs a round can only slow it, so of a limit the fastest counts.
    least = None if limit is None else float(times["limit"].min()) / limit[1] * products(shape, pass_name)

    return [
        {
            "implementation": name,
            "pass": pass_name,
            **dict(zip("TBIH", shape, strict=True)),
            "dtype": settings.dtype,
            "device": device.device_kind,
            "median_ms": round(float(np.median(times[name])) * 1e3, 4),
            "ratio_to_lstmjax": round(float(np.median(times[name] / times["lstmjax"])), 4),
            "ratio_to_floor": round(float(np.median(times[name] / floor)), 4),
            "share_of_limit": None if least is None else round(least / float(np.median(times[name])), 4),
            "temp_bytes": candidate.temp_bytes,
            "compile_s": None if candidate.compile_s is None else round(candidate.compile_s, 3),
            "rounds": len(times[name]),
        }
        for name, candidate in candidates.items()
    ]


def products(shape: tuple[int, ...], pass_name: PassName) -> float:
    """The floating-point operations in a pass's matrix products; training has three of each product of forward."""
    steps, batch, inputs, hidden = shape
    return (2 if pass_name == "forward" else 6) * steps * batch * (inputs + hidden) * 4 * hidden


@functools.cache
def say_left_out(name: str, why: str) -> None:
    """Says once, not at every point, that a peer is not installed."""
    tqdm.write(f"{name} is left out: {why}", file=sys.stderr)


def build(name: str, pass_name: PassName, params: lstmjax.LSTMParams, xs: jax.Array) -> tuple[Candidate, np.ndarray]:
    """A candidate, and its answer as ``[T, B, ...]``: the outputs, or the gradient of the input."""
    if name == "PyTorch":
        peer = TorchPeer(params, xs)
        run = getattr(peer, pass_name)
        return Candidate(run, None, None), run().detach().float().cpu().numpy()
    peer = JAX_PEERS[name](params, xs)
    program = peer.forward if pass_name == "forward" else training_program(peer)
    candidate, answer = compiled(program, peer.variables, peer.xs)
    answer = answer if pass_name == "forward" else answer[1]
    answer = np.asarray(answer.astype(jnp.float32))
    return candidate, answer.swapaxes(0, 1) if peer.batch_major else answer


def training_program(peer: Peer) -> Callable:
    """The gradient of the mean squared output, with respect to parameters and input."""

    def loss(variables, xs):
        return (peer.forward(variables, xs).astype(jnp.float32) ** 2).mean()

    return jax.grad(loss, argnums=(0, 1))


def measure_memory(settings: Settings) -> list[dict[str, Any]]:
    """XLA's figure for the temporary memory of the training program at one large point, and the time it compiles."""
    if settings.memory_shape is None:
        return []
    shape = parse_shape(settings.memory_shape)
    params, xs = draw(shape, settings.dtype)
    makers = {"lstmjax": JAX_PEERS["lstmjax"]}
    makers |= {f"lstmjax remat_block={n}": functools.partial(lstmjax_peer, remat_block=n) for n in (16, 32)}
    makers |= {name: JAX_PEERS[name] for name in settings.peers if name in JAX_PEERS}
    records = []
    for name, make in makers.items():
        try:
            peer = make(params, xs)
        except ImportError as error:
            say_left_out(name, str(error))
            continue
        executable, compile_s = compile_program(training_program(peer), peer.variables, peer.xs)
        memory = executable.memory_analysis()
        records.append(
            {
                "implementation": name,
                **dict(zip("TBIH", shape, strict=True)),
                "dtype": settings.dtype,
                "temp_bytes": None if memory is None else memory.temp_size_in_bytes,
                "compile_s": round(compile_s, 3),
            }
        )
    return records


def compile_program(program: Callable, *arguments: Any) -> tuple[Any, float]:
    """A program compiled ahead of time, and how long that took."""
    start = time.perf_counter()
    executable = jax.jit(program).lower(*arguments).compile()
    return executable, time.perf_counter() - start


def compiled(program: Callable, *arguments: Any) -> tuple[Candidate, Any]:
    """A program to time, with what compiling it took, and its first answer."""
    executable, compile_s = compile_program(program, *arguments)
    memory = executable.memory_analysis()
    run = functools.partial(lambda *a: jax.block_until_ready(executable(*a)), *arguments)
    return Candidate(run, compile_s, None if memory is None else memory.temp_size_in_bytes), run()


def check_agreement(answers: dict[str, np.ndarray], dtype: str) -> None:
    """Raises where a candidate computes another function than lstmjax does."""
    ours = answers["lstmjax"]
    tolerance = (2e-5 if dtype == "float32" else 5e-2) * np.abs(ours).max()
    for name, answer in answers.items():
        error = np.abs(answer - ours).max()
        if not error <= tolerance:
            raise AssertionError(f"{name} differs from lstmjax by {error:.2e}; wanted at most {tolerance:.2e}")


def floor_programs(pass_name: PassName) -> dict[str, Callable]:
    """The matrix products of a pass and nothing else, in several orientations; the fastest is the floor."""

    def forward_joined(params, xs):
        weights = jnp.concatenate([params.w_x, params.w_h])
        return _chain(lambda x, h: jnp.concatenate([x, h], -1) @ weights, params, xs)

    def forward_apart(params, xs):
        return _chain(lambda x, h: x @ params.w_x + h @ params.w_h, params, xs)

    def forward_hoisted(params, xs):
        return _chain(lambda a, h: a + h @ params.w_h, params, xs @ params.w_x)

    def forward_transposed(params, xs):
        weights = jnp.concatenate([params.w_x, params.w_h]).T
        return _chain(lambda x, h: _by_transposed(jnp.concatenate([x, h], -1), weights), params, xs)

    forwards = {
        "joined": forward_joined, "apart": forward_apart, "hoisted": forward_hoisted, "transposed": forward_transposed,
    }  # fmt: skip
    if pass_name == "forward":
        return forwards

    def with_backward(forward, flip, block):
        return lambda params, xs: (forward(params, xs), _backward_products(params, xs, flip, block))

    return {
        f"{name} {'flipped' if flip else 'straight'} {block or 'whole'}": with_backward(forwards[name], flip, block)
        for name in ("joined", "apart")
        for flip in (False, True)
        for block in (8, None)
    }


def _chain(product: Callable, params: lstmjax.LSTMParams, xs: jax.Array) -> jax.Array:
    """One product a step, each waiting for the one before."""
    hidden = params.w_h.shape[0]
    start = jnp.zeros((xs.shape[1], hidden), xs.dtype)
    return lax.scan(lambda h, x: (product(x, h)[:, :hidden], None), start, xs)[0]


def _by_transposed(a: jax.Array, weights: jax.Array) -> jax.Array:
    return lax.dot_general(a, weights, (((1,), (1,)), ((), ())))


def _backward_products(params, xs, flip, block):
    """dz W_hᵀ a step, and for each block of steps [x, h]ᵀ dz and dz W_xᵀ, with some dz of the right shape."""
    steps, batch, inputs = xs.shape
    hidden = params.w_h.shape[0]
    block = block if block and steps % block == 0 else steps
    turned = params.w_h.T + 0 if flip else params.w_h

    def body(dh, x):
        dh = dh @ turned if flip else _by_transposed(dh, turned)
        return jnp.tile(dh, (1, 4)) * x[:1, :1], dh

    def over_block(carry, xs):
        dz, total = carry
        dz, dhs = lax.scan(body, dz, xs)
        dzs = jnp.tile(dhs, (1, 1, 4))
        both = jnp.concatenate([xs, dhs], -1)
        return (dz, total + jnp.einsum("tbi,tbn->in", both, dzs)), dzs @ params.w_x.T

    start = jnp.ones((batch, 4 * hidden), xs.dtype), jnp.zeros((inputs + hidden, 4 * hidden), xs.dtype)
    return lax.scan(over_block, start, xs.reshape(-1, block, batch, inputs))


def run_rounds(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Times every run once a round, in an order drawn anew each round, for so long and for at least seven rounds.

    PyTorch's threads go on spinning for some milliseconds after a call. That is how they are fast in the next, and so
    not forbidden; but nobody is timed before they sleep, since they would take a core from it.
    """
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 7:
        for name in rng.permutation(list(runs)):
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
            if name == "PyTorch":
                time.sleep(0.03)
    return {name: np.array(t) for name, t in times.items()}


def geometric_means(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Over the grid, by pass: each peer's time over lstmjax's, and that of the best JAX peer of each point."""
    means: dict[str, dict[str, float]] = {}
    for pass_name in dict.fromkeys(r["pass"] for r in records):
        ratios: dict[str, list[float]] = {}
        best: dict[tuple, float] = {}
        for r in (r for r in records if r["pass"] == pass_name and r["implementation"] != "lstmjax"):
            ratios.setdefault(r["implementation"], []).append(r["ratio_to_lstmjax"])
            if r["implementation"] != "PyTorch" and not r["implementation"].startswith("lstmjax "):
                point = (r["T"], r["B"], r["I"], r["H"])
                best[point] = min(best.get(point, np.inf), r["ratio_to_lstmjax"])
        if best:
            ratios["best JAX peer of each point"] = list(best.values())
        means[pass_name] = {n: round(float(np.exp(np.mean(np.log(v)))), 4) for n, v in ratios.items()}
    return means


def _two_lines(name: str) -> tuple[str, str]:
    """A library's name above the name of its layer, where it has two: no wider than seven letters each."""
    library, _, layer = (
        name.removeprefix("Flax ").replace("OptimizedLSTMCell", "opt.").replace("LSTMCell", "plain").partition(" ")
    )
    return library, layer


def format_table(records: list[dict[str, Any]]) -> str:
    """Time over lstmjax's in the same round, a column for each implementation; above 1 it is slower than lstmjax."""
    peers = [n for n in dict.fromkeys(r["implementation"] for r in records) if n != "lstmjax"]
    heads = {n: _two_lines(n) for n in peers}
    lines = []
    for pass_name in dict.fromkeys(r["pass"] for r in records):
        rows = [r for r in records if r["pass"] == pass_name]
        lines.append("")
        heads_left = f"{pass_name:<16}{'':>8}{'of the':>8}", f"{'T,B,I,H':<16}{'/floor':>8}{'limit':>8}"
        for part, left in enumerate(heads_left):
            lines.append((left + "".join(f"{heads[n][part]:>8}" for n in peers)).rstrip())
        lines.append("-" * len(lines[-2]))
        for point in dict.fromkeys((r["T"], r["B"], r["I"], r["H"]) for r in rows):
            at = {r["implementation"]: r for r in rows if (r["T"], r["B"], r["I"], r["H"]) == point}
            ours = at["lstmjax"]
            ratios = "".join(f"{at[n]['ratio_to_lstmjax']:>8.2f}" if n in at else f"{'-':>8}" for n in peers)
            label = ",".join(map(str, point))
            share = "-" if (part := ours.get("share_of_limit")) is None else f"{part:.0%}"
            lines.append(f"{label:<16}{ours['ratio_to_floor']:>8.2f}{share:>8}{ratios}")
        means = geometric_means(rows)[pass_name]
        lines.append(f"{'geometric mean':<32}" + "".join(f"{means.get(n, np.nan):>8.2f}" for n in peers))
        if "best JAX peer of each point" in means:
            lines.append(f"best JAX peer of each point: {means['best JAX peer of each point']:.2f}")
    return "\n".join(lines[1:])


def format_memory(memory: list[dict[str, Any]]) -> str:
    """Temporary memory of training at one point, next to that of the best Flax layer."""
    flax = [r["temp_bytes"] for r in memory if r["implementation"].startswith("Flax") and r["temp_bytes"]]
    point = ",".join(str(memory[0][k]) for k in "TBIH")
    head = f"{'train  ' + point:<34}{'temp MB':>9}{'/best Flax':>12}{'compile s':>11}"
    lines = [head, "-" * len(head)]
    for r in memory:
        size = r["temp_bytes"]
        megabytes = "-" if size is None else f"{size / 1e6:.0f}"
        ratio = f"{size / min(flax):.3f}" if size is not None and flax else "-"
        lines.append(f"{r['implementation']:<34}{megabytes:>9}{ratio:>12}{r['compile_s']:>11.2f}")
    return "\n".join(lines)


def write_results(settings: Settings, records: list[dict[str, Any]], memory: list[dict[str, Any]]) -> None:
    """Writes .json and .png, each whole or not at all."""
    results = {
        "environment": environment(settings.dtype, "flax", "dm-haiku", "equinox", "keras", "torch"),
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "progress")},
        "geometric_means": geometric_means(records),
        "records": records,
        "memory": memory,
    }
    with replacing(settings.out / "throughput.json") as path:
        path.write_text(dump_json(results))
    with replacing(settings.out / "throughput.png") as path:
        speed_ratios(records).savefig(path, format="png")


if __name__ == "__main__":
    main(tyro.cli(Settings))
