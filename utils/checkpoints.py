"""A run's checkpoints: the newest and the one before, of which one is whole whenever the process ends; and the state of chance."""

import os
import random
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import to_disk, unfinished
from utils.shell import UserError


class Checkpoints:
    """The file `path` and, beside it, the one before, as torch.save writes them; of tensors, numbers, strings and their containers."""

    def __init__(self, path: Path) -> None:
        self.path, self.before = path, path.with_stem(path.stem + "_before")
        self.thread = ThreadPoolExecutor(1)
        self.flushing: Future | None = None

    def exist(self) -> bool:
        """Whether there is one, whole or not."""
        return self.path.exists() or self.before.exists()

    def save(self, state: dict[str, Any]) -> None:
        """Writes a state. It is on its way to the disk, which takes long, while the caller goes on; wait() says that it is there.

        Raises UserError where this state, or the one before, can't be written. A folder that vanishes meanwhile comes back.
        """
        self.wait()
        try:
            folder = self._write(state)
            if folder is None:
                folder = self._write(state)
        except (OSError, RuntimeError) as error:  # torch's writer makes the second of the first
            raise _unwritable(self.path, error) from error
        self.flushing = self.thread.submit(self._flush, folder)

    def wait(self) -> None:
        """Returns when the last state is on the disk under its name, or has vanished with its folder; UserError where neither."""
        if self.flushing is not None:
            flushing, self.flushing = self.flushing, None
            try:
                flushing.result()
            except FileNotFoundError:
                return
            except OSError as error:
                raise _unwritable(self.path, error) from error

    def _write(self, state: dict[str, Any]) -> Path | None:
        """The temporary folder with the state's file; None if that vanished."""
        folder = unfinished(self.path)
        try:
            torch.save(state, folder / self.path.name)
        except (OSError, RuntimeError):
            if not folder.exists():
                return None
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def _flush(self, folder: Path) -> None:
        try:
            to_disk(folder / self.path.name)
            if self.path.exists():
                os.replace(self.path, self.before)
            os.replace(folder / self.path.name, self.path)
            to_disk(self.path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def load(self) -> tuple[dict[str, Any], str]:
        """The newest whole state, on the CPU, and what is to be said about files that aren't; UserError where there is none."""
        reasons = []
        for path in (self.path, self.before):
            if not path.exists():
                continue
            try:
                state = _read(path)
            except Exception as error:  # what is raised for a damaged file depends on where the damage is
                reasons.append(f"{path} is damaged ({' '.join(str(error).split())[:100]})")
                continue
            os.replace(path, self.path)  # where it is the one before, the next must not put the damaged one into its place
            return state, "".join(f"{reason}; " for reason in reasons)
        raise UserError(f"{'; '.join(reasons)}, expected a run's checkpoint: start anew, without --resume")

    def remove(self) -> None:
        """Both files."""
        self.path.unlink(missing_ok=True)
        self.before.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """What torch.save wrote. torch.load compares no sums, and unpacks what may be a thousand times the file; this does neither."""
    with zipfile.ZipFile(path) as file:
        packed = [entry.filename for entry in file.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        broken = packed[0] if packed else file.testzip()
    if broken:
        raise ValueError(f"in {broken}")
    return torch.load(path, map_location="cpu", weights_only=True)


def floats(state: Any) -> Iterator[torch.Tensor]:
    """The tensors of floats anywhere in a state."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point():
            yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from floats(part)


def _unwritable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return UserError(f"can't write {path} ({reason}): make room, or choose a place that can be written to; then --resume goes on")


def random_states(device: torch.device) -> dict[str, Any]:
    """Of every generator of random numbers that a training may use."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    states = {"torch": torch.get_rng_state(), "numpy": numpy, "python": random.getstate()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """What random_states found."""
    torch.set_rng_state(states["torch"])
    numpy = states["numpy"]
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].numpy().astype(np.uint32)}})
    random.setstate(states["python"])
    if "device" in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])
