"""What each part of DCGAN's modern recipe is worth: the recipe with one change at a time, in equal wall-clock time, on several seeds.

A run is stopped by SIGTERM after 10 minutes, measured, resumed, stopped after 20 more and measured again: Frechet distances of 10,000
samples to the test images, in the features of our classifier. Its own start and the measuring don't count. The learning rates, which
fall to zero at a run's end, hardly do within what is measured.

    python benchmarks/dcgan.py
    python benchmarks/dcgan.py --rows "as it is" --seeds 1 --minutes 2 4
"""

import copy
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import sampler
from benchmarks.normal import require_rows
from utils import data
from utils.scores import fidelity
from utils.shell import UserError, command_line, require_positive

SCRIPT = Path(__file__).parent.parent / "dcgan_cifar10.py"
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


@dataclass
class Table:
    """Train the modern recipe with one change at a time and print the Frechet distances."""

    seeds: int = 2
    """How many: 0, 1 and so on."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which changes."""
    minutes: tuple[float, ...] = (10, 30)
    """Of training, after which a run is measured, one longer than the other."""


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


def players(root: Path) -> tuple[nn.Module, nn.Module]:
    """The generator that a stopped run has saved, and the one that plays, whose weights aren't averaged."""
    _, _, result = sampler.load(root / "models" / "run.safetensors")
    player = copy.deepcopy(result)
    player.load_state_dict(torch.load(root / "outputs" / "run" / "checkpoint.pt", weights_only=True)["parts"]["player"])
    return result, player


def distance(generator: nn.Module, test: torch.Tensor) -> float:
    """The Frechet distance of as many samples as there are test images to these."""
    return fidelity(sampler.images(generator, sampler.latents(generator, len(test), 0)), test, "cifar10")["frechet"]


def main(table: Table) -> None:
    """Prints the table as Markdown, row by row."""
    require_positive(seeds=table.seeds)
    require_rows(table.rows, ROWS)
    if sorted({0, *table.minutes}) != [0, *table.minutes]:
        raise UserError(f"minutes are {table.minutes}, expected above zero and each longer than the one before: give --minutes 10 30")
    test = data.load("cifar10", 32, 3, train=False).images
    print("| |", " | ".join(f"after {minutes:g} minutes, seed by seed" for minutes in table.minutes), "|")
    print("|---" * (len(table.minutes) + 1) + "|")
    for row in table.rows:
        found: dict[str, list[list[float]]] = {}
        for seed in range(table.seeds):
            with tempfile.TemporaryDirectory() as folder:
                arguments = ["--name", "run", "--root", folder, "--seed", str(seed), "--epochs", "100000", *ROWS[row]]
                done = 0.0
                for number, minutes in enumerate(table.minutes):
                    train_for(60 * (minutes - done), arguments + ["--resume"] * (number > 0), Path(folder))
                    done = minutes
                    named = (row, NOT_AVERAGED) if row == "as it is" else (row,)
                    for name, generator in zip(named, players(Path(folder)), strict=False):
                        found.setdefault(name, [[] for _ in table.minutes])[number].append(distance(generator, test))
        for name, distances in found.items():
            print(f"| {name} |", " | ".join(" ".join(f"{each:.2f}" for each in seeds) for seeds in distances), "|", flush=True)


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Table)))
