"""The GAN of 2014 on MNIST, and two of its kin.

Goodfellow et al., "Generative Adversarial Nets", NIPS 2014 (arXiv 1406.2661): two networks play

    min over G, max over D:   V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]                (equation 1)

until the generator's images can't be told from the data. The constant `model` chooses the players:

    maxout     the paper's: a maxout discriminator with dropout, both players moved at once by SGD with momentum; for the paper's
               likelihood their rates rise above the paper's and G's weights are averaged
    batchnorm  the same game, with batch normalisation in the generator
    leaky      what tutorials train: LeakyReLU, dropout, tanh, Adam, the players taking turns

As in the paper, the generator under which held-out images are likeliest is kept. Each epoch adds a grid of digits to
outputs/gan_mnist_<model>/; gif/gan_mnist_<model>.gif shows them one after the other. An epoch takes 3 (leaky) to 8 seconds on two CPU
cores that have bf16 units.

    python gan_mnist.py
    python gan_mnist.py --model maxout --epochs 100
    python gan_mnist.py --data my_pictures/ --name mine
"""

import copy
import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.swa_utils import update_bn

from utils.average import add_to_average
from utils.device import Dropout, widen
from utils.images import to_uint8, to_unit
from utils.run import Run
from utils.scores import parzen
from utils.shell import UserError, command_line, require_not_negative, require_positive, require_share


@dataclass
class Config:
    """Train the GAN of 2014 on MNIST, or on your own pictures."""

    model: Annotated[str, tyro.conf.arg(metavar="maxout|batchnorm|leaky")] = "batchnorm"
    """The paper's players, the same with batch norm in the generator, or the tutorials' players."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int | None = None
    """Images a step (by default 100 as in the paper; leaky: 256)."""
    learning_rate: float | None = None
    """The discriminator's (by default 0.2, twice the paper's; leaky: 0.0002)."""
    generator_rate: float | None = None
    """The generator's learning rate, in units of the discriminator's (by default 2, in the paper 1; leaky: 1)."""
    warm_up: int | None = None
    """Epochs in which SGD's rates rise from the paper's 0.1 to these, where they are higher (by default maxout: 40; batchnorm: 10)."""
    average: float | None = None
    """How far back the average of G's weights, the result, reaches: 0 not at all, 1 to the start (by default 1/3; leaky: 0)."""
    data: str = "mnist"
    """mnist, fashion-mnist, cifar10, or the path of a folder with images; all become 28 x 28 and grey."""
    held_out: int = 10_000
    """The last images of a known set that aren't trained on: the paper's validation set."""
    estimate_every: int = 10
    """Epochs between estimates of the validation set's likelihood; the likeliest generator is the result (0: the last one is)."""
    seed: int = 0
    """Of the weights, the noise, dropout and the order of the data."""
    name: str = ""
    """Of the run and its files (by default gan_mnist_<model>)."""
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
        if self.batch_size is None:
            self.batch_size = 256 if self.model == "leaky" else 100
        if self.learning_rate is None:
            self.learning_rate = 0.0002 if self.model == "leaky" else 2 * PAPER_RATE
        if self.generator_rate is None:
            self.generator_rate = 1.0 if self.model == "leaky" else 2.0
        if self.warm_up is None:
            self.warm_up = {"maxout": 40, "batchnorm": 10}.get(self.model, 0)
        if self.average is None:
            self.average = 0.0 if self.model == "leaky" else 1 / 3


class MaxoutGenerator(nn.Module):
    """The paper's: N x 100 uniform noise of unit variance to N x 1 x 28 x 28 images in [0, 1]."""

    pixels = (0.0, 1.0)
    noise = "uniform"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(100, 1200), nn.ReLU(),
            nn.Linear(1200, 1200), nn.ReLU(),
            nn.Linear(1200, 784),
        )
        uniform_weights(self, 0.05)

    def latent(self, count: int, device: torch.device | str, rng: torch.Generator | None = None) -> torch.Tensor:
        return torch.empty(count, 100, device=device).uniform_(-math.sqrt(3), math.sqrt(3), generator=rng)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return widen(self.layers(z)).sigmoid().unflatten(1, (1, 28, 28))

    def start_from_marginals(self, images: torch.Tensor) -> None:
        """Sets the output's bias to the logit of each pixel's mean, so that the first fakes are grey where digits are.

        images: uint8 N x 1 x 28 x 28.
        """
        means = images.flatten(1).float().mean(0) / 255
        self.layers[-1].bias.data.copy_(means.clamp(1e-7, 1 - 1e-7).logit())


class MaxoutDiscriminator(nn.Module):
    """The paper's: N x 1 x 28 x 28 to N logits, whose sigmoid is D(x); dropout on the input and on both hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            Dropout(0.2), Maxout(784, 240, pieces=5),
            Dropout(0.5), Maxout(240, 240, pieces=5),
            Dropout(0.5), nn.Linear(240, 1),
        )
        uniform_weights(self, 0.005)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return widen(self.layers(x)).squeeze(1)


class Maxout(nn.Module):
    """Each unit is the largest of `pieces` linear functions (Goodfellow et al., "Maxout Networks", 2013, equation 2).

    N x inputs to N x units.
    """

    def __init__(self, inputs: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units * pieces)
        self.pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).unflatten(1, (-1, self.pieces)).max(dim=2).values


def uniform_weights(network: nn.Module, bound: float) -> None:
    """Weights uniform in +-bound, biases zero. PyTorch's own start lets this D win at once, and G never recovers."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)


class BatchNormGenerator(MaxoutGenerator):
    """The paper's generator with its hidden layers normalised over the batch (Ioffe and Szegedy 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(100, 1200), nn.BatchNorm1d(1200), nn.ReLU(),
            nn.Linear(1200, 1200), nn.BatchNorm1d(1200), nn.ReLU(),
            nn.Linear(1200, 784),
        )
        uniform_weights(self, 0.05)


class LeakyGenerator(nn.Module):
    """The tutorials': N x 100 normal noise to N x 1 x 28 x 28 images in [-1, 1]."""

    pixels = (-1.0, 1.0)
    noise = "normal"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(100, 1200), nn.LeakyReLU(0.2),
            nn.Linear(1200, 1200), nn.LeakyReLU(0.2),
            nn.Linear(1200, 784),
        )

    def latent(self, count: int, device: torch.device | str, rng: torch.Generator | None = None) -> torch.Tensor:
        return torch.empty(count, 100, device=device).normal_(generator=rng)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return widen(self.layers(z)).tanh().unflatten(1, (1, 28, 28))


class LeakyDiscriminator(nn.Module):
    """The tutorials': N x 1 x 28 x 28 to N logits, whose sigmoid is D(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 240), nn.LeakyReLU(0.2), Dropout(0.3),
            nn.Linear(240, 240), nn.LeakyReLU(0.2), Dropout(0.3),
            nn.Linear(240, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return widen(self.layers(x)).squeeze(1)


BAR = {"loss_d": "loss D {:.2f}", "loss_g": "G {:.2f}", "d_real": "D(real) {:.2f}", "d_fake": "D(fake) {:.2f}", "accuracy_d": "acc {:.2f}"}
CURVES = {
    "losses": {"loss_d": "D: -log D(x) - log(1 - D(G(z)))", "loss_g": "G: -log D(G(z))"},
    "share that D tells right": {"accuracy_d": "D's accuracy"},
    "log-likelihood of held-out images": {"log_likelihood": "generator, nats"},
}
# Where the fakes are like the data and D says 1/2 to everything (theorem 1).
THEORY = {"loss_d": ("log 4", math.log(4)), "loss_g": ("log 2", math.log(2)), "accuracy_d": ("0.5", 0.5)}
SAMPLES = 10_000  # that the likelihood is estimated from, as in the paper
PAPER_RATE = 0.1
AVERAGED_EVERY = 10  # steps: neighbours hardly differ, and all would cost a sixth of the time
GENERATORS = {"maxout": MaxoutGenerator, "batchnorm": BatchNormGenerator, "leaky": LeakyGenerator}
DISCRIMINATORS = {"maxout": MaxoutDiscriminator, "batchnorm": MaxoutDiscriminator, "leaky": LeakyDiscriminator}


def make_generator(config: Config) -> nn.Module:
    """The generator that a Config asks for, untrained; UserError where there is no such model."""
    if config.model not in GENERATORS:
        raise UserError(f"no model named '{config.model}': give --model one of {', '.join(GENERATORS)}")
    return GENERATORS[config.model]()


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """-V(D, G) = -log D(x) - log(1 - D(G(z))), means over the batch; log 4 where D can't tell them apart (theorem 1).

    From logits, because softplus(-a) = -log sigmoid(a) stays exact where the sigmoid is 0 or 1.
    """
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """-log D(G(z)), mean over the batch: the same fixed point as log(1 - D(G(z))), with a gradient where D is sure (section 3)."""
    return F.softplus(-logits_fake).mean()


def move_at_once(run: Run, generator: nn.Module, discriminator: nn.Module, sgd_g: SGD, sgd_d: SGD, real: torch.Tensor) -> None:
    """The paper's step: one batch of fakes, seen once by D, gives both players their gradients; then both move."""
    with run.autocast():
        fake = generator(generator.latent(len(real), run.device))
        logits_real, logits_fake = discriminator(torch.cat([real, fake])).chunk(2)
    loss_d = discriminator_loss(logits_real, logits_fake)
    loss_g = generator_loss(logits_fake)
    run.backward(loss_d / 2, discriminator, retain_graph=True)  # the half is the authors': D learns at half G's rate
    run.backward(loss_g, generator)
    run.step(sgd_d, sgd_g)
    run.log(**readings(loss_d, loss_g, logits_real, logits_fake))


def take_turns(run: Run, generator: nn.Module, discriminator: nn.Module, adam_g: Adam, adam_d: Adam, real: torch.Tensor) -> None:
    """The tutorials' step: D moves first, then G against the new D, on the same fakes."""
    with run.autocast():
        fake = generator(generator.latent(len(real), run.device))
        logits_real, logits_fake = discriminator(torch.cat([real, fake.detach()])).chunk(2)
    loss_d = discriminator_loss(logits_real, logits_fake)
    run.backward(loss_d, discriminator)
    run.step(adam_d)

    with run.autocast():
        loss_g = generator_loss(discriminator(fake))
    run.backward(loss_g, generator)
    run.step(adam_g)
    run.log(**readings(loss_d, loss_g, logits_real, logits_fake))


@torch.no_grad()
def readings(loss_d: torch.Tensor, loss_g: torch.Tensor, logits_real: torch.Tensor, logits_fake: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the progress bar and metrics.csv show of a step; accuracy_d is the share of real and fake images that D tells right."""
    d_real, d_fake = logits_real.sigmoid(), logits_fake.sigmoid()
    return {
        "loss_d": loss_d, "loss_g": loss_g, "d_real": d_real.mean(), "d_fake": d_fake.mean(),
        "accuracy_d": torch.cat([d_real > 0.5, d_fake < 0.5]).float().mean(),
    }


def paper_schedule(sgd: Optimizer, rate: float, update: int, epoch: int, warm_up: int = 0) -> None:
    """The authors' rate, divided by 1.000004 after every update, and momentum, from 0.5 in epoch 1 to 0.7 in epoch 250.

    A rate above the paper's is only reached after `warm_up` updates, in a straight line from the paper's. The authors' velocity holds
    the rates of the past (v = momentum * v - rate * gradient), PyTorch's is multiplied by the present rate when the weights move;
    the ratio of two successive rates makes one the other.
    """
    start = min(PAPER_RATE, rate)

    def rate_of(count: int) -> float:
        risen = min(max(count, 0) / warm_up, 1) if warm_up else 1
        return max((start + (rate - start) * risen) / 1.000004**count, min(rate, 1e-6))

    before, now = rate_of(update - 1), rate_of(update)
    momentum = 0.5 + 0.2 * min((epoch - 1) / 249, 1)
    for group in sgd.param_groups:
        group.update(lr=now, momentum=momentum * before / now)


@torch.no_grad()
def held_out_likelihood(generator: nn.Module, z: torch.Tensor, images: torch.Tensor) -> float:
    """Of images (N x 1 x 28 x 28 in [0, 1]) under what the generator makes of z, in nats, as score.py estimates it."""
    samples = torch.cat([to_uint8(generator.eval()(part), *generator.pixels) for part in z.split(1000)])
    generator.train()
    return parzen(to_unit(samples).to(images.device), images, images).mean


def train(config: Config) -> None:
    """One whole run; Run says what it leaves. Raises UserError for constants or data that can't be used."""
    require_positive(learning_rate=config.learning_rate, generator_rate=config.generator_rate)
    require_not_negative(estimate_every=config.estimate_every, warm_up=config.warm_up)
    require_share(average=config.average)
    if config.model == "leaky" and config.warm_up:
        raise UserError(f"warm_up is {config.warm_up}, but leaky's rates stay as they are: leave out --warm-up")
    run = Run(config, "gan_mnist", config.model, BAR)
    if config.model == "batchnorm" and run.share == 1:
        raise UserError("batch_size gives a process 1 image, expected at least 2 to normalise over: give --batch-size another value")
    generator, discriminator = run.place(make_generator(config), DISCRIMINATORS[config.model]())
    images, validation = run.load(config.data, size=28, channels=1, held_out=config.held_out)
    rates = config.learning_rate * config.generator_rate, config.learning_rate
    warm_up = config.warm_up * (len(images) // config.batch_size)  # in updates
    networks = tuple(zip((generator, discriminator), rates, strict=True))
    if config.model == "leaky":
        optimizer_g, optimizer_d = (Adam(net.parameters(), rate, betas=(0.5, 0.999), fused=True) for net, rate in networks)
    else:
        generator.start_from_marginals(images)
        fused = run.precision != "fp16"  # where a step that overflows is left out, the fused SGD's velocity would start as garbage
        optimizer_g, optimizer_d = (SGD(net.parameters(), rate, momentum=0.5, fused=fused) for net, rate in networks)
    result = copy.deepcopy(generator) if config.average else generator
    players = (generator, discriminator, optimizer_g, optimizer_d)
    run.track(generator=result, player=generator, discriminator=discriminator, optimizer_g=optimizer_g, optimizer_d=optimizer_d)
    fixed_z = generator.latent(SAMPLES, "cpu", torch.Generator().manual_seed(config.seed)).to(run.device)
    reference: dict[str, tuple[str, float]] = {}

    for epoch in run.epochs():
        for real in run.batches(images, *generator.pixels):
            if config.model == "leaky":
                take_turns(run, *players, real)
            else:
                paper_schedule(optimizer_g, rates[0], run.iteration, epoch, warm_up)
                paper_schedule(optimizer_d, rates[1], run.iteration, epoch, warm_up)
                move_at_once(run, *players, real)
            if config.average and run.iteration % AVERAGED_EVERY == 0:
                add_to_average(result, generator, run.iteration // AVERAGED_EVERY, config.average)

        if config.average:
            update_bn(fixed_z.split(1000), result)
        run.picture(result, fixed_z[:100])
        if len(validation) > 1 and run.due(config.estimate_every):
            run.best(result, log_likelihood=held_out_likelihood(result, fixed_z, to_unit(validation)))
            if not reference:
                real = parzen(to_unit(images[:SAMPLES]), to_unit(validation), to_unit(validation)).mean
                reference = {"log_likelihood": (f"training images: {real:.0f}", real)}
    run.finish(result, CURVES, THEORY, reference)


if __name__ == "__main__":
    command_line(lambda: train(tyro.cli(Config)))
