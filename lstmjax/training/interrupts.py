"""Ctrl-C and SIGTERM as a request that is honoured between two calls, by all processes after the same one."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lstmjax.training.sharding import auto_mesh


class Interrupts:
    """While entered, SIGINT and SIGTERM are noted; the second SIGINT interrupts at once.

    In a thread other than the main one, signals cannot be caught, and none are.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._agree = _agreement() if jax.process_count() > 1 else None

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def ballot(self) -> Any:
        """Where there are several processes, what any of them has noted by now: dispatched, to be counted later."""
        return None if self._agree is None else self._agree(int(self.noted or 0))

    def count(self, ballot: Any) -> signal.Signals | None:
        """The signal that was noted: by any process when the ballot was cast; by the only one, until now."""
        number = int(self.noted or 0) if ballot is None else int(ballot)
        return signal.Signals(number) if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.noted == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.noted = signal.Signals(number)


def _agreement() -> Any:
    """The largest of what the processes say, dispatched and not waited for."""
    mesh = auto_mesh(all=-1)
    split, everywhere = NamedSharding(mesh, P("all")), NamedSharding(mesh, P())
    largest = jax.jit(jnp.max, out_shardings=everywhere)

    def agree(mine: int) -> Any:
        local = np.full(jax.local_device_count(), mine, np.int32)
        return largest(jax.make_array_from_process_local_data(split, local))

    return agree
