"""The ring of eight Gaussians over many seeds, as it is and with its cures, cooling noise and falling rates, switched off.

Prints for each seed how many of the modes are found and which share of 100,000 samples is of high quality, after the last epoch.

    python benchmarks/ring.py
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import gan_ring
from benchmarks.normal import last_row, require_rows
from utils.shell import command_line, require_positive

NO_NOISE, RATES_STAY = {"noise": 0}, {"left_d": 1, "decay_g": 0}
ROWS = {"as it is": {}, "no noise": NO_NOISE, "rates stay": RATES_STAY, "neither cure": NO_NOISE | RATES_STAY}


@dataclass
class Table:
    """Train on many seeds and print how well each setting covers the ring."""

    seeds: int = 10
    """How many: 0, 1, 2 and so on."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which settings."""
    epochs: int = gan_ring.Config.epochs
    """Of each run."""


def main(table: Table) -> None:
    """Prints the table as Markdown, row by row."""
    require_positive(seeds=table.seeds, epochs=table.epochs)
    require_rows(table.rows, ROWS)
    print("| | modes, seed by seed | high quality, median | high quality, worst | seconds, median |\n|---|---|---|---|---|")
    for row in table.rows:
        runs = [last_row(gan_ring, seed=seed, epochs=table.epochs, **ROWS[row]) for seed in range(table.seeds)]
        modes = " ".join(f"{run['modes']:.0f}" for run in runs)
        quality, seconds = ([run[column] for run in runs] for column in ("high_quality", "seconds"))
        cells = [modes, f"{statistics.median(quality):.1%}", f"{min(quality):.1%}", f"{statistics.median(seconds):.1f}"]
        print(f"| {row} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Table)))
