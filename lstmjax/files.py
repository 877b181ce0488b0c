"""Files that are whole or absent: the one way in which this library replaces a file."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, whose file is put in the place of ``path`` in one step once it is whole and on the disk.

    Where the block fails, ``path`` stays as it was and nothing is left over. A symbolic link stays a link: the file
    that it points to is replaced.

    Args:
        path: the file; its directory exists.

    Yields:
        The path to write to, in the same directory.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with replacing(path) as part:
    ...     _ = part.write_text("1 2 3")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('1 2 3', 1)
    """
    place = Path(path).resolve()
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
