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
from utils.models import fill_generator, read_config, read_facts, read_generator
from utils.scores import classes, copying, fidelity, parzen
from utils.shell import UserError, command_line, require_seed, require_writable

SAMPLES = 10_000  # as in the paper; and as many real images beside them
COPIES = 1000  # samples whose nearest training image is looked for
PAIRS = 16  # of them in the picture
INCEPTION = "inception-v3-compat"  # torch-fidelity's name for it
OF_ONE_RUN = {"name", "root", "seed", "device", "resume", "keep_every"}  # constants that runs of one row may have otherwise
COLUMNS = {  # of the README's table: what stands for it in scores.json, and how it is shown
    "seeds": ("seed", "d"), "epochs": ("epochs", ".0f"), "minutes": ("minutes", ".0f"), "log-likelihood": ("log_likelihood", ".1f"),
    "Frechet": ("frechet", ".2f"), "precision": ("precision", ".2f"), "recall": ("recall", ".2f"),
    "error": ("unsupervised_error", ".1%"),
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
    z = sampler.latents(generator, SAMPLES, seed)
    samples = sampler.images(generator, z)
    channels, size, _ = shape = tuple(samples.shape[1:])
    features, named = pick_features(features, config.data, shape)
    labelled = [data.load(config.data, size, channels, train=train) for train in (True, False)]
    train, test = (found.images for found in labelled)
    classifier = config.data if SHAPES.get(config.data) == shape else None
    told = sampler.is_told_classes(generator)
    labels = (z[:, experiment.NOISE :].argmax(1), labelled[0].labels[:SAMPLES]) if told else (None, None)
    shown = zip((samples, train[:SAMPLES]), labels, strict=True)
    ours, real = (against(*images, train[-SAMPLES:], test, features, classifier, seed) for images in shown)
    # The first test images stand for real ones that weren't trained on; so nobody may find them among the test images.
    learned, others = to_unit(train[: len(train) - getattr(config, "held_out", 0)]), to_unit(test[COPIES:])
    copies = copying(to_unit(samples[:COPIES]), learned, others)
    ours["copying"], real["copying"] = copies.ratio, copying(to_unit(test[:COPIES]), learned, others).ratio
    beside = model.with_suffix("") / "discriminator.safetensors"
    if hasattr(experiment, "unsupervised_error") and beside.exists():
        ours["unsupervised_error"], _ = experiment.unsupervised_error(load_discriminator(beside, experiment, config), *labelled)
    closest = copies.distances.argsort()[:PAIRS]
    pairs = torch.stack([samples[closest], train[copies.nearest[closest]]], 1).flatten(0, 1)
    facts = read_facts(model)
    return {
        "command": facts.get("command") or command(experiment, config),
        "model": getattr(config, "model", getattr(config, "recipe", "")), "data": config.data, "seed": config.seed,
        "epoch": facts.get("epoch"), "features": named, "samples_seed": seed, "samples": ours, "real": real, **cost,
    }, pairs  # fmt: skip


def load_discriminator(path: Path, experiment: ModuleType, config: Any) -> nn.Module:
    """The discriminator that a run has saved beside its generator; UserError where it is another run's."""
    name, constants, weights = read_generator(path)
    if name != experiment.__name__ or read_config(type(config), constants, path) != config:
        raise UserError(f"{path} isn't of the same run as the generator: train both again, or take the file away")
    with torch.device("meta"):
        discriminator = experiment.Discriminator(config.hidden)
    return fill_generator(discriminator, weights, path)


def against(
    images: torch.Tensor, labels: torch.Tensor | None, validation: torch.Tensor, test: torch.Tensor, features: str | None,
    classifier: str | None, seed: int,
) -> dict[str, Any]:
    """The measures of images against the test images, all uint8 N x C x H x W, by the names that they have in utils/scores.py.

    labels: int64 N, what the images should show, where it is known.
    """  # fmt: skip
    found: dict[str, Any] = {}
    if features is not None:
        channels = 3 if features == INCEPTION else -1  # which sees no greys
        found |= fidelity(images.expand(-1, channels, -1, -1), test.expand(-1, channels, -1, -1), features, seed)
    if classifier is not None:
        found |= classes(logits(classifier, images), labels)
    likelihood = parzen(to_unit(images), to_unit(validation), to_unit(test))
    return found | {"log_likelihood": likelihood.mean, "standard_error": likelihood.error, "sigma": likelihood.sigma}


def pick_features(features: str, source: str, shape: tuple[int, ...]) -> tuple[str | None, str]:
    """The features' name in torch-fidelity's registry, and what the table calls them; UserError where they can't serve this shape."""
    if features == "inception":
        return INCEPTION, "Inception v3, by torch-fidelity"
    name = source if features == "auto" else features
    if SHAPES.get(name) == shape:
        return name, f"our classifier of {name}, {load_classifier(name)[1]:.2%} right on the test images"
    serving = [*(known for known, served in SHAPES.items() if served == shape), "inception"]
    if features == "auto":
        return None, f"none: no classifier of ours is for {source} in this size (give --features {' or '.join(serving)})"
    raise UserError(f"no features '{features}' for images of {' x '.join(map(str, shape))}: give --features {' or '.join(serving)}")


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


MEASURES = {  # a title, what stands for it in scores.json, and how it is shown
    "log-likelihood, nats": ("log_likelihood", "{log_likelihood:.1f} ± {standard_error:.1f}"),
    "its sigma": ("sigma", "{sigma:.3f}"),
    "Frechet distance": ("frechet", "{frechet:.3f}"),
    "kernel distance": ("kernel", "{kernel:.5f} ± {kernel_deviation:.5f}"),
    "precision": ("precision", "{precision:.3f}"),
    "recall": ("recall", "{recall:.3f}"),
    "unsupervised error": ("unsupervised_error", "{unsupervised_error:.2%}"),
    "copying": ("copying", "{copying:.3f}"),
    "mean confidence": ("confidence", "{confidence:.3f}"),
    "of the right class": ("right", "{right:.1%}"),
}


def print_scores(found: dict[str, Any]) -> None:
    """The small table of one model, beside the real images."""
    model, real = found["samples"], found["real"]
    rows = []
    for title, (name, form) in MEASURES.items():
        if name in model:
            rows.append((title, *(form.format(**scores) if name in scores else "" for scores in (model, real))))
    for number, shares in enumerate(zip(model.get("shares", []), real.get("shares", []), strict=True)):
        rows.append((f"class {number}", *(f"{share:.1%}" for share in shares)))
    if "missing" in model:
        rows.append(("classes missing", *(", ".join(map(str, scores["missing"])) or "none" for scores in (model, real))))
    rows.append(("to sample", f"{found['milliseconds_per_image']:.3f} ms an image, {found['parameters']:,} parameters", ""))
    print(f"features: {found['features']}\n")
    for title, ours, theirs in [("", "model", "real images"), *rows]:
        print(f"{title:22}{ours:22}{theirs}".rstrip())


def print_table(outputs: Path) -> None:
    """The README's table, from the scores.json of all runs below this folder: a row for each command, over its seeds."""
    real, rows = {}, defaultdict(list)
    for path in sorted(outputs.glob("*/scores.json")):
        metrics = path.with_name("metrics.csv")
        if not metrics.exists():  # of a file of weights that isn't a run's result
            continue
        try:
            found = json.loads(path.read_text())
            with open(metrics, newline="") as file:
                seconds = [float(epoch["seconds"]) for epoch in csv.DictReader(file)]
            run = found["samples"] | {"seed": found["seed"], "epochs": len(seconds), "minutes": sum(seconds) / 60}
            experiment = Path(found["command"].split()[1]).stem
            rows[found["data"], experiment, found["model"], found["command"]].append(run)
            real[found["data"]] = found["real"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} or the metrics.csv beside it can't be used ({error}): measure the model again") from error
    if not rows:
        raise UserError(f"there is no run with a scores.json below {outputs}: measure a model first, with python score.py MODEL")
    print("| experiment | model |", " | ".join(COLUMNS), "| command |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for source, scores in real.items():
        print_row([f"real images: {source}", ""], [scores], "")
        for (source_of_row, experiment, model, line), runs in rows.items():
            if source_of_row == source:
                print_row([experiment, model], runs, f"`{line}`")


def print_row(titles: list[str], runs: list[dict[str, Any]], line: str) -> None:
    """Of the table; of several seeds the mean and, in brackets, the range."""
    cells = []
    for name, form in COLUMNS.values():
        values = [run[name] for run in runs if name in run]
        shown = [f"{value:{form}}" for value in sorted(values)]
        if name == "seed":
            cells.append(", ".join(shown))
        elif len(set(shown)) > 1:
            cells.append(f"{statistics.mean(values):{form}} ({shown[0]} to {shown[-1]})")
        else:
            cells.append("".join(shown[:1]))
    print("|", " | ".join([*titles, *cells, line]), "|")


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
    require_writable(outputs)
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
