"""The plain recipe that tutorials teach, with gan_mnist's nets: what our speed and our scores are held against.

A torchvision data set with ToTensor in a DataLoader with two workers, fp32, sigmoid and BCELoss, real and fake in separate passes,
PyTorch's own dropout, unfused Adam, .item() every step. It trains for so many minutes and leaves what score.py needs.

    python benchmarks/plain.py --minutes 12
    python score.py models/plain_leaky.safetensors
"""

import csv
import itertools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

sys.path.insert(0, str(Path(__file__).parent.parent))
import gan_mnist
import infogan_mnist
from utils import data
from utils.device import Dropout
from utils.files import replacing
from utils.models import save_generator
from utils.shell import command_line, require_positive, require_seed

LEARNING_RATE = 2e-4


@dataclass
class Plain:
    """Train the plain recipe."""

    minutes: float = 10
    """Of wall-clock time; it stops after the epoch in which they are over."""
    model: str = "leaky"
    """Whose nets, of gan_mnist."""
    seed: int = 0
    """Of all that is random."""
    root: str = "."
    """The folder that outputs/ and models/ are in."""


def steps(model: str, seed: int = 0) -> Iterator[tuple[int, nn.Module]]:
    """Trains for ever; after each step the number of its epoch, from 1, and the generator."""
    torch.manual_seed(seed)
    config = gan_mnist.Config(model=model)
    generator, discriminator = gan_mnist.make_generator(config), nn.Sequential(gan_mnist.DISCRIMINATORS[model](), nn.Sigmoid())
    for module in discriminator.modules():
        if isinstance(module, Dropout):
            module.__class__ = nn.Dropout
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.999))
    criterion = nn.BCELoss()
    loader = mnist(config.batch_size)
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


def main(plain: Plain) -> None:
    """Writes outputs/plain_<model>/metrics.csv and models/plain_<model>.safetensors."""
    require_positive(minutes=plain.minutes)
    require_seed(plain.seed)
    data.load("mnist", 28, 1)  # where it isn't there yet, it is fetched before the clock starts
    name = f"plain_{plain.model}" + (f"_{plain.seed}" if plain.seed else "")
    ends = [time.perf_counter()]
    for epoch, generator in steps(plain.model, plain.seed):  # noqa: B007 (used below)
        if epoch > len(ends):
            ends.append(time.perf_counter())
            if ends[-1] - ends[0] > 60 * plain.minutes:
                break
    rows = [{"epoch": number, "seconds": round(end - begun, 3)} for number, (begun, end) in enumerate(itertools.pairwise(ends), 1)]
    with replacing(Path(plain.root) / "outputs" / name / "metrics.csv") as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    of_the_recipe = {"learning_rate": LEARNING_RATE, "generator_rate": 1.0, "warm_up": 0, "average": 0.0, "held_out": 0}
    config = gan_mnist.Config(model=plain.model, seed=plain.seed, name=name, epochs=len(rows), **of_the_recipe)
    command = f"python benchmarks/plain.py --model {plain.model} --minutes {plain.minutes:g}"
    save_generator(Path(plain.root) / "models" / f"{name}.safetensors", generator.eval(), "gan_mnist", config, command=command)


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Plain)))
