"""Train the classifiers whose features score.py measures with: MNIST's in 5 minutes on two cores, CIFAR-10's in 20.

Prints the accuracy on the test images after each epoch, and writes models/classifiers/<data>.safetensors after the last one, stored
in 16 bits, with the accuracy of what is stored in its header.

    python benchmarks/classifiers.py --data mnist
    python benchmarks/classifiers.py --data cifar10
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils import data
from utils.classifiers import FOLDER, SHAPES, make_classifier
from utils.device import keep_freed_memory, pick_device, pick_precision
from utils.files import replacing
from utils.shell import UserError, command_line, require_positive, require_seed

LEFT_OUT = 10_000  # of the training images, the first: those that score.py holds models against shall be as new to it as samples are


@dataclass
class Config:
    """Train a classifier."""

    data: Annotated[str, tyro.conf.arg(metavar="mnist|cifar10")] = "mnist"
    """What it learns to tell apart."""
    epochs: int = 25
    """Passes over the training images."""
    batch_size: int = 256
    """Images a step."""
    learning_rate: float = 0.01
    """AdamW's, at its height; it rises for a fifth of the steps and falls to zero after."""
    shift: int = 2
    """Training images are moved by up to so many pixels, each by its own."""
    seed: int = 0
    """Of the weights, the shifts and the order of the data."""
    out: Path = FOLDER
    """The folder for the weights."""


def shifted(images: torch.Tensor, most: int) -> torch.Tensor:
    """Each image moved by up to `most` pixels in both directions; what comes in at the edges mirrors it."""
    count, channels, height, width = images.shape
    padded = F.pad(images.float(), (most,) * 4, mode="reflect").to(images.dtype)
    top, left = torch.randint(2 * most + 1, (2, count, 1))
    rows = (top + torch.arange(height)).view(count, 1, height, 1).expand(-1, channels, -1, padded.shape[3])
    columns = (left + torch.arange(width)).view(count, 1, 1, width).expand(-1, channels, height, -1)
    return padded.gather(2, rows).gather(3, columns)


def mirrored(images: torch.Tensor) -> torch.Tensor:
    """A half of the images, left for right."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(3))


@torch.no_grad()
def accuracy(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of uint8 images whose label has the largest logit."""
    classifier.eval()
    found = torch.cat([classifier(part).argmax(1) for part in images.split(1000)])
    classifier.train()
    return (found == labels).float().mean().item()


def train(config: Config) -> float:
    """Trains and saves a classifier; its accuracy on the test images, in [0, 1]."""
    if config.data not in SHAPES:
        raise UserError(f"no classifier of '{config.data}': give --data one of {', '.join(SHAPES)}")
    require_positive(epochs=config.epochs, batch_size=config.batch_size, learning_rate=config.learning_rate)
    require_seed(config.seed)
    torch.manual_seed(config.seed)
    keep_freed_memory()
    precision, _ = pick_precision("auto", pick_device("cpu"))
    channels, size, _ = SHAPES[config.data]
    known, test = (data.load(config.data, size, channels, train=train) for train in (True, False))
    images, labels = known.images[LEFT_OUT:], known.labels[LEFT_OUT:]
    classifier = make_classifier(config.data).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), config.learning_rate, weight_decay=0.05, fused=True)
    steps = math.ceil(len(images) / config.batch_size) * config.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, steps, pct_start=0.2, anneal_strategy="linear")
    begun = time.perf_counter()
    for epoch in range(1, config.epochs + 1):
        for part in torch.randperm(len(images)).split(config.batch_size):
            batch = shifted(images[part], config.shift)
            if config.data == "cifar10":
                batch = mirrored(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = classifier(batch.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits.float(), labels[part], label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        minutes = (time.perf_counter() - begun) / 60
        print(f"epoch {epoch}: {accuracy(classifier, test.images, test.labels):.2%}, {minutes:.1f} minutes", flush=True)

    stored = {name: value.half() if value.is_floating_point() else value for name, value in classifier.state_dict().items()}
    classifier.load_state_dict(stored)
    reached = accuracy(classifier, test.images, test.labels)
    with replacing(config.out / f"{config.data}.safetensors") as path:
        path.write_bytes(save({name: value.contiguous() for name, value in stored.items()}, {"accuracy": f"{reached:.4f}"}))
    print(f"{reached:.2%} as stored, in {config.out}/")
    return reached


if __name__ == "__main__":
    command_line(lambda: train(tyro.cli(Config)))
