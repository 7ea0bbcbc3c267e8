"""Files that are either whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.shell import UserError


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
