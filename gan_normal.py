"""A GAN in one dimension, which ends at the distribution that it was to learn.

Goodfellow et al., "Generative Adversarial Nets", NIPS 2014 (arXiv 1406.2661), Figure 1: a generator turns uniform noise into a
normal distribution, and everything that theory speaks of can be drawn. The GIF shows the data's density (dotted), the generator's
(solid), D's curve (dashed) beside the best one there is, p_data / (p_data + p_g) (proposition 1), and the lines that carry z to x.

The plain game circles: wherever D lags behind, G runs past the data to where D still says "real", D follows, and G comes back.
Near its end the gradient turns far more than it pulls in, so that steps of one size overshoot for ever (Mescheder et al. 2017, "The
Numerics of GANs"), and momentum carries them further. What cures it is a G whose steps shrink to nothing while D, which needs to be
nearly the best one, stays fast (two time scales: Heusel et al. 2017), no momentum, and data in units of its own deviation; a penalty
on D's slope at the data (Mescheder et al. 2018) and kinks of G all over its noise then bring the tails.

A run takes about half a minute on two CPU cores, less than half of it for training; `benchmarks/normal.py` switches the cures off
one by one.

    python gan_normal.py
    python gan_normal.py --target mixture --seed 3
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from scipy import stats
from torch import nn
from torch.optim import Adam

from utils import plots
from utils.run import Run
from utils.shell import UserError, command_line, require_not_negative, require_positive

STEPS = 100  # an epoch: the data never ends, so an epoch is what lies between two measurements
EARLY = (1, 5, 15, 30, 60)  # steps of the first epoch that are drawn too, because most happens there
MEASURED = 100_000  # samples


@dataclass
class Config:
    """Train a GAN on a distribution of one dimension."""

    target: str = "normal"
    """The distribution to learn: normal, uniform, mixture, exponential, or what else is added to TARGETS."""
    epochs: int = 45
    """Of 100 steps each, on fresh samples of the target. The generator's rate falls over all of them: a resumed run that is given more
    takes it up again."""
    batch_size: int = 1024
    """Samples a step."""
    learning_rate_d: float = 0.003
    """The discriminator's, which stays the same to the end."""
    learning_rate_g: float = 0.001
    """The generator's, at the start."""
    beta1: float = 0.0
    """Of both players' Adam: its momentum, below 1."""
    decay: float = 2.0
    """The generator's rate falls with this power of the share of steps left (0: it stays)."""
    penalty: float = 0.3
    """The weight of half the mean squared slope of D's logits at the data (0: none)."""
    standardize: bool = True
    """Whether both players work in units of the data's mean and standard deviation."""
    spread: bool = True
    """Whether the kinks of the generator's first layer start out evenly spread over its noise."""
    seed: int = 0
    """Of the weights, the noise and the data."""
    name: str = ""
    """Of the run and its files (by default gan_normal_<target>; gan_normal for the normal one)."""
    root: str = "."
    """The folder that outputs/, gif/ and models/ are in."""
    picture_every: int = 1
    """Epochs from frame to frame of the GIF (0: no frames, which is faster)."""
    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps."""
    resume: bool = False
    """Go on where the run of this name stopped."""


class Mixture:
    """Several distributions, each with its share; it draws, and has a density and a distribution function, as scipy's have."""

    def __init__(self, *parts: tuple[float, Any]) -> None:
        self.shares, self.parts = zip(*parts, strict=True)

    def rvs(self, size: int | tuple[int, ...], random_state: np.random.Generator) -> np.ndarray:
        which = random_state.choice(len(self.parts), size, p=self.shares)
        return np.choose(which, [part.rvs(size, random_state=random_state) for part in self.parts])

    def pdf(self, x: np.ndarray) -> np.ndarray:
        return sum(share * part.pdf(x) for share, part in zip(self.shares, self.parts, strict=True))

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return sum(share * part.cdf(x) for share, part in zip(self.shares, self.parts, strict=True))


TARGETS = {  # continuous, with a finite deviation
    "normal": stats.norm(4, 1.25),
    "uniform": stats.uniform(-1, 2),
    "mixture": Mixture((0.3, stats.norm(-2, 0.5)), (0.7, stats.norm(2, 1))),
    "exponential": stats.expon(),
}


def players_net() -> nn.Sequential:
    """N x 1 to N x 1."""
    return nn.Sequential(
        nn.Linear(1, 32), nn.LeakyReLU(0.2),
        nn.Linear(32, 32), nn.LeakyReLU(0.2),
        nn.Linear(32, 32), nn.LeakyReLU(0.2),
        nn.Linear(32, 1),
    )


class Generator(nn.Module):
    """N x 1 noise, uniform in [-1, 1], to N x 1 samples in units of the data: (x - center) / scale."""

    def __init__(self, spread: bool = True) -> None:
        super().__init__()
        self.layers = players_net()
        if spread:
            # A unit has its kink at -bias / weight. Over all of [-1, 1], some are at its ends, where the tails are made.
            first = self.layers[0]
            first.bias.data = -first.weight.data[:, 0] * torch.empty(32).uniform_(-1, 1)
        self.register_buffer("center", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))

    def latent(self, count: int, device: torch.device | str, rng: torch.Generator | None = None) -> torch.Tensor:
        return torch.empty(count, 1, device=device).uniform_(-1, 1, generator=rng)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)

    def samples(self, z: torch.Tensor) -> torch.Tensor:
        """N x 1 samples in the target's own units, float64 on the CPU."""
        return self(z).cpu().double() * self.scale.cpu() + self.center.cpu()


class Discriminator(nn.Module):
    """N x 1 samples, in the generator's units, to N logits, whose sigmoid is D(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = players_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(1)


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """-log D(x) - log(1 - D(G(z))), means over the batch (equation 1); log 4 where D can't tell them apart (theorem 1)."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """-log D(G(z)), mean over the batch: the non-saturating loss (section 3)."""
    return F.softplus(-logits_fake).mean()


def slope_penalty(logits_real: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Half the mean square of the slope of D's logits at the data (R1: Mescheder et al. 2018, equation 9); `real` needs a gradient."""
    (slope,) = torch.autograd.grad(logits_real.sum(), real, create_graph=True)
    return slope.square().sum(1).mean() / 2


def make_generator(config: Config) -> nn.Module:
    """The generator that a Config asks for, untrained; UserError where there is no such target."""
    find_target(config)
    return Generator()


def find_target(config: Config) -> Any:
    """The frozen distribution that a Config names; UserError where there is none."""
    if config.target not in TARGETS:
        also = "; the ring of eight Gaussians is gan_ring.py" if config.target == "ring" else ""
        raise UserError(f"no target named '{config.target}': give --target one of {', '.join(TARGETS)}{also}")
    return TARGETS[config.target]


def batches(target: Any, config: Config, epoch: int, generator: Generator) -> Iterator[torch.Tensor]:
    """An epoch's real samples, STEPS batches of float32 batch_size x 1 in the generator's units; seed and epoch decide."""
    rng = np.random.default_rng([config.seed, epoch])
    for _ in range(STEPS):
        real = target.rvs((config.batch_size, 1), random_state=rng)
        yield in_units(real, generator)


def in_units(x: np.ndarray, generator: Generator) -> torch.Tensor:
    """Numbers of the target as the players see them: float32 on their device."""
    center, scale = generator.center.item(), generator.scale.item()
    return torch.as_tensor((x - center) / scale, dtype=torch.float32, device=generator.center.device)


def distances(samples: np.ndarray, target: Any) -> dict[str, float]:
    """How far samples (N numbers) are from a target: the Wasserstein-1 distance to as many true ones, always the same (in the target's
    units; two true samples of 100,000 of the default target are about 0.007 apart), and the Kolmogorov-Smirnov distance to its
    distribution function, in [0, 1]; and the samples' mean and standard deviation.
    """
    real = target.rvs(len(samples), random_state=np.random.default_rng([0, 0, 1]))  # (runs draw from [seed, epoch])
    return {
        "w1": stats.wasserstein_distance(samples, real),
        "ks": stats.kstest(samples, target.cdf).statistic,
        "mean": samples.mean(),
        "std": samples.std(),
    }


@torch.no_grad()
def figure_1(
    x: np.ndarray, target: Any, generator: Generator, discriminator: Discriminator, samples: np.ndarray, title: str
) -> Image.Image:
    """The paper's Figure 1 at the places x; samples: N numbers of the generator's, whose kernel estimate stands for its density."""
    d = discriminator(in_units(x[:, None], generator)).sigmoid().cpu().numpy()
    data, fakes = target.pdf(x), plots.estimate(x, samples)
    seen = data + fakes > 0.005 * data.max()  # where there are neither data nor fakes, the best D may say anything
    best_d = np.divide(data, data + fakes, out=np.full_like(data, np.nan), where=seen)  # (proposition 1)
    z = torch.linspace(-1, 1, 33)[:, None]
    carried = generator.samples(z.to(generator.center.device))
    return plots.game(x, data, fakes, d, best_d, z.numpy()[:, 0], carried.numpy()[:, 0], title)


def portrait(config: Config, samples: np.ndarray) -> Image.Image:
    """A histogram of samples (N x 1) over the true density."""
    target = find_target(config)
    x = plots.axis(target.rvs(10_000, random_state=np.random.default_rng(0)))
    return plots.histogram(x, target.pdf(x), samples[:, 0], f"{len(samples):,} samples and the density of '{config.target}'")


BAR = {"loss_d": "loss D {:.2f}", "loss_g": "G {:.2f}", "w1": "W1 {:.3f}", "ks": "KS {:.3f}"}
CURVES = {
    "distance to the target": {"w1": "Wasserstein-1", "ks": "Kolmogorov-Smirnov"},
    "moments": {"mean": "mean", "std": "standard deviation"},
    "losses": {"loss_d": "D: -log D(x) - log(1 - D(G(z)))", "loss_g": "G: -log D(G(z))"},
}
# Where the fakes are like the data and D says 1/2 to everything (theorem 1).
THEORY = {"loss_d": ("log 4", np.log(4)), "loss_g": ("log 2", np.log(2))}


def train(config: Config) -> None:
    """One whole run; Run says what it leaves. Raises UserError for constants that can't be used."""
    require_positive(learning_rate_d=config.learning_rate_d, learning_rate_g=config.learning_rate_g)
    require_not_negative(beta1=config.beta1, decay=config.decay, penalty=config.penalty, picture_every=config.picture_every)
    if config.beta1 >= 1:
        raise UserError(f"beta1 is {config.beta1}, expected a number from 0 to below 1: give --beta1 another value")
    target = find_target(config)
    torch.set_num_threads(1)  # of nets this small a second thread slows the products down
    run = Run(config, "gan_normal", "" if config.target == "normal" else config.target, BAR)
    data = target.rvs(MEASURED, random_state=np.random.default_rng([config.seed, 0]))  # (epochs, which have their own, start at 1)
    generator, discriminator = run.place(Generator(config.spread), Discriminator())
    if config.standardize:
        generator.center.fill_(data.mean())
        generator.scale.fill_(data.std())
    optimizer_g = Adam(generator.parameters(), config.learning_rate_g, betas=(config.beta1, 0.99), fused=True)
    optimizer_d = Adam(discriminator.parameters(), config.learning_rate_d, betas=(config.beta1, 0.99), fused=True)
    run.track(generator=generator, discriminator=discriminator, optimizer_g=optimizer_g, optimizer_d=optimizer_d)
    run.real = portrait(config, data[:, None])
    places = plots.axis(data)
    fixed_z = generator.latent(MEASURED, "cpu", torch.Generator().manual_seed(config.seed)).to(run.device)

    def look(drawn: bool, step: int | None = None) -> dict[str, float]:
        """How far the generator is from the target now; if asked for, a frame of it, after an epoch or after a step of the first one."""
        with torch.no_grad():
            samples = generator.samples(fixed_z).numpy()[:, 0]
        found = distances(samples, target)
        if drawn:
            title = f"iteration {run.iteration + 1:,}: W1 {found['w1']:.3f}"
            run.frame(figure_1(places, target, generator, discriminator, samples, title), step)
        return found

    for epoch in run.epochs():
        for real in run.steps(batches(target, config, epoch, generator), STEPS, "samples"):
            left = 1 - run.iteration / (STEPS * config.epochs)
            optimizer_g.param_groups[0]["lr"] = config.learning_rate_g * left**config.decay

            # Discriminator: ascend log D(x) + log(1 - D(G(z))).                                                  (equation 1)
            fake = generator(generator.latent(len(real), run.device))
            logits_real, logits_fake = discriminator(real.requires_grad_()), discriminator(fake.detach())
            loss_d = discriminator_loss(logits_real, logits_fake)
            penalty = config.penalty * slope_penalty(logits_real, real) if config.penalty else 0
            run.backward(loss_d + penalty, discriminator)
            run.step(optimizer_d)

            # Generator: ascend log D(G(z)), against the D that has just moved.
            loss_g = generator_loss(discriminator(fake))
            run.backward(loss_g, generator)
            run.step(optimizer_g)
            run.log(loss_d=loss_d, loss_g=loss_g)
            if run.writes and config.picture_every and run.iteration + 1 in EARLY:
                look(True, run.iteration + 1)
        run.log(**look(run.due(config.picture_every)))
    moments = {"mean": (f"{data.mean():z.2f}", data.mean()), "std": (f"{data.std():.2f}", data.std())}
    run.finish(generator, CURVES, THEORY | moments, captions=False)


if __name__ == "__main__":
    command_line(lambda: train(tyro.cli(Config)))
