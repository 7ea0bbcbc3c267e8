"""The GAN in one dimension over many seeds, as it is and with each of its cures switched off, and its other targets.

Prints a row for each: the Wasserstein-1 and Kolmogorov-Smirnov distances after the last epoch, between 100,000 samples and the
target, and the seconds of training (measurements and pictures aside).

    python benchmarks/normal.py
    python benchmarks/normal.py --rows mixture exponential --seeds 3
"""

import contextlib
import csv
import io
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import gan_normal
from utils.shell import UserError, command_line, require_positive

CURES_OFF = {
    "no penalty": {"penalty": 0},
    "no decay": {"decay": 0},
    "equal rates": {"learning_rate_g": gan_normal.Config.learning_rate_d},
    "Adam's usual momentum": {"beta1": 0.9},
    "the target's own units": {"standardize": False},
    "kinks as PyTorch places them": {"spread": False},
}
ROWS = {
    "normal": {},
    **CURES_OFF,
    "none of the cures": {name: value for cure in CURES_OFF.values() for name, value in cure.items()},
    **{target: {"target": target} for target in gan_normal.TARGETS if target != "normal"},
    **{f"{target}, no penalty": {"target": target, "penalty": 0} for target in ("mixture", "exponential")},
}


@dataclass
class Table:
    """Train on many seeds and print how far each setting ends from its target."""

    seeds: int = 20
    """How many: 0, 1, 2 and so on."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which settings."""
    epochs: int = gan_normal.Config.epochs
    """Of each run."""


def main(table: Table) -> None:
    """Prints the table as Markdown, row by row."""
    require_positive(seeds=table.seeds, epochs=table.epochs)
    require_rows(table.rows, ROWS)
    print("| | W1, median | W1, worst | KS, median | KS, worst | standard deviation, range | seconds, median | seconds, worst |")
    print("|---|" + "---|" * 7)
    for row in table.rows:
        runs = [last_row(gan_normal, seed=seed, epochs=table.epochs, **ROWS[row]) for seed in range(table.seeds)]
        w1, ks, std, seconds = ([run[column] for run in runs] for column in ("w1", "ks", "std", "seconds"))
        cells = [f"{statistics.median(w1):.4f}", f"{max(w1):.4f}", f"{statistics.median(ks):.4f}", f"{max(ks):.4f}"]
        cells += [f"{min(std):.3f}-{max(std):.3f}", f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]
        print(f"| {row} |", " | ".join(cells), "|", flush=True)


def require_rows(names: Iterable[str], rows: Iterable[str]) -> None:
    """UserError where a table has no rows of these names."""
    unknown = set(names) - set(rows)
    if unknown:
        raise UserError(f"no row named {', '.join(sorted(unknown))}: give --rows one or more of {', '.join(rows)}")


def last_row(experiment: ModuleType, **constants: object) -> dict[str, float]:
    """The metrics of a run of an experiment after its last epoch, with the seconds of all epochs; little is drawn, nothing stays."""
    with tempfile.TemporaryDirectory() as root:
        undrawn = {"picture_every": 0} if hasattr(experiment.Config, "picture_every") else {}
        config = experiment.Config(**constants, **undrawn, root=root, name="run", device="cpu")
        with contextlib.redirect_stdout(io.StringIO()):
            experiment.train(config)
        with open(Path(root) / "outputs" / "run" / "metrics.csv", newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return rows[-1] | {"seconds": sum(row["seconds"] for row in rows)}


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Table)))
