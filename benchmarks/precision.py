"""Whether the fast path costs anything: the same runs in the machine's short floats and in fp32, over several seeds.

Prints the losses and D's accuracy of the last epoch, seed by seed, with the difference between the two precisions beside the
spread between seeds; and writes both precisions' grids of the first seed side by side.

    python benchmarks/precision.py --model leaky
"""

import contextlib
import csv
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
from utils.device import pick_precision
from utils.images import save_png
from utils.shell import UserError, command_line

COLUMNS = ("loss_d", "loss_g", "accuracy_d")


@dataclass
class Comparison:
    """Train in both precisions and compare."""

    model: str = "leaky"
    """Of gan_mnist."""
    epochs: int = 5
    """Of each run."""
    seeds: int = 3
    """0, 1, 2 and so on."""
    out: Path | None = None
    """The grids (by default benchmarks/precision_<model>.png): fp32 on the left."""


def main(comparison: Comparison) -> None:
    """Prints the table as Markdown."""
    fast, _ = pick_precision("auto", torch.device("cpu"))
    if fast == "fp32":
        raise UserError("this CPU has no short floats that are fast, so there is nothing to compare: run it on one with bf16 units")
    model, epochs = comparison.model, comparison.epochs
    ends: dict[str, list[dict[str, float]]] = {"fp32": [], fast: []}
    with tempfile.TemporaryDirectory() as root:
        for seed in range(comparison.seeds):
            for precision in ends:
                name = f"{precision}_{seed}"
                constants = {"model": model, "epochs": epochs, "seed": seed, "precision": precision, "device": "cpu"}
                with contextlib.redirect_stdout(sys.stderr):  # stdout is the table's
                    gan_mnist.train(gan_mnist.Config(**constants, name=name, root=root))
                with open(Path(root) / "outputs" / name / "metrics.csv", newline="") as file:
                    last = list(csv.DictReader(file))[-1]
                ends[precision].append({column: float(last[column]) for column in COLUMNS})
        grids = [Image.open(Path(root) / "outputs" / f"{precision}_0" / f"epoch_{epochs:04d}.png") for precision in ends]
        both = Image.new("L", (grids[0].width * 2 + 8, grids[0].height), 128)
        for number, grid in enumerate(grids):
            both.paste(grid, (number * (grid.width + 8), 0))
        save_png(both, comparison.out or Path(__file__).parent / f"precision_{model}.png")

    print(f"{model} after {epochs} epochs, by seed\n")
    print(f"| | fp32 | {fast} | difference of the means | range over the seeds in fp32 |\n|---|---|---|---|---|")
    for column in COLUMNS:
        exact, short = ([end[column] for end in ends[precision]] for precision in ends)
        listed = (" ".join(f"{value:.3f}" for value in values) for values in (exact, short))
        difference = statistics.mean(short) - statistics.mean(exact)
        print("|", " | ".join([column, *listed, f"{difference:+.3f}", f"{max(exact) - min(exact):.3f}"]), "|")


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Comparison)))
