"""What the paper's settings lack for the paper's likelihood: one change at a time, maxout, 100 epochs.

Prints for each setting how likely the held-out and the test images are, as score.py estimates it, under the generator as the last
step left it and under the average of its weights, which changes nothing in the game; and the share of ones among the samples, of
which MNIST has 11%.

    python benchmarks/likelihood.py
    python benchmarks/likelihood.py --rows "the paper's rates" --epochs 20
"""

import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import gan_mnist
import sampler
import score
from benchmarks.normal import require_rows
from utils import data
from utils.images import to_unit
from utils.scores import classes, parzen
from utils.shell import command_line, require_positive

HELD_OUT = gan_mnist.Config.held_out
ROWS = {
    "the paper's rates": {"learning_rate": 0.1, "generator_rate": 1.0},
    "twice the paper's rates": {"generator_rate": 1.0, "warm_up": 0},
    "and G's twice again": {"warm_up": 0},
    "and a warm-up to them": {},
}


@dataclass
class Table:
    """Train maxout under each setting and print how likely it finds the test images."""

    rows: tuple[str, ...] = tuple(ROWS)
    """Which settings."""
    epochs: int = 100
    """Of each run."""
    seed: int = 0
    """Of each run."""


def measured(root: str, constants: dict[str, object]) -> list[str]:
    """Trains, and measures the generator of the last step and the averaged one: the cells of a row."""
    config = gan_mnist.Config(model="maxout", name="run", root=root, device="cpu", estimate_every=0, held_out=HELD_OUT, **constants)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is the table's
        gan_mnist.train(config)
    parts = torch.load(Path(root) / "outputs" / "run" / "checkpoint.pt", weights_only=True)["parts"]
    validation = to_unit(data.load("mnist", 28, 1).images[-HELD_OUT:])
    test = to_unit(data.load("mnist", 28, 1, train=False).images)
    found = []
    for part in ("player", "generator"):
        generator = gan_mnist.make_generator(config)
        generator.load_state_dict(parts[part])
        samples = sampler.images(generator.eval(), sampler.latents(generator, gan_mnist.SAMPLES, seed=0))
        held_out, nats = (parzen(to_unit(samples), validation, images) for images in (validation, test))
        ones = classes(score.logits("mnist", samples))["shares"][1]
        found += [f"{held_out.mean:.1f}", f"{nats.mean:.1f} ± {nats.error:.1f}", f"{ones:.1%}"]
    return found


def main(table: Table) -> None:
    """Prints the table as Markdown, row by row."""
    require_positive(epochs=table.epochs)
    require_rows(table.rows, ROWS)
    titles = [f"{title}, {part}" for part in ("last step", "averaged") for title in ("held-out", "test", "ones")]
    print("| |", " | ".join(titles), "| minutes |\n" + "|---" * (len(titles) + 2) + "|")
    for row in table.rows:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as root:
            found = measured(root, {"epochs": table.epochs, "seed": table.seed, **ROWS[row]})
        print("|", " | ".join([row, *found, f"{(time.perf_counter() - begun) / 60:.0f}"]), "|", flush=True)


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Table)))
