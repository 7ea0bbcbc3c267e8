"""What makes InfoGAN's categories digits: each cure switched off, and all, on several seeds.

    python benchmarks/infogan.py
    python benchmarks/infogan.py --rows "as it is" --seeds 1 --epochs 1
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import infogan_mnist
from benchmarks.normal import last_row, require_rows
from utils.shell import command_line, require_positive

ROWS = {
    "as it is": {},
    "no agreement": {"agreement": 0.0},
    "no distortion": {"distortion": 0.0},
    "neither": {"agreement": 0.0, "distortion": 0.0},
    "continuous codes as heavy as the category": {"continuous_weight": 1.0},
    "rates stay": {"decay": 0.0},
    "none of the four": {"agreement": 0.0, "distortion": 0.0, "continuous_weight": 1.0, "decay": 0.0},
}


@dataclass
class Table:
    """Train on several seeds and print how many test images are in a wrong category."""

    seeds: int = 3
    """How many: 0, 1, 2 and so on."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which settings."""
    epochs: int = 2
    """Of each run."""


def main(table: Table) -> None:
    """Prints the table as Markdown, row by row; the information in nats, as a mean of the last epoch, median of the seeds."""
    require_positive(seeds=table.seeds, epochs=table.epochs)
    require_rows(table.rows, ROWS)
    print("| | error, seed by seed | about the category | about the continuous codes | shared by copies |")
    print("|---" * 5 + "|")
    for row in table.rows:
        runs = [last_row(infogan_mnist, seed=seed, epochs=table.epochs, **ROWS[row]) for seed in range(table.seeds)]
        errors = " ".join(f"{run['error']:.1%}" for run in runs)
        columns = ("info_category", "info_continuous", "info_shared")
        information = [f"{statistics.median(run[column] for run in runs):.2f}" for column in columns]
        print(f"| {row} |", " | ".join([errors, *information]), "|", flush=True)


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Table)))
