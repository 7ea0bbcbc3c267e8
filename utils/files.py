"""Errors a user can act on, and files that are either whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """What the user asked for can't be done: one sentence that says what was wrong, what was expected, what to do."""


def require_positive(**numbers: float) -> None:
    """UserError unless each of these is above zero."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}, expected a finite number above zero: give --{name.replace('_', '-')} another value")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it takes the name `path` only when the block ends well.

    Folders on the way are made. Raises UserError when the place can't be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, so that libraries that look at the name's ending still see it.
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            yield part
            os.replace(part, path)
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror or error}): choose a place that can be written to") from error
