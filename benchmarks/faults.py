"""What a run survives, and what that costs: the tests do a sample of this.

Prints three tables. Each experiment is killed outright at 25 moments, a third of them meant to find it writing a checkpoint, and taken to
its end, which has to be that of a run never interrupted. Each reader of files gets 10,000 mutants of a whole file, and --resume 1,000 whole
checkpoints with a value in them changed. And a training on MNIST is timed while it saves its checkpoints.

    python benchmarks/faults.py
    python benchmarks/faults.py --kills 5 --mutants 0
"""

import contextlib
import csv
import io
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import tyro

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("", "tests"))
from runs import RUNS, Started, assert_all_whole, make_pictures, result, save_often
from spoiled import READERS, spoil, spoil_values

import gan_mnist
from utils.checkpoints import Checkpoints
from utils.run import Run
from utils.shell import command_line, require_not_negative

EPOCHS_TIMED = 8


@dataclass
class Table:
    """Break runs and files, and print what became of them."""

    runs: tuple[str, ...] = tuple(RUNS)
    """Which runs are killed."""
    kills: int = 25
    """Of each run (0: leave that table out)."""
    mutants: int = 10_000
    """Of each reader's file, and a tenth as many checkpoints with a changed value (0: leave that table out)."""
    seed: int = 0
    """Of the moments and the mutations."""


def kill(name: str, folder: Path, data: Path, kills: int, chance: random.Random) -> list[str]:
    """The cells of a run's row."""
    folder.mkdir()
    begun = time.monotonic()
    Started(name, folder / "whole", data).end(0)
    seconds, expected = time.monotonic() - begun, result(folder / "whole")
    anew = same = writing = 0
    for number in range(kills):
        root = folder / str(number)
        run = Started(name, root, data, before=save_often)
        if number % 3 == 0:
            run.wait_for_writing(chance)
        else:
            time.sleep(chance.uniform(0, seconds))
        run.signal(signal.SIGKILL)
        run.end()
        writing += bool(list(root.glob("outputs/run/.unfinished-*")))
        assert_all_whole(root)
        kept = list(root.glob("outputs/run/checkpoint*.pt"))
        anew += not kept
        on = Started(name, root, data, *(["--resume"] if kept else []))
        on.end()
        same += on.process.exitcode == 0 and result(root) == expected
    return [str(kills), str(writing), str(anew), f"{same} of {kills}"]


def cost(model: str, root: Path) -> list[str]:
    """The cells of gan_mnist's row: its checkpoint, an epoch, and of that what saving takes away from training, on MNIST."""
    waited, beside = [], []

    def save(self: Run) -> None:
        begun = time.perf_counter()
        saved(self)
        waited.append(time.perf_counter() - begun)

    def flush(self: Checkpoints, content: memoryview) -> None:
        begun = time.thread_time()
        flushed(self, content)
        beside.append(time.thread_time() - begun)

    saved, flushed = Run._save_checkpoint, Checkpoints._flush
    config = gan_mnist.Config(model=model, epochs=EPOCHS_TIMED, estimate_every=0, root=str(root), name="run", device="cpu")
    patched = mock.patch.object(Run, "_save_checkpoint", save), mock.patch.object(Checkpoints, "_flush", flush)
    with contextlib.redirect_stdout(sys.stderr), patched[0], patched[1]:
        gan_mnist.train(config)
    with open(root / "outputs" / "run" / "metrics.csv", newline="") as file:
        epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
    size = (root / "outputs" / "run" / "checkpoint.pt").stat().st_size
    times = [statistics.median(seconds) for seconds in (epochs, waited, beside)]
    return [f"{size / 1e6:.0f}", *(f"{seconds:.3f}" for seconds in times), f"{sum(times[1:]) / times[0]:.2%}"]


def fates(count: int, refused: int, wrong: list[str]) -> list[str]:
    """The cells of a row about so many mutants; what happened to those that weren't refused or read goes to stderr."""
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return [f"{count:,}", f"{refused:,}", f"{count - refused - len(wrong):,}", str(len(wrong))]


def row(*cells: str) -> None:
    """Of a table in Markdown."""
    print("|", " | ".join(cells), "|", flush=True)


def head(*columns: str) -> None:
    """The same, of a new table."""
    print()
    row(*columns)
    row(*["---"] * len(columns))


def main(table: Table) -> None:
    """Prints the tables."""
    require_not_negative(kills=table.kills, mutants=table.mutants)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        make_pictures(data)
        if table.kills:
            head("run", "killed", "while writing a file", "before its first checkpoint", "ends like one never killed")
            for name in table.runs:
                row(name, *kill(name, Path(folder) / name, data, table.kills, random.Random(f"{name} {table.seed}")))
        if table.mutants:
            head("file", "mutants", "refused with a sentence", "read", "crashes, hangs, tracebacks")
            for reader in READERS:
                row(reader, *fates(table.mutants, *spoil(reader, Path(folder), table.mutants, table.seed)))
            some = math.ceil(table.mutants / 10)  # each of them trains for a moment
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                found = spoil_values(data, Path(folder), some, table.seed)
            row("checkpoint, values in it", *fates(some, *found))
        head("model", "checkpoint, MB", "epoch, s", "saving, s", "flushing it beside the training, s of CPU", "share of the epoch")
        for model in gan_mnist.GENERATORS:
            row(model, *cost(model, Path(folder) / model))


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Table)))
