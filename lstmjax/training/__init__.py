"""Training on Optax: pure steps, many to a dispatch, and a run that survives being cut off.

* Step: ``init_state``, ``make_train_step``, ``make_tbptt_step``, ``make_train_loop``
* Run: ``fit``, ``make_evaluate``, ``EarlyStopping``, ``probe``
* Files: ``Checkpoints``, ``load_state``, ``CheckpointError``, ``CheckpointMismatchError``; ``JSONLines``,
  ``TensorBoard``, ``MetricWriter``, ``read_jsonl``
* Many devices: ``auto_mesh``, ``batch_sharding``, ``shard_batch``, ``shard_params``, ``fsdp_rule``,
  ``initialize_distributed``; one script for all, see :mod:`lstmjax.training.sharding`

Orbax, Grain, tqdm and tensorboardX are imported where they are used.
"""

from lstmjax.training.callbacks import EarlyStopping, make_evaluate, probe
from lstmjax.training.checkpoints import CheckpointError, CheckpointMismatchError, Checkpoints, load_state
from lstmjax.training.fit import fit
from lstmjax.training.loop import make_train_loop
from lstmjax.training.metrics import JSONLines, MetricWriter, TensorBoard, read_jsonl
from lstmjax.training.norms import global_norm
from lstmjax.training.run import FitResult
from lstmjax.training.sharding import (
    auto_mesh,
    batch_sharding,
    fsdp_rule,
    initialize_distributed,
    shard_batch,
    shard_params,
)
from lstmjax.training.state import TrainState, init_state
from lstmjax.training.step import make_tbptt_step, make_train_step

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "Checkpoints",
    "EarlyStopping",
    "FitResult",
    "JSONLines",
    "MetricWriter",
    "TensorBoard",
    "TrainState",
    "auto_mesh",
    "batch_sharding",
    "fit",
    "fsdp_rule",
    "global_norm",
    "init_state",
    "initialize_distributed",
    "load_state",
    "make_evaluate",
    "make_tbptt_step",
    "make_train_loop",
    "make_train_step",
    "probe",
    "read_jsonl",
    "shard_batch",
    "shard_params",
]
