"""Files that are either whole or not there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.shell import UserError

VANISHED = (FileNotFoundError, FileExistsError)  # raised where a folder is moved away just after it was made, or just before

@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it takes the name `path` only when the block ends well and all is on the disk.

    Folders on the way are made. Raises UserError when the place can't be written to.
    """
    path, folder = Path(path), None
    try:
        folder = unfinished(path)
        yield folder / path.name
        to_disk(folder / path.name)
        os.replace(folder / path.name, path)
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror or error}): choose a place that can be written to") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a file as replacing() does; once more if its folder vanishes meanwhile, which comes back."""
    for again in (True, False):
        try:
            with replacing(path) as part:
                part.write_bytes(content)
            return
        except UserError as error:
            if not (again and isinstance(error.__cause__, VANISHED)):
                raise


def unfinished(path: Path) -> Path:
    """A new folder beside `path` to write a file of that name in, so that libraries that look at the name's ending still see it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".unfinished-{path.name}-", dir=path.parent))


def remove_unfinished(path: Path) -> None:
    """What processes that were killed left of `path`."""
    for folder in path.parent.glob(f".unfinished-{path.name}-*/"):
        shutil.rmtree(folder, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Has the system write what it holds of a file, or of a folder's names, to the disk itself."""
    if path.is_dir() and os.name == "nt":  # where folders can't be opened
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
