"""A GAN in the plane, which finds all eight modes of the ring.

The field's test for lost modes: eight narrow Gaussians on a circle (Metz et al., "Unrolled Generative Adversarial Networks", 2017,
section 3.1). The plain game (Goodfellow et al. 2014) leaves some of them out: where the modes are narrow, D's slope leads to the nearest
one, not to those that are missing, and steps of one size lose again what was found. What cures it, together, is noise on all that D
sees, real and fake (Sonderby et al. 2017, "Amortised MAP Inference for Image Super-resolution"), which melts the modes into one blob
that G can't miss, and cools down, so that they separate slowly, and G with them; and rates that fall.

The GIF shows samples over the eight modes, with D's landscape behind: the darker, the more real. A run takes about half a minute
on two CPU cores.

    python gan_ring.py
    python gan_ring.py --noise 0
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import nn
from torch.optim import Adam

from utils import plots
from utils.run import Run
from utils.shell import command_line, require_not_negative, require_positive

STEPS = 100  # an epoch: the data never ends, so an epoch is what lies between two measurements
MEASURED = 100_000  # samples
COLDEST = 1 / 300  # of the first noise: a sixth of a mode's deviation
RADIUS, DEVIATION = 2.0, 0.02
ANGLES = np.arange(8) * (np.pi / 4)
MODES = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # 8 x 2


@dataclass
class Config:
    """Train a GAN on a ring of eight Gaussians."""

    epochs: int = 80
    """Of 100 steps each, on fresh samples of the ring. Rates and noise fall over all of them: a resumed run that is given more takes
    them up again."""
    batch_size: int = 512
    """Samples a step."""
    learning_rate_d: float = 0.003
    """The discriminator's, at the start."""
    learning_rate_g: float = 0.004
    """The generator's, at the start."""
    left_d: float = 0.03
    """The share of the discriminator's rate that is left at the end; it falls by the same share in every step (1: it stays)."""
    decay_g: float = 2.0
    """The generator's rate falls with this power of the share of steps left (0: it stays)."""
    noise: float = 1.0
    """The deviation of the noise on what D sees, at the start (0: none)."""
    cooling: float = 0.7
    """The share of training after which it has fallen to COLDEST, and is switched off."""
    seed: int = 0
    """Of the weights, the noise and the data."""
    name: str = ""
    """Of the run and its files (by default gan_ring)."""
    root: str = "."
    """The folder that outputs/, gif/ and models/ are in."""
    picture_every: int = 2
    """Epochs from frame to frame of the GIF (0: no frames)."""
    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps."""
    resume: bool = False
    """Go on where the run of this name stopped."""


def players_net(outputs: int) -> nn.Sequential:
    """N x 2 to N x outputs."""
    return nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(),
        nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, outputs),
    )


class Generator(nn.Module):
    """N x 2 noise, uniform in [-1, 1], to N x 2 points."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = players_net(2)

    def latent(self, count: int, device: torch.device | str, rng: torch.Generator | None = None) -> torch.Tensor:
        return torch.empty(count, 2, device=device).uniform_(-1, 1, generator=rng)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)

    samples = forward  # what sampler.py asks of a generator of points


class Discriminator(nn.Module):
    """N x 2 points to N logits, whose sigmoid is D(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = players_net(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(1)


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """-log D(x) - log(1 - D(G(z))), means over the batch (Goodfellow et al. 2014, equation 1)."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """-log D(G(z)), mean over the batch: the non-saturating loss (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-logits_fake).mean()


def make_generator(config: Config) -> nn.Module:
    """The generator, untrained."""
    return Generator()


def ring(count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points of the ring, float64 count x 2."""
    return MODES[rng.integers(len(MODES), size=count)] + rng.normal(0, DEVIATION, (count, 2))


def batches(config: Config, epoch: int, device: torch.device) -> Iterator[torch.Tensor]:
    """An epoch's real points, STEPS batches of float32 batch_size x 2; seed and epoch decide."""
    rng = np.random.default_rng([config.seed, epoch])
    for _ in range(STEPS):
        yield torch.as_tensor(ring(config.batch_size, rng), dtype=torch.float32, device=device)


def noise_after(done: float, config: Config) -> float:
    """The deviation of the noise on what D sees, after this share of training."""
    return config.noise * COLDEST ** (done / config.cooling) if done < config.cooling else 0


def coverage(points: np.ndarray) -> dict[str, float]:
    """How well points (N x 2) cover the ring (after Srivastava et al. 2017, "VEEGAN"): `modes`, of 8, that have at least a quarter of
    their share of the points within three standard deviations; and `high_quality`, the share of the points that lie so near to any
    mode (99% for the ring itself).
    """
    apart = np.linalg.norm(points[:, None] - MODES, axis=2)
    near = apart < 3 * DEVIATION
    return {"modes": int((near.mean(axis=0) >= 0.25 / len(MODES)).sum()), "high_quality": near.any(axis=1).mean()}


@torch.no_grad()
def picture(points: np.ndarray, discriminator: Discriminator, title: str) -> Image.Image:
    """Points over the modes and D's landscape."""
    reach = 1.5 * RADIUS
    ticks = torch.linspace(-reach, reach, 81)
    plane = torch.cartesian_prod(ticks, ticks).flip(1).to(next(discriminator.parameters()).device)  # rows of equal y, x running
    return plots.plane(points[:2000], MODES, discriminator(plane).sigmoid().view(81, 81).cpu().numpy(), reach, title)


def portrait(config: Config, samples: np.ndarray) -> Image.Image:
    """The first 5,000 of samples (N x 2) over the modes."""
    found = coverage(samples)
    title = f"{found['modes']} of {len(MODES)} modes, {found['high_quality']:.1%} high quality"
    return plots.plane(samples[:5000], MODES, None, 1.5 * RADIUS, title)


BAR = {"loss_d": "loss D {:.2f}", "loss_g": "G {:.2f}", "modes": "modes {:.0f}", "high_quality": "quality {:.2f}"}
CURVES = {
    "modes found": {"modes": "of eight"},
    "share within 3 standard deviations of a mode": {"high_quality": "of the samples"},
    "losses": {"loss_d": "D: -log D(x) - log(1 - D(G(z)))", "loss_g": "G: -log D(G(z))"},
}
# Where the fakes are like the data and D says 1/2 to everything (theorem 1).
THEORY = {"high_quality": ("99%", 1 - np.exp(-4.5)), "loss_d": ("log 4", np.log(4)), "loss_g": ("log 2", np.log(2))}


def train(config: Config) -> None:
    """One whole run; Run says what it leaves. Raises UserError for constants that can't be used."""
    require_positive(learning_rate_d=config.learning_rate_d, learning_rate_g=config.learning_rate_g)
    require_positive(left_d=config.left_d, cooling=config.cooling)
    require_not_negative(decay_g=config.decay_g, noise=config.noise, picture_every=config.picture_every)
    torch.set_num_threads(1)  # of nets this small a second thread slows the products down
    run = Run(config, "gan_ring", "", BAR)
    generator, discriminator = run.place(Generator(), Discriminator())
    optimizer_g = Adam(generator.parameters(), config.learning_rate_g, betas=(0.0, 0.99), fused=True)
    optimizer_d = Adam(discriminator.parameters(), config.learning_rate_d, betas=(0.0, 0.99), fused=True)
    run.track(generator=generator, discriminator=discriminator, optimizer_g=optimizer_g, optimizer_d=optimizer_d)
    run.real = portrait(config, ring(MEASURED, np.random.default_rng([config.seed, 0])))  # (epochs, which have their own, start at 1)
    fixed_z = generator.latent(MEASURED, "cpu", torch.Generator().manual_seed(config.seed)).to(run.device)

    for epoch in run.epochs():
        for real in run.steps(batches(config, epoch, run.device), STEPS, "samples"):
            done = run.iteration / (STEPS * config.epochs)
            optimizer_g.param_groups[0]["lr"] = config.learning_rate_g * (1 - done) ** config.decay_g
            optimizer_d.param_groups[0]["lr"] = config.learning_rate_d * config.left_d**done
            noise = noise_after(done, config)

            # Discriminator: ascend log D(x + noise) + log(1 - D(G(z) + noise)).
            fake = generator(generator.latent(len(real), run.device))
            logits_real = discriminator(real + noise * torch.randn_like(real))
            logits_fake = discriminator((fake + noise * torch.randn_like(fake)).detach())
            loss_d = discriminator_loss(logits_real, logits_fake)
            run.backward(loss_d, discriminator)
            run.step(optimizer_d)

            # Generator: ascend log D(G(z) + noise), against the D that has just moved.
            loss_g = generator_loss(discriminator(fake + noise * torch.randn_like(fake)))
            run.backward(loss_g, generator)
            run.step(optimizer_g)
            run.log(loss_d=loss_d, loss_g=loss_g)

        with torch.no_grad():
            points = generator(fixed_z).cpu().double().numpy()
        found = coverage(points)
        run.log(**found)
        if run.due(config.picture_every):
            title = f"iteration {run.iteration + 1:,}: {found['modes']} of {len(MODES)} modes, {found['high_quality']:.0%} high quality"
            run.frame(picture(points, discriminator, title))
    run.finish(generator, CURVES, THEORY, captions=False)


if __name__ == "__main__":
    command_line(lambda: train(tyro.cli(Config)))
