"""What every benchmark writes alike: JSON to read, and where the numbers are from."""

import contextlib
import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
from tqdm import tqdm

import lstmjax


def environment(dtype: str, *packages: str) -> dict[str, Any]:
    """What the numbers were measured with; packages that are not installed are left out."""
    device = jax.devices()[0]
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


def progress_bar(items: Iterable, description: str, unit: str, shown: bool, total: int | None = None) -> tqdm:
    """A bar on standard error: alive in a terminal, a line now and then in a log file."""
    return tqdm(
        items, desc=description, unit=unit, total=total, disable=not shown,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip


def dump_json(results: dict[str, Any]) -> str:
    """JSON with a line for each record: readable, and a change shows as the lines it changed."""

    def dump(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        return json.dumps(value, indent=1)

    return "{\n" + ",\n".join(f'"{key}": {dump(value)}' for key, value in results.items()) + "\n}\n"
