"""Over several devices and processes: what lies where. The computation itself is partitioned by JAX.

One script serves one process and many. On a cluster, every process runs it::

    # train.py
    from lstmjax import training

    training.initialize_distributed()               # before anything else of JAX; nothing in a single process
    mesh = training.auto_mesh(data=-1)              # all devices of all processes
    params = training.shard_params(params, mesh)    # the same values everywhere; or split, by a rule
    state = training.init_state(params, optimizer, key)
    training.fit(
        state, step, batches, steps=100_000,        # batches: this process's share of each
        batch_sharding=training.batch_sharding(mesh),
        checkpoints="/shared/run-7", metrics="/shared/run-7/metrics.jsonl",
    )

and the launcher tells each process who it is. Under SLURM, ``srun`` does::

    #SBATCH --nodes=4 --ntasks-per-node=8 --gpus-per-task=1
    #SBATCH --signal=TERM@60 --requeue
    srun --kill-on-bad-exit=1 python train.py

``--signal`` gives a run that is about to be stopped a minute to save a checkpoint; requeued, or started again by
hand, the same command goes on from it. Where a process dies, the others stop: ``fit`` says so, or, where JAX hears of
it first, JAX does ("this most likely indicates that another task died").

On a CPU, XLA runs the small products of a recurrence on one core a device. ``jax.config.update("jax_num_cpu_devices",
os.cpu_count())``, before anything else of JAX, makes a device of every core, and the same script splits its batches
over them; ``benchmarks/training.py`` measures what that gives.

Without a launcher, set ``JAX_COORDINATOR_ADDRESS=host:port``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` for each
process. The checkpoint directory must be one that all processes see.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstmjax.checks import whole_number
from lstmjax.typing import Params


def initialize_distributed(*, heartbeat_seconds: int = 30) -> None:
    """Joins the other processes of this run, where there are any: ``jax.distributed.initialize``, made for training.

    Processes are found by ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, or by the
    variables of SLURM and Open MPI. With none of these, or with one process, nothing is done. On CPU the processes
    talk by Gloo.

    Args:
        heartbeat_seconds: a process that is not heard of for so long is taken for dead, and the others stop.

    Raises:
        ValueError: only some of the three variables are set, or ``heartbeat_seconds`` is no whole number above 0.
        RuntimeError: called after the first computation.

    >>> initialize_distributed()
    >>> jax.process_count()
    1
    """
    heartbeat_seconds = whole_number("heartbeat_seconds", heartbeat_seconds)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    sizes = [int(os.environ.get(name, "1")) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    if given and len(given) < len(names):
        missing = ", ".join(sorted(set(names) - set(given)))
        raise ValueError(f"the environment has {', '.join(given)} and not {missing}; wanted all three, or none")
    inside = "SLURM_STEP_NODELIST" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ
    # heartbeats bound how long a dead process is waited for, and so must the barrier at the end
    names_of_limits = ("heartbeat_timeout_seconds", "shutdown_timeout_seconds")
    limits: dict[str, Any] = dict.fromkeys(names_of_limits, heartbeat_seconds)
    if given:
        if int(given["JAX_NUM_PROCESSES"]) > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            address, count, index = (given[name] for name in names)
            jax.distributed.initialize(address, int(count), int(index), **limits)
    elif inside and max(sizes) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**limits)


def auto_mesh(devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """A mesh whose axes JAX shards over by itself.

    As ``jax.make_mesh``, whose axes are by now *explicit*, a mode in which every operation must be told the sharding
    of its result; here they are *auto*.

    Args:
        devices: those to use; all, unless given.
        **axes: name and size, in order. One size may be −1: as many as there are devices left.

    Returns:
        The mesh.

    Raises:
        ValueError: a size is no whole number, or they do not multiply to the number of devices.

    >>> auto_mesh(data=-1, model=1).axis_names
    ('data', 'model')
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [whole_number(name, size, -1) for name, size in axes.items()]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, -math.prod(sizes))
    if not axes or min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(f"axes are {axes}; wanted sizes whose product is the number of devices, {len(devices)}")
    return Mesh(np.array(devices).reshape(sizes), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def batch_sharding(mesh: Mesh, axis: str = "data", dim: int = 1) -> NamedSharding:
    """How a batch is split over one axis of a mesh.

    Args:
        mesh: the mesh.
        axis: the mesh's axis.
        dim: which of the batch's dimensions is split: 1 for time-major sequences, 0 for batch-major arrays.

    Returns:
        A sharding for every leaf of a batch, or a part of a pytree of them.

    Raises:
        ValueError: the mesh has no such axis, or ``dim`` is no whole number of at least 0.

    >>> batch_sharding(auto_mesh(data=-1)).spec == P(None, "data")
    True
    """
    return NamedSharding(mesh, P(*(None,) * whole_number("dim", dim, 0), axis))


def shard_batch(batch: Any, sharding: Any) -> Any:
    """A batch laid out over the devices, from each process's share of it.

    Args:
        batch: a pytree of arrays. With several processes, the part that belongs to this one.
        sharding: a sharding, or a pytree of them that begins as the batch's does.

    Returns:
        The batch as global arrays.

    >>> sharding = batch_sharding(auto_mesh(data=-1))
    >>> shard_batch({"xs": np.ones((5, 8, 2))}, sharding)["xs"].sharding == sharding
    True
    """

    def put(sharding, part):
        return jax.tree.map(lambda leaf: _put(leaf, sharding), part)

    return jax.tree.map(put, sharding, batch)


def shard_params(params: Params, mesh: Mesh, rule: Callable[[str, Any], P] | None = None) -> Params:
    """Parameters laid out over a mesh.

    Args:
        params: any pytree of arrays, the same on every process.
        mesh: the mesh.
        rule: ``(path, leaf) -> PartitionSpec``, the path as in ``".w_x"``; None: every device holds a whole copy.

    Returns:
        The parameters as global arrays.

    >>> import lstmjax
    >>> mesh = auto_mesh(data=-1)
    >>> params = lstmjax.lstm(8).init(jax.random.key(0), 3)
    >>> def rule(path, leaf):
    ...     return P(None, "data") if path in (".w_x", ".w_h") else P()
    >>> shard_params(params, mesh, rule).w_h.sharding.spec == P(None, "data")
    True
    """

    def put(path, leaf):
        spec = P() if rule is None else rule(jax.tree_util.keystr(path), leaf)
        return replicate(leaf, NamedSharding(mesh, spec))

    return jax.tree.map_with_path(put, params)


def fsdp_rule(mesh: Mesh, axis: str = "data", *, at_least: int = 2**16) -> Callable[[str, Any], P]:
    """A rule for :func:`shard_params`, of fully sharded data parallelism: every large array is split.

    It is split along the largest of its dimensions that divide evenly.

    Args:
        mesh: the mesh.
        axis: the mesh's axis to split over.
        at_least: arrays of fewer elements are not split.

    Returns:
        The rule.

    >>> fsdp_rule(auto_mesh(data=-1))(".w_h", np.zeros((256, 1024))) == P(None, "data")
    True
    """

    def rule(path: str, leaf: Any) -> P:
        del path
        even = [d for d, size in enumerate(leaf.shape) if size and size % mesh.shape[axis] == 0]
        if leaf.size < at_least or not even:
            return P()
        best = max(even, key=lambda d: leaf.shape[d])
        return P(*(None,) * best, axis)

    return rule


def stacked(sharding: Any) -> Any:
    """The sharding of batches one behind another, on a new first axis."""
    return jax.tree.map(lambda s: NamedSharding(s.mesh, P(None, *s.spec)), sharding)


def replicate_like(placed: Any, tree: Any) -> Any:
    """The tree, with every leaf that is not on a mesh yet copied to all of the one that ``placed`` lies on."""
    mesh = mesh_of(placed)
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, P())
    return jax.tree.map(lambda leaf: leaf if mesh_of(leaf) == mesh else replicate(leaf, everywhere), tree)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the first leaf with one lies on."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def replicate(leaf: Any, sharding: NamedSharding) -> Any:
    """A leaf that is the same on every process, laid out; without the processes having to talk."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = replicate(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _put(leaf: Any, sharding: Any) -> Any:
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))
