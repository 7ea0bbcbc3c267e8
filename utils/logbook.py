"""A run's numbers: in the progress bar as they come, epoch by epoch in metrics.csv and TensorBoard; and TensorBoard's pictures."""

import csv
import io
import math
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary
from tqdm import tqdm

from utils.files import VANISHED, write_whole
from utils.shell import BARS, UserError

SECONDS_BETWEEN_READINGS = 0.5  # of the numbers in the progress bar: each reading waits for the device


class NotFinite(UserError):
    """A logged number isn't."""


class Logbook:
    """Of a run whose files are in the folder `outputs`.

    shown: which of the numbers the progress bar shows, and how ("loss {:.2f}"); it has to fit into 80 columns.
    writes: whether this process is the one that has a bar and writes files.
    rows: of metrics.csv, one for each whole epoch, as dicts.
    """

    def __init__(self, outputs: Path, shown: dict[str, str], epochs: int, writes: bool) -> None:
        self.path, self.board = outputs / "metrics.csv", outputs / "tensorboard" / "events.out.tfevents.run"
        self.shown, self.epochs, self.writes = shown, epochs, writes
        self.rows: list[dict[str, float]] = []
        self.bar: tqdm | None = None
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forgets what the last one had."""
        self.sums: dict[tuple[str, ...], tuple[torch.Tensor, int]] = {}  # of the numbers logged together, and of how many steps
        self.unread: list[tuple[int, tuple[str, ...], torch.Tensor]] = []  # the iteration and the numbers, since the last reading
        self.means: dict[str, float] = {}
        self.read_at = time.perf_counter()

    def add(self, iteration: int, epoch: int, names: tuple[str, ...], numbers: torch.Tensor) -> None:
        """Adds numbers to the epoch's means. They stay on the device, which isn't waited for, but every half second for the bar."""
        total, count = self.sums.get(names, (0.0, 0))
        self.sums[names] = total + numbers, count + 1
        self.unread.append((iteration, names, numbers))
        if time.perf_counter() - self.read_at > SECONDS_BETWEEN_READINGS:
            self.read(epoch)

    def read(self, epoch: int) -> None:
        """Brings the epoch's means so far from the device into the bar; NotFinite, with the first such number, where one isn't."""
        self.means = {}
        for names, (total, count) in self.sums.items():
            self.means |= zip(names, (total / count).tolist(), strict=True)
        if not all(map(math.isfinite, self.means.values())):
            logged = ((at, name, value) for at, names, step in self.unread for name, value in zip(names, step.tolist(), strict=True))
            for at, name, value in logged:
                if not math.isfinite(value):
                    raise NotFinite(f"{name} is {value} in iteration {at + 1:,}, in epoch {epoch}")
            raise NotFinite(f"a mean of epoch {epoch} isn't finite: {self.means}")  # another process's number, or a sum too large
        self.unread.clear()
        if self.bar is not None:
            known = (self.rows[-1] if self.rows else {}) | self.means  # what is measured once an epoch stands there until the next time
            numbers = " ".join(form.format(known[name]) for name, form in self.shown.items() if name in known).replace(" 0.", " .")
            self.bar.set_description_str(f"{epoch}/{self.epochs} {numbers} ", refresh=False)
        self.read_at = time.perf_counter()

    def end_epoch(self, epoch: int, **more: float) -> None:
        """Makes the means, and more numbers, a row of metrics.csv, and the means TensorBoard's."""
        self.read(epoch)
        means = self.means
        self.rows.append({"epoch": epoch, **means, **more})
        self.start_epoch()
        if self.writes:
            self.write_table()
            self._row_to_tensorboard(self.rows[-1])

    def write_table(self) -> None:
        """Makes metrics.csv what `rows` are."""
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(dict.fromkeys(name for row in self.rows for name in row)))
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, table.getvalue().encode())

    def write_tensorboard(self, real: Image.Image, pictures: Iterable[tuple[int, Image.Image]]) -> None:
        """Begins TensorBoard's file anew, with `rows` and the pictures: in an old one a process may have broken off."""
        shutil.rmtree(self.board.parent, ignore_errors=True)
        self.picture("real", real, 0)
        for row in self.rows:
            self._row_to_tensorboard(row)
        for epoch, picture in pictures:
            self.picture("fake", picture, epoch)

    def _row_to_tensorboard(self, row: dict[str, float]) -> None:
        for name in row.keys() - {"epoch"}:
            self._to_tensorboard(summary.scalar(name, row[name]), int(row["epoch"]))

    def picture(self, tag: str, picture: Image.Image, epoch: int) -> None:
        """Adds a picture to TensorBoard's."""
        pixels = np.asarray(picture)
        self._to_tensorboard(summary.image(tag, pixels, dataformats="HWC" if pixels.ndim == 3 else "HW"), epoch)

    def _to_tensorboard(self, values: Any, epoch: int) -> None:
        """Not by TensorBoard's own writer, whose thread ends with a traceback where the disk is full."""
        for again in (True, False):
            try:
                self.board.parent.mkdir(parents=True, exist_ok=True)
                with open(self.board, "ab") as file:
                    events = [] if file.tell() else [Event(wall_time=time.time(), file_version="brain.Event:2")]
                    for event in [*events, Event(wall_time=time.time(), step=epoch, summary=values)]:
                        RecordWriter(file).write(event.SerializeToString())
                return
            except OSError as error:
                if not (again and isinstance(error, VANISHED)):
                    raise UserError(f"can't write {self.board} ({error.strerror}): make room, or choose another place") from error

    def open_bar(self, done: int, total: int, unit: str) -> None:
        """done, total: how many of the unit."""
        self.bar = tqdm(
            total=total,
            initial=done,
            unit=f" {unit}",
            unit_scale=True,
            dynamic_ncols=True,
            bar_format="{desc}{bar} {rate_fmt} {remaining}",  # {bar} takes what the others leave of the line
            disable=not self.writes,
        )
        BARS.append(self.bar)

    def close_bar(self) -> None:
        """If there is one."""
        if self.bar is not None:
            self.bar.close()
            BARS.remove(self.bar)
