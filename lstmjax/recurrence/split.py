"""A layer too large for one device: its units split over an axis of a mesh.

Every gate is split alike. So a device has all gates of its own units, runs them as a smaller cell by any of the ways
there are, and wants of the others one thing, the h that its products read::

    z[units] = x W_x[:, units] + h W_h[:, units] + b[units]     h of all units: gathered, once a step
    s'[units] = activate(z[units], s[units])                    as on one device

Backwards a gather is a sum that is scattered: of `dz W_hᵀ` each device keeps the rows of its own units.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lstmjax.cells.base import DENSE, Cell, Products, Recurrence
from lstmjax.cells.gru import PRODUCTS
from lstmjax.functions import Partial
from lstmjax.typing import Params, State

Run = Callable[..., tuple[State, Any]]
"""``(cell, params, start, fresh, timeline) -> (final, recorded)``."""


def split_units(cell: Cell, mesh: Mesh, axis: str = "model", *, batch_axis: str | None = None) -> Cell:
    """The cell with its units split over the devices of a mesh axis: :func:`~lstmjax.unroll` then runs it so.

    Every gate is split alike, so that a step sends h once, gathered from all devices, and backwards dh once, summed
    over them. Parameters, states and outputs are those of ``cell``, and values are the same to rounding. Outputs and
    states are split over the axis, whatever was before. Parameters may lie over the mesh in any way, and are laid out
    anew once in an unroll, outside its loop; least moves where they are whole on every device.

    Args:
        cell: a cell whose products are those of the LSTM, the GRU or the vanilla RNN: ``x W_x + h W_h + b``, and no
            projection.
        mesh: the mesh, as :func:`lstmjax.training.auto_mesh` makes it.
        axis: the axis to split units over; its size divides their number.
        batch_axis: the axis to split the batch over, its first axis where there are several; None: every group of
            devices that holds all units takes the whole batch.

    Returns:
        The cell.

    Raises:
        ValueError: the mesh has no such axis of the kind ``AxisType.Auto``, or its size does not divide the units; in
            an unroll, or the batch.
        TypeError: the cell has other products.

    >>> import lstmjax
    >>> from lstmjax.training import auto_mesh
    >>> cell = split_units(lstmjax.lstm(8), auto_mesh(model=-1))
    >>> final, ys = lstmjax.unroll(cell, cell.init(jax.random.key(0), 3), jax.numpy.ones((20, 5, 3)))
    >>> ys.shape, tuple(ys.sharding.spec)
    ((20, 5, 8), (None, None, 'model'))
    """
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    for name, given in {"axis": axis, "batch_axis": batch_axis}.items():
        if given is not None and kinds.get(given) != AxisType.Auto:
            raise ValueError(f"{name} is {given!r}, and the mesh has {kinds}; wanted one of its axes, of the kind Auto")
    _of_its_units(cell, axis)
    units = _units(jax.eval_shape(cell.initial_state))
    if units % mesh.shape[axis]:
        raise ValueError(
            f"the cell has {units} units, and axis {axis!r} {mesh.shape[axis]} devices; wanted units that these divide"
        )
    return cell.replace(over=(mesh, axis, batch_axis))


def run_split(run: Run, cell: Cell, params: Params, start: State, fresh: State | None, timeline: Any) -> Any:
    """What ``run(cell, params, start, fresh, timeline)`` returns, every device running its own units and rows."""
    assert cell.over is not None
    mesh, axis, batch_axis = cell.over
    own, units, rows = _of_its_units(cell, axis), _units(start), jax.tree.leaves(start)[0].shape[:-1]
    rows = (batch_axis,) if rows else ()

    def of_units(*leading: str | None) -> Callable[[Any], P]:
        return lambda a: P(*leading, *(None,) * (a.ndim - 1 - len(leading)), axis)

    def of_a_device(gates: Any, *rest: Any) -> tuple[State, Any]:
        # Its units of every gate, side by side: the parameters of a smaller cell.
        return run(own, jax.tree.map(lambda a: a.reshape(*a.shape[:-2], -1), gates), *rest)

    gates = jax.tree.map(lambda a: a.reshape(*a.shape[:-1], -1, units), params)
    final, kept = jax.eval_shape(partial(run, cell.replace(over=None)), params, start, fresh, timeline)
    states = [jax.tree.map(of_units(*rows), state) for state in (start, fresh, final)]
    return jax.shard_map(
        of_a_device, mesh=mesh, axis_names={axis, batch_axis} - {None},
        in_specs=(jax.tree.map(of_units(), gates), *states[:2], P(None, *rows)),
        out_specs=(states[2], jax.tree.map(of_units(None, *rows), kept)),
    )(gates, start, fresh, timeline)  # fmt: skip


def _of_its_units(cell: Cell, axis: str) -> Cell:
    """The cell as a device runs it for its own units.

    Raises:
        TypeError: other units are wanted for more than the product with h.
    """
    step = cell.step
    if not isinstance(step, Recurrence) or step.pre not in (DENSE, PRODUCTS) or step.project is not None:
        raise TypeError("the cell's units cannot be split: wanted one whose step is a Recurrence without projection, "
                        "with the products of the LSTM, the GRU or the vanilla RNN, x W_x + h W_h + b")  # fmt: skip
    pre = step.pre
    assert isinstance(pre, Products)
    pre = pre._replace(pre=Partial(_pre, pre=pre.pre, axis=axis), from_h=Partial(_from_h, from_h=pre.from_h, axis=axis))
    return cell.replace(step=dataclasses.replace(step, pre=pre, check=None), over=None)


def _pre(weights: Any, x: Any, h: Array, *, pre: Callable, axis: str) -> Array:
    return pre(weights, x, _gathered(h, axis))


def _from_h(weights: Any, dh: Array, *, from_h: Callable, axis: str) -> Array:
    return from_h(weights, _gathered(dh, axis))


def _gathered(h: Array, axis: str) -> Array:
    """h of all units ``[*B, H]``, of one's own, ``[*B, H/n]``."""
    return lax.all_gather(h, axis, axis=h.ndim - 1, tiled=True)


def _units(state: State) -> int:
    return jax.tree.leaves(state)[0].shape[-1]
