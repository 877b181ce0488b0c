"""Files in the safetensors format, under PyTorch's names: either side reads what the other wrote."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lstmjax.convert.torch import from_torch, to_torch
from lstmjax.files import replacing


def load_safetensors(path: str | os.PathLike, *, prefix: str = "") -> tuple:
    """Reads parameters from a safetensors file with the names of ``torch.nn.LSTM``, ``GRU`` or ``RNN``.

    Args:
        path: the file.
        prefix: take the names that begin so, and read no others; see :func:`lstmjax.convert.from_torch`.

    Returns:
        One entry a layer, as for :func:`lstmjax.unroll_stack`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut short or damaged, or what it holds is none of these modules.
        TypeError: dtypes, as for :func:`lstmjax.convert.from_torch`.
        ImportError: the package safetensors is missing; ``lstmjax[convert]`` brings it.

    >>> import tempfile, jax, lstmjax
    >>> params = (lstmjax.lstm(5).init(jax.random.key(0), 3),)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_safetensors(params, f"{folder}/lstm.safetensors")
    ...     again = load_safetensors(f"{folder}/lstm.safetensors")
    >>> bool((again[0].w_x == params[0].w_x).all())
    True
    """
    safetensors = _package()
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; wanted a safetensors file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = list(file.keys())
            # Where none has the prefix all are read, for the error to list.
            taken = [name for name in names if name.startswith(prefix)] or names
            arrays = {name: file.get_tensor(name) for name in taken}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}") from error
    try:
        return from_torch(arrays, prefix=prefix)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None


def save_safetensors(params: Sequence[Any], path: str | os.PathLike) -> None:
    """Writes parameters to a safetensors file that PyTorch can load.

    There: ``module.load_state_dict(safetensors.torch.load_file(path))``. The file is written beside its place and then
    put there in one step, so that it is never half of one.

    Args:
        params: one entry a layer, as for :func:`lstmjax.convert.to_torch`.
        path: the file; one that is there already is replaced.

    Raises:
        ValueError: as :func:`lstmjax.convert.to_torch`.
        TypeError: as :func:`lstmjax.convert.to_torch`.
        ImportError: the package safetensors is missing; ``lstmjax[convert]`` brings it.
    """
    _package()
    from safetensors.numpy import save

    data = save(to_torch(params), metadata={"format": "pt"})
    with replacing(path) as part:
        part.write_bytes(data)


def _package() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("safetensors files want the package safetensors: pip install 'lstmjax[convert]'") from error
    return safetensors
