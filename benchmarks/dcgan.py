"""What the parts of DCGAN's modern recipe are worth: one change at a time, in equal time, on several seeds.

Each changes the base, which is the recipe without augmentation and gradient penalty, as it was when they were found to pay.

Frechet distances of 10,000 samples to the test images, in the features of our classifier, after 10 and after 30 minutes of training. The
learning rates, which otherwise fall to zero, stay as they are: where they fall, a run can't be measured midway.

The speed of a shared machine comes and goes by a third within minutes, so that runs by the clock would differ by its moods. A minute here
is 60 x 271 images of the base (SPEED), and of a change that makes it 10% slower, 10% fewer; what it makes is measured by two
runs that take turns of a second. Each run is measured after whole epochs (in dcgan.csv the base's of seed 0, which is older, after 10 and
30 minutes by the clock). Between two measurements, the logarithm of the distance is taken as a straight line over the logarithm of the
passes.

All of it takes some 16 hours. What is measured is added to dcgan.csv and dcgan_speed.csv, beside this file, and not measured again. So
the table may be made in parts, and the runs, all of them in fp32, on machines of any speed, or with OMP_NUM_THREADS=1 beside each other;
but a speed is the ratio of two runs on one machine.

    python benchmarks/dcgan.py
    python benchmarks/dcgan.py --rows "the base" --seeds 1 --minutes 4 8 --file trial.csv
"""

import copy
import csv
import itertools
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
SPEED = 271  # images a second: of the base in its first run on two cores of an AMD EPYC without bf16 units
TURNS = 60  # of a second, that either run has while their speeds are compared
TITLES = "row", "seed", "passes", "frechet"  # of dcgan.csv
BASE = "the base"
NOT_AVERAGED = "G's weights as they are, no average"  # which needs no run of its own
WITHOUT = "--augment", "False", "--penalty", "0"  # which makes the recipe the base
ROWS: dict[str, list[str]] = {
    BASE: [],
    "no labels": ["--labels", "False"],
    "relativistic pairing loss": ["--loss", "relativistic"],
    "hinge loss": ["--loss", "hinge"],
    "gradient penalty": ["--penalty", "0.01"],
    "no batch norm in D": ["--batch-norm", "False"],
    "spectral norm for batch norm in D": ["--batch-norm", "False", "--spectral-norm", "True"],
    "no flips": ["--flips", "False"],
    "augmentation": ["--augment", "True"],
    "augmentation and gradient penalty": ["--augment", "True", "--penalty", "0.01"],
    "G's rate twice D's": ["--generator-rate", "2"],
    "augmentation, gradient penalty and G's rate twice D's": ["--augment", "True", "--penalty", "0.01", "--generator-rate", "2"],
    "the paper's batches of 128": ["--batch-size", "128"],
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
    """Of training, after which the distances are told."""
    file: Path = MEASURED
    """What is measured already, and where more is added; of the changes' speeds FILE_speed.csv."""


def command(row: str, folder: str) -> list[str]:
    """Of a run of the script with a row's constants."""
    always = ["--name", "run", "--root", folder, "--device", "cpu", "--precision", "fp32", "--decay", "False"]
    return [sys.executable, str(SCRIPT), *always, *WITHOUT, *ROWS[row]]


def relative_speed(row: str) -> float:
    """A change's images a second over those of the base: what either run gets done in its turns of a second."""
    with tempfile.TemporaryDirectory() as folder:
        one, other = str(Path(folder) / "changed"), str(Path(folder) / "base")
        with halted(command(row, one), one) as changed, halted(command(BASE, other), other) as base:
            for _, run in itertools.product(range(TURNS), (changed, base)):
                run.send_signal(signal.SIGCONT)
                time.sleep(1)
                run.send_signal(signal.SIGSTOP)
        return images_seen(one) / images_seen(other)


@contextmanager
def halted(command: list[str], folder: str) -> Iterator[subprocess.Popen]:
    """A run, halted after its first steps; in the end it goes on, is told to stop and saves. RuntimeError where it doesn't."""
    said = Path(folder).with_suffix(".txt")
    with open(said, "w") as file, subprocess.Popen(command, stdout=file, stderr=file) as run:
        try:
            while run.poll() is None and "loss D" not in said.read_text():
                time.sleep(0.1)
            run.send_signal(signal.SIGSTOP)
            if run.poll() is None:
                yield run
        finally:
            run.send_signal(signal.SIGTERM)
            run.send_signal(signal.SIGCONT)
            status = run.wait()
        if status != 128 + signal.SIGTERM:
            raise RuntimeError(f"{' '.join(command)} didn't save: {said.read_text()}")


def images_seen(folder: str) -> int:
    """By a run so far; of those up to two steps' are from before its first turn and after its last."""
    weights = Path(folder) / "models" / "run.safetensors"
    return int(read_facts(weights)["iteration"]) * sampler.load(weights)[1].batch_size


def measure(row: str, seed: int, passes: list[float], test: torch.Tensor) -> list[tuple]:
    """One run at the whole epochs around so many passes; where it is the base, of the player without the average too."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for epoch in sorted({rounded(each) for each in passes for rounded in (math.floor, math.ceil)}):
            more = ["--seed", str(seed), "--epochs", str(epoch), *["--resume"] * bool(found)]
            subprocess.run([*command(row, folder), *more], check=True, stdout=subprocess.DEVNULL)
            _, _, result = sampler.load(Path(folder) / "models" / "run.safetensors")
            found.append((row, seed, epoch, distance(result, test)))
            if row == BASE:
                found.append((NOT_AVERAGED, seed, epoch, distance(player(result, Path(folder)), test)))
    return found


def player(result: nn.Module, root: Path) -> nn.Module:
    """The generator of a run that plays, whose weights aren't averaged; with a batch norm as of the result, so that they alone differ."""
    played = copy.deepcopy(result).float()  # which sampling made float64
    played.load_state_dict(torch.load(root / "outputs" / "run" / "checkpoint.pt", weights_only=True)["parts"]["player"])
    update_bn(sampler.latents(played, SETTLING, 0).split(500), played)
    return played


def distance(generator: nn.Module, test: torch.Tensor) -> float:
    """The Frechet distance of as many samples as there are test images to these."""
    return round(fidelity(sampler.images(generator, sampler.latents(generator, len(test), 0)), test, "cifar10")["frechet"], 3)


def between(run: dict[float, float], passes: float) -> float | None:
    """A run's distance after so many passes, from its distances after others; None where these aren't on both sides."""
    below = max((each for each in run if each <= passes), default=None)
    above = min((each for each in run if each >= passes), default=None)
    if below is None or above is None:
        return None
    share = math.log(passes / below) / math.log(above / below) if below < above else 0
    return run[below] ** (1 - share) * run[above] ** share


def read(file: Path) -> list[list[str]]:
    """The lines of what is measured already."""
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        return list(csv.reader(lines))[1:]


def read_runs(file: Path) -> dict[tuple[str, int], dict[float, float]]:
    """Of each row and seed in dcgan.csv the distances, by the passes."""
    runs = defaultdict(dict)
    for row, seed, passes, frechet in read(file):
        runs[row, int(seed)][float(passes)] = float(frechet)
    return runs


def read_speeds(file: Path) -> dict[str, float]:
    """Each row's speed, in units of the base's: dcgan_speed.csv."""
    return {BASE: 1.0, NOT_AVERAGED: 1.0} | {row: float(relative) for row, relative in read(file)}


def add(titles: tuple[str, ...], found: list[tuple], file: Path) -> None:
    """To what is measured already."""
    new = not file.exists()
    with open(file, "a", newline="") as lines:
        csv.writer(lines).writerows([titles] * new + found)


def main(table: Table) -> None:
    """Measures what isn't yet, and prints the table as Markdown."""
    require_positive(seeds=table.seeds)
    require_rows(table.rows, ROWS)
    if sorted({0, *table.minutes}) != [0, *table.minutes]:
        raise UserError(f"minutes are {table.minutes}, expected above zero and each longer than the one before: give --minutes 10 30")
    test = data.load("cifar10", 32, 3, train=False).images
    speed_file = table.file.with_stem(f"{table.file.stem}_speed")
    for row in table.rows:
        if row not in read_speeds(speed_file):
            add(("row", "relative"), [(row, round(relative_speed(row), 3))], speed_file)
    speeds = read_speeds(speed_file)
    wanted = {row: [passes_in(each, speeds[row]) for each in table.minutes] for row in table.rows}
    for row, (first, *_) in wanted.items():
        if first < 1:
            raise UserError(f"'{row}' has no whole epoch in {table.minutes[0]:g} minutes: give longer --minutes or other --rows")
    for seed, row in itertools.product(range(table.seeds), table.rows):
        if None in [between(read_runs(table.file)[row, seed], each) for each in wanted[row]]:
            add(TITLES, measure(row, seed, wanted[row], test), table.file)
    show(read_runs(table.file), speeds, table.minutes)


def passes_in(minutes: float, relative: float) -> float:
    """Passes over the data in so many minutes."""
    return 60 * minutes * SPEED * relative / IMAGES


def show(runs: dict[tuple[str, int], dict[float, float]], speeds: dict[str, float], minutes: tuple[float, ...]) -> None:
    """Prints the table: the distances, seed by seed, and the passes over the data in the last of the minutes."""
    print("| |", " | ".join(f"after {each:g} minutes" for each in minutes), f"| passes in {minutes[-1]:g} minutes |")
    print("|---" * (len(minutes) + 2) + "|")
    measured, seeds = {row for row, _ in runs}, sorted({seed for _, seed in runs})
    for row in [each for each in (*ROWS, NOT_AVERAGED) if each in measured and each in speeds]:
        passes = [passes_in(each, speeds[row]) for each in minutes]
        found = [[between(runs.get((row, seed), {}), each) for seed in seeds] for each in passes]
        cells = [" ".join("-" if each is None else f"{each:.2f}" for each in column) for column in found]
        constants = f", `{' '.join(ROWS[row])}`" if ROWS.get(row) else ""
        print(f"| {row}{constants} |", " | ".join(cells), f"| {passes[-1]:.1f} |")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # not without ending its runs
    command_line(lambda: main(tyro.cli(Table)))
