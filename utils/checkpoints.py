"""A run's checkpoints: the newest and the one before, of which one is whole whenever the process ends."""

import io
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch

from utils.device import give_back_memory
from utils.files import VANISHED, to_disk
from utils.shell import FLUSHING, UserError
from utils.state import State, tensors

BUFFERED = 2**28  # bytes; a larger state isn't copied in memory first
UNPACKED = 4  # times the file that its tensors may take: networks that share weights share them there too


class Checkpoints:
    """The file `path` and, beside it, the one before, as torch.save writes them; of tensors, numbers, strings and their containers.

    A new one is written over an older one than those, under a name that says so, because a virtual machine may be slow to find new
    memory for it: where that was measured, 33 MB took 85 ms so, and 11 ms or less over a file that the system still held.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.before = path, path.with_stem(path.stem + "_before")
        self.spare, self.unfinished = path.with_name(f".spare-{path.name}"), path.with_name(f".unfinished-{path.name}")
        self.thread = ThreadPoolExecutor(1)
        self.flushing: Future | None = None

    def exist(self) -> bool:
        """Whether there is one, whole or not."""
        return self.path.exists() or self.before.exists()

    def save(self, state: State) -> None:
        """Takes a state, and writes it while the caller goes on, unless it is large; wait() says that it is on the disk.

        Raises UserError where the one before can't be written. A folder that vanishes meanwhile comes back.
        """
        if sum(tensor.numel() * tensor.element_size() for tensor in tensors(state)) > BUFFERED:
            self.wait()
            self._flush(partial(_put, state))
            give_back_memory()  # networks this large leave the largest gaps
            return
        content = io.BytesIO()
        torch.save(state, content)
        self.wait()
        self.flushing = self.thread.submit(self._flush, lambda file: file.write(content.getbuffer()))
        FLUSHING.add(self.flushing)
        self.flushing.add_done_callback(FLUSHING.discard)

    def wait(self) -> None:
        """Returns when the last state is on the disk under its name; UserError where that failed."""
        if self.flushing is not None:
            flushing, self.flushing = self.flushing, None
            flushing.result()

    def _flush(self, put: Callable[[BinaryIO], object]) -> None:
        for again in (True, False):
            try:
                return self._write(put)
            except OSError as error:
                if not (again and isinstance(error, VANISHED)):
                    hint = "make room, or choose a place that can be written to; then --resume goes on"
                    raise UserError(f"can't write {self.path} ({error.strerror or error}): {hint}") from error

    def _write(self, put: Callable[[BinaryIO], object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.spare.exists():
            os.replace(self.spare, self.unfinished)
        with open(self.unfinished, "r+b" if self.unfinished.exists() else "wb") as file:
            put(file)
            file.truncate()
            os.fsync(file.fileno())
        for old, new in ((self.before, self.spare), (self.path, self.before), (self.unfinished, self.path)):
            if old.exists():  # in this order one of the two is whole at any moment
                os.replace(old, new)
        to_disk(self.path.parent)

    def load(self) -> tuple[State, str]:
        """The newest whole state, on the CPU, and what is to be said about files that aren't; UserError where there is none.

        A file that can't be opened may be whole: it raises OSError.
        """
        reasons = []
        for path in (self.path, self.before):
            if not path.exists():
                continue
            with open(path, "rb") as file:
                try:
                    state = _read(file)
                except Exception as error:  # what is raised for a damaged file depends on where the damage is
                    reasons.append(f"{path} is damaged ({' '.join(str(error).split())[:100]})")
                    continue
            os.replace(path, self.path)  # where it is the one before, the next must not put the damaged one into its place
            return state, "".join(f"{reason}; " for reason in reasons)
        raise UserError(f"{'; '.join(reasons)}, expected a run's checkpoint: start anew, without --resume")

    def remove(self) -> None:
        """All of its files."""
        for path in (self.path, self.before, self.spare, self.unfinished):
            path.unlink(missing_ok=True)


def _put(state: State, file: BinaryIO) -> None:
    """torch.save; where there is no room, with the system's error and not torch's, which doesn't say so."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _read(file: BinaryIO) -> State:
    """What torch.save wrote. torch.load compares no sums, and what it makes of a file may be a thousand times the file; not so here."""
    with zipfile.ZipFile(file) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        broken = packed[0] if packed else archive.testzip()
    if broken:
        raise ValueError(f"in {broken}")
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    state = torch.load(file, map_location="cpu", weights_only=True)
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors(state)) > UNPACKED * size:
        raise ValueError("its tensors take more than the file")
    return state
