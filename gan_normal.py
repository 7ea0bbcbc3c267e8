"""A GAN in one dimension, which ends at the distribution that it was to learn.

Goodfellow et al., "Generative Adversarial Nets", NIPS 2014 (arXiv 1406.2661), Figure 1: a generator turns uniform noise into a
normal distribution, and everything that theory speaks of can be drawn. The GIF shows the data's density (dotted), the generator's
(solid), D's curve (dashed) beside the best one there is, p_data / (p_data + p_g) (proposition 1), and the lines that carry z to x.

The plain game circles: wherever D lags behind, G runs past the data to where D still says "real", D follows, and G comes back.
The gradient of such a game turns around its fixed point instead of leading to it, so that steps of one size never end it (Mescheder
et al. 2018, "Which Training Methods for GANs do actually Converge?"). What cures it is a G that slows down to a stand while D stays
fast, and so plays against a D that is nearly the best one (two time scales: Heusel et al. 2017, theorem 1), on data in units of its
own deviation, with a penalty on D's slope at the data that damps what is left of the turning.

A run takes about half a minute on two CPU cores, less than half of it for training; `benchmarks/normal.py` switches the cures off
one by one.

    python gan_normal.py
    python gan_normal.py --target mixture --seed 3
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

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

    target: Annotated[str, tyro.conf.arg(metavar="normal|uniform|mixture|exponential")] = "normal"
    """The distribution to learn; others can be added to TARGETS."""
    epochs: int = 45
    """Of 100 steps each, on fresh samples of the target."""
    batch_size: int = 1024
    """Samples a step."""
    learning_rate_d: float = 0.003
    """Of the discriminator, to the end."""
    learning_rate_g: float = 0.001
    """Of the generator, at the start."""
    decay: float = 2.0
    """The generator's rate falls with this power of the share of steps left (0: it stays)."""
    penalty: float = 0.3
    """The weight of half the mean squared slope of D's logits at the data (0: none)."""
    standardize: bool = True
    """Whether both players work in units of the data's mean and standard deviation."""
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
    """Go on from the last whole epoch of the run of this name."""


class Mixture:
    """Several distributions, each with its share; it draws, and has a density and a distribution function, as scipy's have."""

    def __init__(self, *parts: tuple[float, Any]) -> None:
        self.shares, self.parts = zip(*parts, strict=True)

    def rvs(self, size: int, random_state: np.random.Generator) -> np.ndarray:
        which = random_state.choice(len(self.parts), size, p=self.shares)
        return np.choose(which, [part.rvs(size, random_state=random_state) for part in self.parts])

    def pdf(self, x: np.ndarray) -> np.ndarray:
        return sum(share * part.pdf(x) for share, part in zip(self.shares, self.parts, strict=True))

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return sum(share * part.cdf(x) for share, part in zip(self.shares, self.parts, strict=True))


TARGETS = {
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
    """N x 1 noise, uniform in [-1, 1], to N x 1 samples, in units of the data's mean and deviation where these are known to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = players_net()
        # The first layer bends at -bias / weight. Spread over all of [-1, 1], some bends lie at its ends, where the tails are made.
        first = self.layers[0]
        first.bias.data = -first.weight.data[:, 0] * torch.empty(32).uniform_(-1, 1)
        self.register_buffer("center", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))

    def latent(self, count: int, device: torch.device | str, rng: torch.Generator | None = None) -> torch.Tensor:
        return torch.empty(count, 1, device=device).uniform_(-1, 1, generator=rng)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)

    def samples(self, z: torch.Tensor) -> torch.Tensor:
        """N x 1 samples of the target's own units."""
        return self(z) * self.scale + self.center


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
    device = generator.center.device
    for _ in range(STEPS):
        real = torch.as_tensor(target.rvs((config.batch_size, 1), random_state=rng), dtype=torch.float32, device=device)
        yield (real - generator.center) / generator.scale


def distances(samples: np.ndarray, target: Any) -> dict[str, float]:
    """How far samples (N numbers) are from a target: the Wasserstein-1 distance to as many of its own (in the target's units; two
    true samples of 100,000 of the default target are about 0.006 apart), and the Kolmogorov-Smirnov distance to its distribution
    function, in [0, 1]; and the samples' mean and standard deviation.
    """
    real = target.rvs(len(samples), random_state=np.random.default_rng(0))
    return {
        "w1": stats.wasserstein_distance(samples, real), "ks": stats.kstest(samples, target.cdf).statistic,
        "mean": samples.mean(), "std": samples.std(),
    }


@torch.no_grad()
def draw(generator: Generator, z: torch.Tensor) -> np.ndarray:
    """The generator's numbers of `z`, N x 1, in the target's units: float64 N."""
    return generator.samples(z).double().cpu().numpy()[:, 0]


@torch.no_grad()
def figure_1(
    x: np.ndarray, target: Any, generator: Generator, discriminator: Discriminator, samples: np.ndarray, title: str
) -> Image.Image:
    """The paper's Figure 1 at the places x; samples: N numbers of the generator's."""
    device = generator.center.device
    d = discriminator((torch.as_tensor(x, dtype=torch.float32, device=device)[:, None] - generator.center) / generator.scale).sigmoid()
    z = torch.linspace(-1, 1, 33, device=device)[:, None]
    return plots.game(x, target.pdf(x), samples, d.cpu().numpy(), z.cpu().numpy()[:, 0], draw(generator, z), title)


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
    require_not_negative(decay=config.decay, penalty=config.penalty, picture_every=config.picture_every)
    target = find_target(config)
    torch.set_num_threads(1)  # of nets this small a second thread slows the products down
    run = Run(config, "gan_normal", "" if config.target == "normal" else config.target, BAR)
    real = target.rvs(MEASURED, random_state=np.random.default_rng(config.seed))
    generator, discriminator = run.place(Generator(), Discriminator())
    if config.standardize:
        generator.center.fill_(real.mean())
        generator.scale.fill_(real.std())
    optimizer_g = Adam(generator.parameters(), config.learning_rate_g, betas=(0.0, 0.99), fused=True)
    optimizer_d = Adam(discriminator.parameters(), config.learning_rate_d, betas=(0.0, 0.99), fused=True)
    run.track(generator=generator, discriminator=discriminator, optimizer_g=optimizer_g, optimizer_d=optimizer_d)
    run.real = portrait(config, real[:, None])
    places = plots.axis(real)
    fixed_z = generator.latent(MEASURED, "cpu", torch.Generator().manual_seed(config.seed)).to(run.device)

    def look(step: int | None = None) -> None:
        """Measures the generator, and draws it after an epoch, or after a step of the first one."""
        samples = draw(generator, fixed_z)
        found = distances(samples, target)
        if step is None:
            run.log(**found)
        if step or (config.picture_every and epoch % config.picture_every == 0):
            title = f"iteration {run.iteration + 1:,}: W1 {found['w1']:.3f}"
            run.frame(figure_1(places, target, generator, discriminator, samples, title), step)

    for epoch in run.epochs():
        for real_x in run.steps(batches(target, config, epoch, generator), STEPS, "samples"):
            left = 1 - run.iteration / (STEPS * config.epochs)
            optimizer_g.param_groups[0]["lr"] = config.learning_rate_g * left**config.decay

            # Discriminator: ascend log D(x) + log(1 - D(G(z))).                                                  (equation 1)
            fake = generator(generator.latent(len(real_x), run.device))
            logits_real, logits_fake = discriminator(real_x.requires_grad_()), discriminator(fake.detach())
            loss_d = discriminator_loss(logits_real, logits_fake)
            penalty = config.penalty * slope_penalty(logits_real, real_x) if config.penalty else 0
            run.backward(loss_d + penalty, discriminator)
            run.step(optimizer_d)

            # Generator: ascend log D(G(z)), against the D that has just moved.
            loss_g = generator_loss(discriminator(fake))
            run.backward(loss_g, generator)
            run.step(optimizer_g)
            run.log(loss_d=loss_d, loss_g=loss_g)
            if config.picture_every and run.iteration + 1 in EARLY:
                look(run.iteration + 1)
        look()
    run.finish(generator, CURVES, THEORY | {"mean": ("the data's", real.mean()), "std": ("the data's", real.std())}, captions=False)


if __name__ == "__main__":
    command_line(lambda: train(tyro.cli(Config)))
