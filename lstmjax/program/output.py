"""What every command and every benchmark writes alike: where, with what, and JSON to read."""

import contextlib
import datetime
import json
import math
import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import lstmjax


def environment(dtype: str, *packages: str) -> dict[str, Any]:
    """What the numbers were measured with; packages that are not installed are left out."""
    device = default_device()
    versions = {}
    for name in ("jax", "jaxlib", "numpy", *packages):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "lstmjax": lstmjax.__version__,
        **versions,
        "platform": device.platform,
        "device": device.device_kind,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "dtype": dtype,
    }


def default_device() -> Any:
    """The device that arrays are put on."""
    (device,) = jnp.zeros(()).devices()
    return device


def number(value: Any) -> float | None:
    """A float for JSON, to six digits, which knows neither NaN nor infinity: None in their place.

    >>> number(0.12345678), number(float("-inf"))
    (0.123457, None)
    """
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def dump_json(results: dict[str, Any]) -> str:
    """JSON with a line for each record: readable, and a change shows as the lines it changed."""

    def dump(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        return json.dumps(value, indent=1)

    return "{\n" + ",\n".join(f'"{key}": {dump(value)}' for key, value in results.items()) + "\n}\n"


def claim(folder: Path, name: str, settings: dict[str, Any], overwrite: bool) -> None:
    """Makes a folder for results, before anything is measured, and sees that they can and may be written there.

    Args:
        folder: where.
        name: of the files, without their endings.
        settings: those of the run. A run of the same settings is the same run, and may take its place.
        overwrite: whether any other run may be replaced too.

    Raises:
        FileExistsError: the folder holds another run.
        OSError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"out is {folder}, where nothing can be written: {error.strerror}") from None
    there = folder / f"{name}.json"
    if overwrite or not there.exists():
        return
    try:
        results = json.loads(there.read_text())
        known, date = results["settings"], results["environment"]["date"]
    except (OSError, ValueError, KeyError, TypeError):
        known, date = None, "unknown date"
    mine = json.loads(json.dumps(settings))
    if not isinstance(known, dict) or any(known.get(key) != value for key, value in mine.items()):
        raise FileExistsError(
            f"{there} is of another run, of {date} and with other settings; give another --out, or --overwrite"
        )
