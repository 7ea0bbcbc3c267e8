"""Measure a trained generator, beside real images. It takes the file of weights and the data that it was trained on.

    python score.py models/gan_mnist_maxout.safetensors
    python score.py models/gan_mnist_maxout.safetensors --features inception
    python score.py table

The first writes outputs/<model>/scores.json and copies.png, the samples that are nearest to a training image, each left of that; the
last prints the README's table of results from all scores.json.
"""

import csv
import dataclasses
import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
import tyro
from torch import nn

import sampler
from utils import data
from utils.classifiers import SHAPES, load_classifier
from utils.files import replacing
from utils.images import grid, save_png, to_unit
from utils.known import KNOWN
from utils.models import read_facts
from utils.scores import classes, copying, fidelity, parzen
from utils.shell import UserError, command_line, require_seed

SAMPLES = 10_000  # as in the paper; and as many real images beside them
COPIES = 1000  # samples whose nearest training image is looked for
PAIRS = 16  # of them in the picture
INCEPTION = "inception-v3-compat"  # torch-fidelity's name for it


OF_ONE_RUN = {"name", "root", "seed", "device", "resume", "keep_every"}  # constants that runs of one row may have otherwise
COLUMNS = {
    "seed": "d", "epochs": ".0f", "minutes": ".0f", "log_likelihood": ".1f", "frechet": ".2f", "precision": ".2f", "recall": ".2f",
}  # fmt: skip


@dataclass
class Score:
    """Measure a trained generator against the test images, beside as many real training images."""

    model: tyro.conf.Positional[str]
    """The file of weights; or the word table, which prints the results of all scores.json."""
    features: Annotated[str, tyro.conf.arg(metavar="auto|mnist|cifar10|inception")] = "auto"
    """Of which network; auto: the classifier of the data; inception: what papers use for CIFAR-10, where its weights can be had."""
    seed: int = 0
    """Of the samples."""
    root: str = "."
    """The folder that outputs/ is in."""


def measure(model: Path, features: str, seed: int) -> tuple[dict[str, Any], torch.Tensor]:
    """What stands in scores.json, and the closest pairs, each a sample and a training image, uint8 2 PAIRS x C x H x W.

    Raises UserError for a generator of points, for one that was trained on no known set, and for features that can't be had.
    """
    experiment, config, generator = sampler.load(model)
    if not sampler.makes_images(generator):
        raise UserError(f"{model} makes points, not images: benchmarks/normal.py and benchmarks/ring.py measure such generators")
    if config.data not in KNOWN:
        raise UserError(f"{model} was trained on {config.data}, which has no test images: give a model of one of {', '.join(KNOWN)}")
    cost = {"milliseconds_per_image": milliseconds(generator), "parameters": sum(part.numel() for part in generator.parameters())}
    samples = sampler.images(generator, sampler.latents(generator, SAMPLES, seed))
    shape = tuple(samples.shape[1:])
    features, named = pick_features(features, config.data, shape)
    train, test = (data.load(config.data, shape[1], shape[0], train=train).images for train in (True, False))
    learned = train[: len(train) - getattr(config, "held_out", 0)]
    columns, pairs = {}, None
    for column, images, strangers in (("model", samples, samples), ("real", train[:SAMPLES], test)):
        likelihood = parzen(to_unit(images), to_unit(train[-SAMPLES:]), to_unit(test))
        # The reference are test images, which get nearer to each other than samples do: so none of them may find itself.
        copies = copying(to_unit(strangers[:COPIES]), to_unit(learned), to_unit(test[COPIES:]))
        columns[column] = {"log_likelihood": likelihood.mean, "standard_error": likelihood.error, "sigma": likelihood.sigma}
        colours = (-1, 3, -1, -1) if features == INCEPTION else (-1, -1, -1, -1)  # which sees no greys
        columns[column] |= fidelity(images.expand(colours), test.expand(colours), features, seed)
        if SHAPES.get(config.data) == shape:
            columns[column] |= classes(logits(config.data, images))
        columns[column]["copying"] = copies.ratio
        if column == "model":
            closest = copies.distances.argsort()[:PAIRS]
            pairs = torch.stack([samples[closest], learned[copies.nearest[closest]]], 1).flatten(0, 1)
    facts = read_facts(model)
    made_by = facts.get("command") or command(experiment, config)
    found = {"command": made_by, "seed": config.seed, "data": config.data, "epoch": facts.get("epoch"), "features": named, **cost}
    return found | columns, pairs


def pick_features(features: str, source: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """The features' name in torch-fidelity's registry, and what the table calls them; UserError where they can't serve this shape."""
    if features == "inception":
        return INCEPTION, "Inception v3, by torch-fidelity"
    name = source if features == "auto" else features
    if SHAPES.get(name) != shape:
        size = " x ".join(map(str, shape))
        raise UserError(f"no classifier of '{name}' for images of {size}, expected one of {', '.join(SHAPES)}: give --features inception")
    return name, f"our classifier of {name}, {load_classifier(name)[1]:.2%} right on the test images"


@torch.no_grad()
def logits(name: str, images: torch.Tensor) -> torch.Tensor:
    """What a classifier of ours says to uint8 images, float32 N x 10."""
    classifier, _ = load_classifier(name)
    return torch.cat([classifier(part) for part in images.split(1000)])


@torch.no_grad()
def milliseconds(generator: nn.Module) -> float:
    """That an image takes in batches of 100, float32, on the CPU; the median of 20 batches."""
    z = sampler.latents(generator, 100, 0)
    times = []
    for _ in range(21):
        begun = time.perf_counter()
        generator(z)
        times.append((time.perf_counter() - begun) / len(z) * 1e3)
    return sorted(times[1:])[10]


MEASURES = {
    "log-likelihood, nats": "{log_likelihood:.1f} ± {standard_error:.1f}",
    "its sigma": "{sigma:.3f}",
    "Frechet distance": "{frechet:.3f}",
    "kernel distance": "{kernel:.5f} ± {kernel_deviation:.5f}",
    "precision": "{precision:.3f}",
    "recall": "{recall:.3f}",
    "confidence": "{confidence:.3f}",
    "copying": "{copying:.3f}",
}


def print_scores(found: dict[str, Any]) -> None:
    """The small table of one model, beside the real images."""
    model, real = found["model"], found["real"]
    print(f"features: {found['features']}\n")
    print(f"{'':22}{'model':24}real images")
    for title, form in MEASURES.items():
        if "confidence" in model or title != "confidence":
            print(f"{title:22}{form.format(**model):24}{form.format(**real)}")
    if "shares" in model:
        for number, shares in enumerate(zip(model["shares"], real["shares"], strict=True)):
            print(f"{f'class {number}':22}{shares[0]:<24.1%}{shares[1]:.1%}")
        print(f"{'classes missing':22}{', '.join(map(str, model['missing'])) or 'none'}")
    print(f"{'to sample':22}{found['milliseconds_per_image']:.3f} ms an image, {found['parameters']:,} parameters")


def print_table(outputs: Path) -> None:
    """The README's table, from all scores.json below this folder: a row for each command, over the seeds that it was run with."""
    real, rows = {}, defaultdict(list)
    for path in sorted(outputs.glob("*/scores.json")):
        found = json.loads(path.read_text())
        with open(path.with_name("metrics.csv"), newline="") as file:
            epochs = list(csv.DictReader(file))
        trained = {"epochs": len(epochs), "minutes": sum(float(epoch["seconds"]) for epoch in epochs) / 60}
        real[found["data"]] = found["real"]
        rows[found["data"], found["command"]].append(found["model"] | trained | {"seed": found["seed"]})
    if not rows:
        raise UserError(f"there is no scores.json below {outputs}: measure a model first, with python score.py MODEL")
    print("| |", " | ".join(COLUMNS), "|")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for source, scores in real.items():
        print_row(f"real images of {source}", [scores])
        for (data_of_row, command_of_row), runs in rows.items():
            if data_of_row == source:
                print_row(f"`{command_of_row}`", runs)


def print_row(title: str, runs: list[dict[str, Any]]) -> None:
    """Of the table; of several seeds the mean and, in brackets, the range."""
    cells = []
    for name, form in COLUMNS.items():
        values = [run[name] for run in runs if name in run]
        shown = [f"{value:{form}}" for value in sorted(values)]
        if name == "seed":
            cells.append(", ".join(shown))
        elif len(set(shown)) > 1:
            cells.append(f"{statistics.mean(values):{form}} ({shown[0]} to {shown[-1]})")
        else:
            cells.append("".join(shown[:1]))
    print("|", " | ".join([title, *cells]), "|")


def command(experiment: ModuleType, config: Any) -> str:
    """The shell's line that makes a run with this Config, but for its seed: it names the constants that aren't the experiment's own."""
    given: dict[str, Any] = {}
    for field, value in dataclasses.asdict(config).items():  # in their order, since some defaults follow from the constants before them
        if field not in OF_ONE_RUN and value != getattr(experiment.Config(**given), field):
            given[field] = value
    return " ".join([f"python {experiment.__name__}.py", *(f"--{field.replace('_', '-')} {value}" for field, value in given.items())])


def main(config: Score) -> None:
    """Prints, and writes what it measures. Raises UserError as measure() does."""
    outputs = Path(config.root) / "outputs"
    if config.model == "table":
        print_table(outputs)
        return
    require_seed(config.seed)
    model = Path(config.model)
    found, pairs = measure(model, config.features, config.seed)
    folder = outputs / model.stem
    scores = folder / ("scores.json" if config.features == "auto" else f"scores_{config.features}.json")
    with replacing(scores) as part:
        part.write_text(json.dumps(found, indent=2) + "\n")
    save_png(grid(pairs, columns=8), folder / "copies.png")
    print_scores(found)
    print(f"\nsaved: {scores} {folder / 'copies.png'}")


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Score)))
