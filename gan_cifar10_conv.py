"""The convolutional GAN of 2014 on CIFAR-10.

Goodfellow et al., "Generative Adversarial Nets", NIPS 2014 (arXiv 1406.2661), section 5 and Figure 3 d. The game is gan_mnist.py's:

    min over G, max over D:   V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]                (equation 1)

The discriminator has three convolutional maxout layers and one fully connected one, with dropout. The generator has 8000 units, each
connected to 8000 more, which are 80 pictures of 10 x 10 that one transposed convolution paints the image from: 65 million weights.

Sizes and starting weights are those of the authors' published settings. `--optimizer sgd` is the paper's way, which needs more epochs than
two cores have time for. By default Adam moves the players, at rates that fall to zero; the generator's two layers are normalised, without
which the images of all z stayed nearly alike in trials of five minutes; and the result is an average of its weights. The authors give
each image by itself the mean 0 and the deviation 1; here all are shifted and scaled alike, so that a generated one can be shown as it is.

Each epoch adds a grid of images to outputs/gan_cifar10_conv/; gif/gan_cifar10_conv.gif shows them one after the other. A run takes about 70
minutes on two cores of an AMD EPYC that have bf16 units (on two that have none five and a half hours, 18 minutes an epoch), and up to 3.6
GB of the disk for checkpoints.

    python gan_cifar10_conv.py
    python gan_cifar10_conv.py --hidden 2000
    python gan_cifar10_conv.py --data my_pictures/ --name mine
"""

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.swa_utils import update_bn

from utils.average import add_to_average
from utils.device import Dropout, widen
from utils.layers import Columns, ConvTranspose2d, HugeLinear, WideConv2d
from utils.run import Run
from utils.shell import UserError, command_line, require_positive, require_share

NOISE = 100  # numbers in z
OPTIMIZERS: dict[str, dict[str, Any]] = {  # what goes with each
    "adam": {"learning_rate": 0.0005, "generator_rate": 0.4, "decay": True, "average": 0.1, "batch_size": 32, "batch_norm": True},
    "sgd": {"learning_rate": 0.004, "generator_rate": 1.0, "decay": False, "average": 0.0, "batch_size": 128, "batch_norm": False},
}
LARGEST, LARGEST_LAYER = 65_536, 2**28  # of the networks' widths; weights of a layer, 1 GB


@dataclass
class Config:
    """Train the convolutional GAN of 2014 on CIFAR-10, or on your own pictures."""

    optimizer: Annotated[str, tyro.conf.arg(metavar="adam|sgd")] = "adam"
    """Adam, or the paper's SGD with momentum. The constants that are None here follow from it, by the table at the top of the file."""
    learning_rate: float | None = None
    """The discriminator's; with Adam a unit of n inputs has 100 / n of it (adam_by_inputs)."""
    generator_rate: float | None = None
    """The generator's learning rate, in units of the discriminator's."""
    decay: bool | None = None
    """Whether Adam's rates fall to zero, evenly over all epochs (with --resume and more of these they rise again first)."""
    average: float | None = None
    """How far back the average of G's weights, the result, reaches: 0 not at all, 1 to the start."""
    batch_size: int | None = None
    """Images a step."""
    batch_norm: bool | None = None
    """Whether the generator's two layers are normalised over the batch, before their nonlinearities."""
    hidden: int = 8000
    """Units of the generator's first layer."""
    maps: int = 80
    """Pictures of 10 x 10 that its second layer is."""
    channels: int = 32
    """Of the discriminator's first two layers; the third has six times as many."""
    units: int = 500
    """Of its last hidden layer."""
    epochs: int = 18
    """Passes over the training images."""
    data: str = "cifar10"
    """cifar10, mnist, fashion-mnist, or the path of a folder with images; all become 32 x 32 and coloured."""
    held_out: int = 0
    """The last images of a known set that aren't trained on (in the paper 10,000)."""
    seed: int = 0
    """Of the weights, the noise, dropout and the order of the data."""
    name: str = ""
    """Of the run and its files (by default gan_cifar10_conv)."""
    root: str = "."
    """The folder that outputs/, gif/ and models/ are in."""
    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps."""
    precision: Annotated[str, tyro.conf.arg(metavar="auto|fp32|bf16|fp16")] = "auto"
    """Of the matrix products; auto asks the device what it is fast at."""
    keep_every: int = 0
    """Keep the generator of every k-th epoch in models/<name>/ (0: only the last)."""
    resume: bool = False
    """Go on where the run of this name stopped."""

    def __post_init__(self) -> None:
        for name, value in OPTIMIZERS.get(self.optimizer, OPTIMIZERS["adam"]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)


class Generator(nn.Module):
    """N x 100 normal noise to N x 3 x 32 x 32 images, whose pixels have about unit variance."""

    pixels = (-1.9, 2.1)  # the mean of CIFAR-10's is then 0, the deviation 1
    noise = "normal"

    def __init__(self, hidden: int = 8000, maps: int = 80, batch_norm: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm1d if batch_norm else nn.Identity
        self.layers = nn.Sequential(
            nn.Linear(NOISE, hidden, bias=not batch_norm), norm(hidden), nn.ReLU(),
            HugeLinear(hidden, maps * 10 * 10, bias=not batch_norm), norm(maps * 10 * 10), nn.Sigmoid(),
            nn.Unflatten(1, (maps, 10, 10)),
            ConvTranspose2d(maps, 3, 5, stride=3, bias=False),  # 3 x 32 x 32
        )
        self.bias = nn.Parameter(torch.zeros(3, 32, 32))
        uniform_weights(self, 0.05)

    def latent(self, count: int, device: torch.device | str, rng: torch.Generator | None = None) -> torch.Tensor:
        return torch.empty(count, NOISE, device=device).normal_(generator=rng)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return widen(self.layers(z)) + self.bias


class Discriminator(nn.Module):
    """N x 3 x 32 x 32 to N logits, whose sigmoid is D(x). The first convolution, too, has windows of 8 x 8: see Columns."""

    def __init__(self, channels: int = 32, units: int = 500) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Dropout(0.2), Columns(8, padding=4), PooledMaxout(3 * 8, channels, (8, 1), padding=0, pool=4),          # 32 x 16 x 16
            Dropout(0.5), PooledMaxout(channels, channels, (8, 8), padding=3, pool=4),                              # 32 x 7 x 7
            Dropout(0.5), PooledMaxout(channels, 6 * channels, (5, 5), padding=3, pool=2),                          # 192 x 5 x 5
            nn.Flatten(),
            Dropout(0.5), Maxout(6 * channels * 5 * 5, units, pieces=5),
            Dropout(0.5), nn.Linear(units, 1),
        )  # fmt: skip
        uniform_weights(self, 0.005)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return widen(self.layers(x)).squeeze(1)


class PooledMaxout(nn.Module):
    """Each channel is the largest of two convolutions, in windows of `pool` x `pool`, two pixels apart."""

    def __init__(self, inputs: int, channels: int, kernel: tuple[int, int], padding: int, pool: int) -> None:
        super().__init__()
        self.convolution = WideConv2d(inputs, 2 * channels, kernel, padding=padding)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pieces = self.convolution(x).permute(0, 2, 3, 1).unflatten(3, (2, -1))  # N x H x W x 2 x channels
        beside = pieces.flatten(2, 3).permute(0, 3, 1, 2)  # N x channels x H x 2W: one maximum is enough for both
        return F.max_pool2d(beside, (self.pool, 2 * self.pool), (2, 4), ceil_mode=True)


class Maxout(nn.Module):
    """Each unit is the largest of `pieces` linear functions: N x inputs to N x units."""

    def __init__(self, inputs: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units * pieces)
        self.pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).unflatten(1, (-1, self.pieces)).max(dim=2).values


def uniform_weights(network: nn.Module, bound: float) -> None:
    """Weights uniform in +-bound, biases zero, as in the authors' settings."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    network.to(memory_format=torch.channels_last)  # all channels of a pixel side by side: convolutions are faster


BAR = {"loss_d": "loss D {:.2f}", "loss_g": "G {:.2f}", "d_real": "D(real) {:.2f}", "d_fake": "D(fake) {:.2f}"}
CURVES = {"losses": {"loss_d": "D: -log D(x) - log(1 - D(G(z)))", "loss_g": "G: -log D(G(z))"}}
THEORY = {"loss_d": ("log 4", math.log(4)), "loss_g": ("log 2", math.log(2))}
BETAS = 0.5, 0.999  # of Adam
AVERAGED_EVERY = 8  # steps: neighbours hardly differ
SETTLING = 2000  # points of the latent space that the averaged generator's batch norm takes its statistics from


def make_generator(config: Config) -> nn.Module:
    """The generator that a Config asks for, untrained; UserError where it can't be built."""
    for name in ("hidden", "maps", "channels", "units"):
        if not 1 <= getattr(config, name) <= LARGEST:
            raise UserError(f"{name} is {getattr(config, name)}, expected 1 to {LARGEST:,}: give --{name} another value")
    of_d = max(6 * 2 * 5 * 5 * config.channels**2, 6 * 5 * 5 * config.channels * 5 * config.units)  # its third layer or its fourth
    for (one, other), weights in {("hidden", "maps"): config.hidden * config.maps * 100, ("channels", "units"): of_d}.items():
        if weights > LARGEST_LAYER:
            many = f"{one} and {other} make {weights:,} weights in a layer, expected at most {LARGEST_LAYER:,}"
            raise UserError(f"{many}: give a smaller --{one} or --{other}")
    return Generator(config.hidden, config.maps, config.batch_norm)


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """-V(D, G) = -log D(x) - log(1 - D(G(z))), means over the batch; log 4 where D can't tell them apart (theorem 1)."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """-log D(G(z)), mean over the batch: the same fixed point as log(1 - D(G(z))), with a gradient where D is sure (section 3)."""
    return F.softplus(-logits_fake).mean()


def move_at_once(
    run: Run, generator: nn.Module, discriminator: nn.Module, optimizer_g: Optimizer, optimizer_d: Optimizer, real: torch.Tensor
) -> None:
    """The paper's step: one batch of fakes, seen once by D, gives both players their gradients; then both move."""
    with run.autocast():
        fake = generator(generator.latent(len(real), run.device))
        seen = fake.detach().requires_grad_()
        logits_real, logits_fake = discriminator(real), discriminator(seen)

    # Generator: ascend log D(G(z)); first, before D forgets what it saw.
    loss_g = generator_loss(logits_fake)
    (gradient,) = torch.autograd.grad(run.scaler.scale(loss_g), seen, retain_graph=True)
    run.backward(None, generator, onward=[(fake, gradient)])

    # Discriminator: ascend log D(x) + log(1 - D(G(z))). The half is the authors', for SGD; Adam's steps are the same without it.
    loss_d = discriminator_loss(logits_real, logits_fake)
    run.backward(loss_d / 2, discriminator)
    run.step(optimizer_d, optimizer_g)
    with torch.no_grad():
        run.log(loss_d=loss_d, loss_g=loss_g, d_real=logits_real.sigmoid().mean(), d_fake=logits_fake.sigmoid().mean())


def adam_by_inputs(network: nn.Module, rate: float) -> Adam:
    """With this rate for the weights of a unit with 100 inputs and for biases, and for other weights inversely as the inputs.

    Adam moves all weights alike, however small their gradients: with one rate for all, a unit of 5000 inputs would move 50 times as far as
    one of 100. The rule is that of Yang et al., "Tensor Programs V", 2022, table 3.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    groups = [{"params": [layer.weight], "lr": rate * 100 / layer.weight[0].numel()} for layer in layers]
    groups.append({"params": [layer.bias for layer in layers], "lr": rate})
    return Adam(groups, betas=BETAS, fused=True)


def fall(adam: Optimizer, left: float) -> None:
    """Each rate becomes the share of its starting value that is left."""
    for group in adam.param_groups:
        group["lr"] = group["initial_lr"] * left


def paper_schedule(sgd: Optimizer, update: int, epoch: int) -> None:
    """The authors' rate, divided by 1.000004 after every update, and momentum, from 0.5 in epoch 1 to 0.7 in epoch 250."""
    for group in sgd.param_groups:
        rate = group["initial_lr"]
        group.update(lr=max(rate / 1.000004**update, min(rate, 1e-6)), momentum=0.5 + 0.2 * min((epoch - 1) / 249, 1))


def train(config: Config) -> None:
    """One whole run; Run says what it leaves. Raises UserError for constants or data that can't be used."""
    require_positive(learning_rate=config.learning_rate, generator_rate=config.generator_rate)
    require_share(average=config.average)
    if config.optimizer not in OPTIMIZERS:
        raise UserError(f"no optimizer named '{config.optimizer}': give --optimizer one of {', '.join(OPTIMIZERS)}")
    run = Run(config, "gan_cifar10_conv", "", BAR)
    if config.batch_norm and run.share == 1:
        raise UserError("batch_size gives a process 1 image, expected at least 2 to normalise over: give --batch-size another value")
    generator, discriminator = run.place(make_generator(config), Discriminator(config.channels, config.units))
    images, _ = run.load(config.data, size=32, channels=3, held_out=config.held_out)
    rate_g, rate_d = config.learning_rate * config.generator_rate, config.learning_rate
    if config.optimizer == "adam":
        optimizer_g = Adam(generator.parameters(), rate_g, betas=BETAS, fused=True)
        optimizer_d = adam_by_inputs(discriminator, rate_d)
    else:
        fused = run.precision != "fp16"  # where a step is left out, the fused SGD's velocity starts as garbage
        optimizer_g = SGD(generator.parameters(), rate_g, momentum=0.5, fused=fused)
        optimizer_d = SGD(discriminator.parameters(), rate_d, momentum=0.5, fused=fused)
    for group in (*optimizer_g.param_groups, *optimizer_d.param_groups):
        group["initial_lr"] = group["lr"]  # what it falls from
    result = copy.deepcopy(generator) if config.average else generator
    run.track(generator=result, player=generator, discriminator=discriminator, optimizer_g=optimizer_g, optimizer_d=optimizer_d)
    fixed_z = generator.latent(SETTLING, "cpu", torch.Generator().manual_seed(config.seed)).to(run.device)

    for epoch in run.epochs():
        for real in run.batches(images, *generator.pixels):
            for optimizer in (optimizer_g, optimizer_d):
                if config.optimizer == "sgd":
                    paper_schedule(optimizer, run.iteration, epoch)
                elif config.decay:
                    fall(optimizer, 1 - run.iteration / (config.epochs * run.count))
            move_at_once(run, generator, discriminator, optimizer_g, optimizer_d, real)
            if config.average and run.iteration % AVERAGED_EVERY == 0:
                add_to_average(result, generator, run.iteration // AVERAGED_EVERY, config.average)
        if config.average:
            update_bn(fixed_z.split(500), result)
        run.picture(result, fixed_z[:64])
    run.finish(result, CURVES, THEORY)


if __name__ == "__main__":
    command_line(lambda: train(tyro.cli(Config)))
