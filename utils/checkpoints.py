"""A run's checkpoints: the newest and the one before, of which one is whole whenever the process ends; what is in them, and what may be."""

import copy
import io
import math
import os
import random
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
import torch
from typeguard import CollectionCheckStrategy, check_type

from utils.files import VANISHED, to_disk
from utils.shell import FLUSHING, UserError

UNPACKED = 4  # times the file that its tensors may take: networks that share weights share them there too


class Winner(TypedDict):
    """The best generator so far."""

    value: float
    facts: dict[str, float]
    weights: dict[str, torch.Tensor]


class Epoch(TypedDict):
    """One that isn't over: its steps so far, their seconds, and the sums of the numbers logged together, each over so many steps."""

    done: int
    seconds: float
    sums: dict[tuple[str, ...], tuple[torch.Tensor, int]]


class State(TypedDict):
    """All that decides the future of a run."""

    config: dict[str, Any]
    images: tuple[int, int] | None  # their number and checksum
    rows: list[dict[str, float]]  # of metrics.csv
    frames: dict[str, torch.Tensor]  # the bytes of its pictures, as tensors because these are read without running anything
    winner: Winner | None
    parts: dict[str, dict[str, Any]]  # networks and optimizers
    scaler: dict[str, Any]
    iteration: int
    epoch: Epoch
    order: torch.Tensor  # the state of the generator that shuffles, before it does so for this epoch
    random: dict[str, Any]


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
        """Takes a state, and writes it while the caller goes on; wait() says that it is on the disk.

        Raises UserError where the one before can't be written. A folder that vanishes meanwhile comes back.
        """
        content = io.BytesIO()
        torch.save(state, content)
        self.wait()
        self.flushing = self.thread.submit(self._flush, content.getbuffer())
        FLUSHING.add(self.flushing)
        self.flushing.add_done_callback(FLUSHING.discard)

    def wait(self) -> None:
        """Returns when the last state is on the disk under its name; UserError where that failed."""
        if self.flushing is not None:
            flushing, self.flushing = self.flushing, None
            flushing.result()

    def _flush(self, content: memoryview) -> None:
        for again in (True, False):
            try:
                return self._write(content)
            except OSError as error:
                if not (again and isinstance(error, VANISHED)):
                    hint = "make room, or choose a place that can be written to; then --resume goes on"
                    raise UserError(f"can't write {self.path} ({error.strerror or error}): {hint}") from error

    def _write(self, content: memoryview) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.spare.exists():
            os.replace(self.spare, self.unfinished)
        with open(self.unfinished, "r+b" if self.unfinished.exists() else "wb") as file:
            file.write(content)
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


def tensors(state: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Those anywhere in a state; in a container that is there many times, once."""
    seen = set() if seen is None else seen
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple) and id(state) not in seen:
        seen.add(id(state))
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part, seen)


def check(state: State) -> None:
    """ValueError, TypeError or typeguard's TypeCheckError unless a file holds what a run goes on from; its networks aren't looked at."""
    check_type(state, State, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    rows, winner, epoch = state["rows"], state["winner"], state["epoch"]
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError("in it are other metrics than a run's")
    facts = winner["facts"] | {"value": winner["value"]} if winner else {}
    numbers = [epoch["seconds"], *facts.values(), *(number for row in rows for number in row.values())]
    counts = [epoch["done"], state["iteration"], *(count - 1 for _, count in epoch["sums"].values())]
    if not all(math.isfinite(number) for number in numbers + counts) or any(isinstance(number, bool) for number in numbers + counts):
        raise ValueError("in it is a number that isn't finite")
    if not all(0 <= count < 2**63 for count in counts):
        raise ValueError("in it is a count that isn't possible")
    if any(total.shape != (len(names),) for names, (total, _) in epoch["sums"].items()):
        raise ValueError("in it are sums of other numbers")
    if winner is not None and "epoch" not in winner["facts"]:
        raise ValueError("in it the best generator is of no epoch")


def fill(part: Any, saved: dict[str, Any]) -> None:
    """part.load_state_dict; for an optimizer without rates and the like, which are the Config's, and with the shapes compared."""
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(saved)
        return
    trial = copy.deepcopy(part)  # takes a step, to see what a state has to look like: the next real one would trust it blindly
    for weight in _weights(trial):
        weight.grad = torch.zeros_like(weight)
    trial.step()
    part.load_state_dict({"state": saved["state"], "param_groups": part.state_dict()["param_groups"]})
    forms = {weight: _form(trial.state[tried]) for weight, tried in zip(_weights(part), _weights(trial), strict=True)}
    if any(_form(values) != forms.get(weight) for weight, values in part.state.items()):
        raise ValueError("in it an optimizer has another state")


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All that it moves."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _form(values: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Of an optimizer's state for a weight, all but the numbers in it."""
    return {
        name: (value.dtype, value.shape, [stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1])
        for name, value in values.items()
    }


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
