"""What the parts of DCGAN's modern recipe are worth: the recipe with one change at a time, in equal wall-clock time, on several seeds.

A run is stopped by SIGTERM after 10 minutes, measured, resumed, stopped after 20 more and measured again: Frechet distances of 10,000
samples to the test images, in the features of our classifier. Its own start and the measuring don't count. The learning rates, which
otherwise fall to zero, stay as they are: where they fall, a run can't be measured midway.

All of it takes some 14 hours. What is measured is added to dcgan.csv, beside this file, and not measured again: the table may be made in
parts.

    python benchmarks/dcgan.py
    python benchmarks/dcgan.py --rows "as it is" --seeds 1 --minutes 2 4 --file trial.csv
"""

import copy
import csv
import itertools
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from torch import nn
from torch.optim.swa_utils import update_bn

sys.path.insert(0, str(Path(__file__).parent.parent))
import sampler
from benchmarks.normal import require_rows
from dcgan_cifar10 import SETTLING
from utils import data
from utils.models import read_facts
from utils.scores import fidelity
from utils.shell import UserError, command_line, require_positive

MEASURED = Path(__file__).with_suffix(".csv")
SCRIPT = Path(__file__).parent.parent / "dcgan_cifar10.py"
IMAGES = 50_000  # of CIFAR-10's
NOT_AVERAGED = "G's weights as they are, no average"  # which needs no run of its own
ROWS: dict[str, list[str]] = {
    "as it is": [],
    "no labels": ["--labels", "False"],
    "relativistic pairing loss": ["--loss", "relativistic"],
    "hinge loss": ["--loss", "hinge"],
    "gradient penalty": ["--penalty", "0.01"],
    "no batch norm in D": ["--batch-norm", "False"],
    "spectral norm for batch norm in D": ["--batch-norm", "False", "--spectral-norm", "True"],
    "augmentation": ["--augment", "True"],
    "no flips": ["--flips", "False"],
    "G's rate twice D's": ["--generator-rate", "2"],
    "the paper's batches of 128": ["--batch-size", "128"],
    "the paper's width": ["--base", "128"],
    "the paper's recipe": ["--recipe", "paper"],
}


class Measured(NamedTuple):
    """A line of the file: a run after so many minutes."""

    row: str
    seed: int
    minutes: float
    passes: float
    frechet: float


@dataclass
class Table:
    """Train the modern recipe with one change at a time and print the Frechet distances."""

    seeds: int = 2
    """How many: 0, 1 and so on."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which changes."""
    minutes: tuple[float, ...] = (10, 30)
    """Of training, after which a run is measured, one longer than the other."""
    file: Path = MEASURED
    """What is measured already, and where more is added."""


def train_for(seconds: float, arguments: list[str], folder: Path) -> None:
    """Lets the script train for so long, from its first step on, and stops it; RuntimeError with what it said where it ends before."""
    said = folder / "said.txt"
    with open(said, "w") as file, subprocess.Popen([sys.executable, SCRIPT, *arguments], stdout=file, stderr=file) as process:
        until = None
        while until is None or time.perf_counter() < until:
            time.sleep(0.1)
            if until is None and "loss D" in said.read_text():
                until = time.perf_counter() + seconds
            if process.poll() is not None:
                raise RuntimeError(f"{SCRIPT.name} ended too early: {said.read_text()}")
        process.send_signal(signal.SIGTERM)
    if process.returncode != 128 + signal.SIGTERM:
        raise RuntimeError(f"{SCRIPT.name} didn't save: {said.read_text()}")


def stopped(root: Path) -> tuple[float, nn.Module, nn.Module]:
    """Of a run that was: its passes over CIFAR-10, its generator, and the one that plays, whose weights aren't averaged."""
    weights = root / "models" / "run.safetensors"
    _, config, result = sampler.load(weights)
    player = copy.deepcopy(result)
    player.load_state_dict(torch.load(root / "outputs" / "run" / "checkpoint.pt", weights_only=True)["parts"]["player"])
    update_bn(sampler.latents(player, SETTLING, 0).split(500), player)  # as the average has them, so that the weights alone differ
    return int(read_facts(weights)["iteration"]) * config.batch_size / IMAGES, result, player


def distance(generator: nn.Module, test: torch.Tensor) -> float:
    """The Frechet distance of as many samples as there are test images to these."""
    return fidelity(sampler.images(generator, sampler.latents(generator, len(test), 0)), test, "cifar10")["frechet"]


def measure(row: str, seed: int, minutes: tuple[float, ...], test: torch.Tensor) -> list[Measured]:
    """Trains one run; after so many minutes each, its distance, and where it is the recipe as it is, the player's too."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--name", "run", "--root", folder, "--seed", str(seed), "--decay", "False", "--epochs", "100000", *ROWS[row]]
        for done, until in itertools.pairwise((0, *minutes)):
            train_for(60 * (until - done), arguments + ["--resume"] * (done > 0), Path(folder))
            passes, *generators = stopped(Path(folder))
            named = (row, NOT_AVERAGED) if row == "as it is" else (row,)
            for name, generator in zip(named, generators, strict=False):
                found.append(Measured(name, seed, until, round(passes, 2), round(distance(generator, test), 3)))
    return found


def read(file: Path) -> list[Measured]:
    """What is measured already."""
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        return [Measured(row, int(seed), *map(float, numbers)) for row, seed, *numbers in list(csv.reader(lines))[1:]]


def add(found: list[Measured], file: Path) -> None:
    """To what is measured already."""
    new = not file.exists()
    with open(file, "a", newline="") as lines:
        csv.writer(lines).writerows([Measured._fields] * new + found)


def main(table: Table) -> None:
    """Measures what isn't yet, and prints the table as Markdown."""
    require_positive(seeds=table.seeds)
    require_rows(table.rows, ROWS)
    if sorted({0, *table.minutes}) != [0, *table.minutes]:
        raise UserError(f"minutes are {table.minutes}, expected above zero and each longer than the one before: give --minutes 10 30")
    test = data.load("cifar10", 32, 3, train=False).images
    for seed, row in itertools.product(range(table.seeds), table.rows):
        known = {one.minutes for one in read(table.file) if (one.row, one.seed) == (row, seed)}
        if not known.issuperset(table.minutes):
            found = measure(row, seed, table.minutes, test)
            add([one for one in found if one.minutes not in known], table.file)
    show(read(table.file), table.minutes)


def show(measured: list[Measured], minutes: tuple[float, ...]) -> None:
    """Prints the table: the distances, seed by seed, and what the data were passed over by the last of these minutes."""
    titles = [f"after {each:g} minutes" for each in minutes]
    print("| |", " | ".join(titles), "| passes over the data |")
    print("|---" * (len(minutes) + 2) + "|")
    for row in sorted({one.row for one in measured if one.minutes == minutes[-1]}, key=[*ROWS, NOT_AVERAGED].index):
        ours = sorted(one for one in measured if one.row == row)
        cells = [" ".join(f"{one.frechet:.2f}" for one in ours if one.minutes == each) for each in minutes]
        passes = statistics.mean(one.passes for one in ours if one.minutes == minutes[-1])
        print(f"| {row} |", " | ".join(cells), f"| {passes:.1f} |")


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Table)))
