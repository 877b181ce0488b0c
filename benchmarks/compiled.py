"""Reads a compiled program: what is launched in each of its loops, what talks to other devices, and what lies where."""

import dataclasses
import math
import re
from typing import Any

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# A computation begins at the margin, "%name (arguments) -> type {", and ends with a brace there.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.+?) ([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
# What launches nothing: names for what is there already, and the ends of what was begun elsewhere.
_FREE = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|opt-barrier|partition-id|replica-id|.*-done|.*-update"
)


@dataclasses.dataclass
class Part:
    """A loop of a program, a kernel that has the loop in it, or what is outside of all these.

    Attributes:
        name: the names JAX gave what it was made of.
        runs: how often its body is run, the loops around it included; a kernel is the body of one round.
        launches: the kernels, on a TPU fusions and other operations, that one run of its body starts.
        collectives: how many of each kind one run of its body holds.
        fast_bytes: of the arrays it carries, what lies in a TPU's vector memory.
        carried_bytes: all it carries.
    """

    name: str
    runs: int
    launches: int = 0
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    fast_bytes: int = 0
    carried_bytes: int = 0


def read_program(text: str, *, scalars_are_free: bool = False) -> list[Part]:
    """What is outside of all loops, then every loop, and every kernel of Pallas's, in the order of the program.

    Args:
        text: a compiled program, as ``compiled.as_text()`` returns it.
        scalars_are_free: whether what returns one number is no launch, as on a TPU, whose scalar unit takes it.

    >>> import jax, jax.numpy as jnp
    >>> def powers(x):
    ...     return jax.lax.fori_loop(0, 5, lambda _, x: jnp.sin(x @ x), x)
    >>> outside, loop = read_program(jax.jit(powers).lower(jnp.eye(3)).compile().as_text())
    >>> loop.runs, loop.collectives
    (5, {})
    """
    found = list(_COMPUTATION.finditer(text))
    computations = {name: body.splitlines() for _, name, body in (m.groups() for m in found)}
    (entry,) = (name for marked, name, _ in (m.groups() for m in found) if marked)
    parts = [Part("", 1)]

    def walk(name: str, part: Part) -> None:
        for line in computations[name]:
            instruction = _INSTRUCTION.match(line)
            if instruction is None:
                continue
            kind, operation = instruction.groups()
            if operation == "while":
                loop = Part(_attribute(line, 'op_name="([^"]*)"'), part.runs * _trips(line, computations))
                loop.carried_bytes, loop.fast_bytes = _bytes(kind)
                parts.append(loop)
                walk(_attribute(line, r"body=%?([\w.\-]+)"), loop)
                continue
            if 'custom_call_target="__gpu$xla.gpu.triton"' in line:
                parts.append(Part(_attribute(line, 'op_name="([^"]*)"'), part.runs, launches=1))
                continue
            called = re.search(r"(?:to_apply|calls|branch_computations|called_computations)=\{?%?([^\s}]*)", line)
            if operation in ("call", "conditional", "async-start") and called:
                for branch in re.findall(r"[\w.\-]+", called[1]):
                    walk(branch, part)
                continue
            collective = next((c for c in COLLECTIVES if operation in (c, f"{c}-start")), None)
            if collective:
                part.collectives[collective] = part.collectives.get(collective, 0) + 1
            free = _FREE.fullmatch(operation) or 'custom_call_target="AllocateBuffer"' in line
            if not free and not (scalars_are_free and re.match(r"\w+\[\]", kind)):
                part.launches += 1

    walk(entry, parts[0])
    return parts


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop runs: as XLA notes, or what its condition compares the counter with."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = "\n".join(computations[_attribute(line, r"condition=%?([\w.\-]+)")])
    limits = re.findall(r"s32\[\]\S* constant\((\d+)\)", condition)
    if len(limits) != 1:
        raise ValueError(f"how often this loop runs is not to be seen: {line.strip()[:200]}")
    return int(limits[0])


def _attribute(line: str, pattern: str) -> str:
    found = re.search(pattern, line)
    return found[1] if found else ""


def _bytes(kind: str) -> tuple[int, int]:
    """The bytes of a type's arrays, and of those in a TPU's vector memory, which XLA calls S(1)."""
    everything = fast = 0
    for dtype, shape, layout in _ARRAY.findall(kind):
        bits: Any = re.search(r"\d+", dtype)
        size = math.prod(int(n) for n in shape.split(",") if n) * (int(bits[0]) if bits else 8) // 8
        everything += size
        fast += size if "S(1)" in layout else 0
    return everything, fast
