"""The plain recipe that tutorials teach, with our nets: what our speed and our scores are held against.

A torchvision data set with ToTensor in a DataLoader with two workers, fp32, sigmoid and BCELoss, real and fake in separate passes,
PyTorch's own dropout, unfused Adam, .item() every step. It trains for so many minutes and leaves what score.py needs.

    python benchmarks/plain.py --minutes 12
    python benchmarks/plain.py --model dcgan --minutes 30
    python score.py models/plain_leaky.safetensors
"""

import csv
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

sys.path.insert(0, str(Path(__file__).parent.parent))
import dcgan_cifar10
import gan_cifar10_conv
import gan_mnist
import infogan_mnist
from utils import data
from utils.files import replacing
from utils.known import load_known
from utils.models import save_generator
from utils.shell import UserError, command_line, require_positive, require_seed

LEARNING_RATE = 2e-4
MODELS = "leaky", "maxout", "batchnorm", "dcgan", "modern", "conv"


@dataclass
class Plain:
    """Train the plain recipe."""

    minutes: float = 10
    """Of wall-clock time."""
    model: str = "leaky"
    """Whose nets: leaky, maxout or batchnorm of gan_mnist; dcgan and modern, its recipes; conv, of gan_cifar10_conv."""
    seed: int = 0
    """Of all that is random."""
    root: str = "."
    """The folder that outputs/ and models/ are in."""


def steps(model: str, seed: int = 0) -> Iterator[tuple[int, nn.Module]]:
    """Trains for ever; after each step the number of its epoch, from 1, and the generator."""
    torch.manual_seed(seed)
    config, generator, discriminator = game(model)
    generator, discriminator = plainly(generator), nn.Sequential(plainly(discriminator), nn.Sigmoid())
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.999))
    criterion = nn.BCELoss()
    loader = (mnist if config.data == "mnist" else cifar10)(config.batch_size)
    low, high = generator.pixels
    ones, zeros = torch.ones(config.batch_size), torch.zeros(config.batch_size)
    losses = []
    for epoch in itertools.count(1):
        for real, _ in loader:
            real = real * (high - low) + low
            fake = generator(generator.latent(len(real), "cpu"))
            optimizer_d.zero_grad()
            loss_real = criterion(discriminator(real), ones)
            loss_real.backward()
            loss_fake = criterion(discriminator(fake.detach()), zeros)
            loss_fake.backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
            loss_g = criterion(discriminator(fake), ones)
            loss_g.backward()
            optimizer_g.step()
            losses.append((loss_real.item() + loss_fake.item(), loss_g.item()))
            yield epoch, generator


def plainly(network: nn.Module) -> nn.Module:
    """The network with PyTorch's own layers and memory layout in the place of ours."""
    for layer in network.modules():
        if type(layer).__module__.startswith("utils."):
            layer.__class__ = type(layer).__base__
    return network.to(memory_format=torch.contiguous_format)


def game(model: str) -> tuple[Any, nn.Module, nn.Module]:
    """The Config, whose constants but for the data and the batch size nobody looks at, and the players."""
    if model in ("dcgan", "modern"):
        config = dcgan_cifar10.Config(recipe="paper" if model == "dcgan" else model, labels=False)
        discriminator = nn.Sequential(*dcgan_cifar10.Discriminator(config.base).layers, nn.Flatten(0))
        return config, dcgan_cifar10.make_generator(config), discriminator
    if model == "conv":
        config = gan_cifar10_conv.Config()
        return config, gan_cifar10_conv.make_generator(config), conv_discriminator()
    config = gan_mnist.Config(model=model)
    return config, gan_mnist.make_generator(config), gan_mnist.DISCRIMINATORS[model]()


class ConvMaxout(nn.Module):
    """Maxout of two convolutions and max-pooling, each by itself."""

    def __init__(self, inputs: int, channels: int, kernel: int, padding: int, pool: int) -> None:
        super().__init__()
        self.convolution, self.pool = nn.Conv2d(inputs, 2 * channels, kernel, padding=padding), pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(self.convolution(x).unflatten(1, (2, -1)).max(1).values, self.pool, 2, ceil_mode=True)


def conv_discriminator() -> nn.Module:
    """gan_cifar10_conv's, as one writes it down."""
    return nn.Sequential(
        nn.Dropout(0.2), ConvMaxout(3, 32, 8, padding=4, pool=4),
        nn.Dropout(0.5), ConvMaxout(32, 32, 8, padding=3, pool=4),
        nn.Dropout(0.5), ConvMaxout(32, 192, 5, padding=3, pool=2), nn.Flatten(),
        nn.Dropout(0.5), gan_cifar10_conv.Maxout(192 * 5 * 5, 500, pieces=5),
        nn.Dropout(0.5), nn.Linear(500, 1), nn.Flatten(0),
    )  # fmt: skip


def infogan_steps(seed: int = 0) -> Iterator[tuple[int, nn.Module]]:
    """The same with infogan_mnist's nets: the information has a step of its own, after D's and G's, on fakes of its own."""
    torch.manual_seed(seed)
    config, generator, discriminator = infogan_mnist.Config(), infogan_mnist.Generator(), infogan_mnist.Discriminator()
    players = [*generator.parameters(), *discriminator.parameters()]
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=config.generator_rate, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=config.learning_rate, betas=(0.5, 0.999))
    optimizer_q = torch.optim.Adam(players, lr=config.learning_rate, betas=(0.5, 0.999))
    criterion, of_category, of_numbers = nn.BCELoss(), nn.CrossEntropyLoss(), nn.MSELoss()
    ones, zeros = torch.ones(config.batch_size), torch.zeros(config.batch_size)
    losses = []
    for epoch in itertools.count(1):
        for real, _ in mnist(config.batch_size):
            fake = generator(generator.latent(len(real), "cpu"))
            optimizer_d.zero_grad()
            loss_real = criterion(discriminator(real)[0].sigmoid(), ones)
            loss_real.backward()
            loss_fake = criterion(discriminator(fake.detach())[0].sigmoid(), zeros)
            loss_fake.backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
            loss_g = criterion(discriminator(fake)[0].sigmoid(), ones)
            loss_g.backward()
            optimizer_g.step()
            optimizer_q.zero_grad()
            z = generator.latent(len(real), "cpu")
            category, continuous = infogan_mnist.codes(z)
            reading = discriminator(generator(z))[1]
            loss_q = of_category(reading[:, :10], category) + 0.1 * of_numbers(reading[:, 10:12], continuous)
            loss_q.backward()
            optimizer_q.step()
            losses.append((loss_real.item() + loss_fake.item(), loss_g.item(), loss_q.item()))
            yield epoch, generator


def mnist(batch_size: int) -> DataLoader:
    """The training images, in [0, 1], with their labels."""
    images = MNIST(os.environ.get("GAN_DATA", "data"), transform=ToTensor())
    return DataLoader(images, batch_size, shuffle=True, num_workers=2, drop_last=True)


def cifar10(batch_size: int) -> DataLoader:
    """The same of CIFAR-10."""
    return DataLoader(Cifar10(), batch_size, shuffle=True, num_workers=2, drop_last=True)


class Cifar10(Dataset):
    """What torchvision's class of this name does for an image, from the files that we have."""

    def __init__(self) -> None:
        found = data.load("cifar10", 32, 3)
        self.pixels, self.labels, self.transform = found.images.permute(0, 2, 3, 1).numpy(), found.labels.tolist(), ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[number])), self.labels[number]


def main(plain: Plain) -> None:
    """Writes outputs/plain_<model>/metrics.csv and models/plain_<model>.safetensors."""
    require_positive(minutes=plain.minutes)
    require_seed(plain.seed)
    if plain.model not in MODELS:
        raise UserError(f"no model named '{plain.model}': give --model one of {', '.join(MODELS)}")
    name = f"plain_{plain.model}" + (f"_{plain.seed}" if plain.seed else "")
    config, _, _ = game(plain.model)
    load_known(config.data, train=True)  # where it isn't there yet, it is fetched before the clock starts
    ends = [time.perf_counter()]
    for epoch, generator in steps(plain.model, plain.seed):  # noqa: B007 (used below)
        now = time.perf_counter()
        if epoch > len(ends):
            ends.append(now)
        if now - ends[0] > 60 * plain.minutes:
            break
    rows = [{"epoch": number, "seconds": round(end - begun, 3)} for number, (begun, end) in enumerate(itertools.pairwise([*ends, now]), 1)]
    with replacing(Path(plain.root) / "outputs" / name / "metrics.csv") as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    switched_off = {"average": 0.0, "held_out": 0, "warm_up": 0, "flips": False, "decay": False, "augment": False, "penalty": 0.0}
    used = {"learning_rate": LEARNING_RATE, "generator_rate": 1.0} | {key: off for key, off in switched_off.items() if hasattr(config, key)}
    config = dataclasses.replace(config, seed=plain.seed, name=name, epochs=len(rows), **used)
    command = f"python benchmarks/plain.py --model {plain.model} --minutes {plain.minutes:g}"
    save_generator(Path(plain.root) / "models" / f"{name}.safetensors", generator.eval(), type(config).__module__, config, command=command)


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Plain)))
