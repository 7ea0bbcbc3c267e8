"""Whether the fast path costs anything: the same runs in the machine's short floats and in fp32, over several seeds.

Prints the losses and D's accuracy of the last epoch, the log-likelihood and the Frechet distance as score.py measures them, seed by
seed, their means and standard deviations, and how far the means lie apart; and writes both precisions' grids of the first three
seeds side by side.

    python benchmarks/precision.py --model leaky
"""

import contextlib
import csv
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
import gan_mnist
import score
from utils.device import pick_precision
from utils.images import save_png
from utils.shell import UserError, command_line

LOGGED, SCORED = ("loss_d", "loss_g", "accuracy_d"), ("log_likelihood", "frechet")
COLUMNS = LOGGED + SCORED


@dataclass
class Comparison:
    """Train in both precisions and compare."""

    model: str = "leaky"
    """Of gan_mnist."""
    epochs: int = 10
    """Of each run."""
    seeds: int = 3
    """How many: 0, 1, 2 and so on."""
    out: Path | None = None
    """The grids, one row a seed, fp32 on the left (by default benchmarks/precision_<model>.png)."""


def main(comparison: Comparison) -> None:
    """Prints the table as Markdown."""
    fast, _ = pick_precision("auto", torch.device("cpu"))
    if fast == "fp32":
        raise UserError("this CPU has no short floats that are fast, so there is nothing to compare: run it on one with bf16 units")
    if comparison.seeds < 2:
        raise UserError(f"seeds is {comparison.seeds}, expected at least 2, which have a spread: give --seeds another value")
    model, epochs = comparison.model, comparison.epochs
    ends: list[list[float]] = []  # a seed's COLUMNS in fp32, then in short floats
    grids: list[Image.Image] = []
    with tempfile.TemporaryDirectory() as root:
        for seed in range(comparison.seeds):
            ends.append([])
            for precision in ("fp32", fast):
                constants = {"model": model, "epochs": epochs, "seed": seed, "precision": precision, "estimate_every": 0}
                with contextlib.redirect_stdout(sys.stderr):  # stdout is the table's
                    gan_mnist.train(gan_mnist.Config(**constants, name="run", root=root, device="cpu"))
                outputs = Path(root) / "outputs" / "run"
                with open(outputs / "metrics.csv", newline="") as file:
                    last = list(csv.DictReader(file))[-1]
                scores, _ = score.measure(Path(root) / "models" / "run.safetensors", "auto", seed=0)
                ends[-1] += [float(last[column]) for column in LOGGED] + [scores["samples"][column] for column in SCORED]
                with Image.open(outputs / f"epoch_{epochs:04d}.png") as grid:
                    grids.append(grid.copy())
    save_png(side_by_side(grids[:6]), comparison.out or Path(__file__).parent / f"precision_{model}.png")

    titles = [f"{column}, {precision}" for precision in ("fp32", fast) for column in COLUMNS]
    print(f"{model} after {epochs} epochs\n")
    print("| seed |", " | ".join(titles), "|\n|---|" + "---|" * len(titles))
    for seed, end in enumerate(ends):
        print_row(str(seed), end)
    means, deviations = ([statistic(column) for column in zip(*ends, strict=True)] for statistic in (statistics.mean, statistics.stdev))
    print_row("mean", means)
    print_row("standard deviation", deviations)
    print()
    for number, column in enumerate(COLUMNS):
        exact, short = number, number + len(COLUMNS)
        error = math.hypot(deviations[exact], deviations[short]) / math.sqrt(len(ends))
        print(f"{column}: {fast} lies {means[short] - means[exact]:+.3f} from fp32, with a standard error of {error:.3f}")


def side_by_side(grids: list[Image.Image]) -> Image.Image:
    """Grids of one size, two a row."""
    width, height = grids[0].width + 8, grids[0].height + 8
    page = Image.new("L", (2 * width - 8, len(grids) // 2 * height - 8), 128)
    for number, grid in enumerate(grids):
        page.paste(grid, (number % 2 * width, number // 2 * height))
    return page


def print_row(title: str, values: list[float]) -> None:
    """Of the table."""
    print(f"| {title} |", " | ".join(f"{value:.3f}" for value in values), "|")


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Comparison)))
