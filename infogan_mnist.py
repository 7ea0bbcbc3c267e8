"""InfoGAN on MNIST: codes that find digit, slant and width, without a label.

Chen et al., "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets", NIPS 2016
(arXiv 1606.03657). The generator is given noise and a code c: one of ten categories, and two numbers in [-1, 1]. Nothing makes a plain
GAN use it. InfoGAN asks that the code can be read from the image again, by a network Q that shares D's body:

    min over G and Q, max over D:   V(D, G) - lambda L(G, Q)                                  (equation 6)

where L is a lower bound of the information that an image holds about its code. The ten categories then become digits, more or less:
L is as happy with a category of two digits, and with two categories for the styles of one. What tells a digit from a style is that it
survives when the image is turned, sheared, scaled and shifted a little. So here Q reads the category of a fake from a distorted copy
(`distortion`), and is to find real images and their distorted copies in the same category (`agreement`).

Each epoch adds a grid, one category a row, to outputs/infogan_mnist/, and the share of test images that Q puts into a wrong digit's
category. An epoch takes about two minutes on two CPU cores that have bf16 units.

    python infogan_mnist.py
    python infogan_mnist.py --info-weight 0
    python sampler.py codes models/infogan_mnist.safetensors
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.optim import Adam

from utils import data
from utils.device import widen
from utils.images import to_unit
from utils.known import KNOWN, ImageSet
from utils.run import Run
from utils.shell import UserError, command_line, require_not_negative, require_positive

NOISE, CATEGORIES, CONTINUOUS = 62, 10, 2  # numbers of z, in this order
DISTORTION = (0.2, 0.2, 0.12, 0.12, 0.06, 0.06)  # deviations of turn, in radians, shear, log width and height, shifts in units of 14 pixels
LARGEST = 65_536  # of the fully connected layers
MATCHED = 10_000  # training images whose labels say which category is which digit


@dataclass
class Config:
    """Train InfoGAN on MNIST, or on your own pictures."""

    info_weight: float = 1.0
    """The paper's lambda, for the category (0: the plain GAN, whose Q learns nothing)."""
    continuous_weight: float = 0.05
    """The same for the two continuous codes, in units of the category's (in the authors' code 1)."""
    distortion: float = 1.0
    """How far the copies that Q reads the category from are turned, sheared, scaled and shifted (0: not at all, as in the paper)."""
    agreement: float = 1.0
    """The weight, in units of the category's, of the information that Q's categories of a real image and of its distorted copy share
    (0: none, as in the paper)."""
    hidden: int = 1024
    """Units of the fully connected layers, as in the paper; fewer train faster."""
    epochs: int = 10
    """Passes over the training images. Rates fall over all of them: a resumed run that is given more takes them up again."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 0.0002
    """Of the discriminator and Q."""
    generator_rate: float = 0.001
    """The generator's learning rate."""
    decay: float = 1.0
    """Both rates fall with this power of the share of steps left (0: they stay, as in the paper)."""
    data: str = "mnist"
    """mnist, fashion-mnist, cifar10, or the path of a folder with images; all become 28 x 28 and grey."""
    held_out: int = 0
    """The last images of a known set that aren't trained on."""
    seed: int = 0
    """Of the weights, the noise, the codes, the distortions and the order of the data."""
    name: str = ""
    """Of the run and its files (by default infogan_mnist, or infogan_mnist_plain where info_weight is 0)."""
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


class Generator(nn.Module):
    """N x 74 (normal noise, category, continuous codes) to N x 1 x 28 x 28 images in [0, 1]; the layers are those of appendix C.1."""

    pixels = (0.0, 1.0)
    noise = "normal"
    coded = CATEGORIES + CONTINUOUS  # numbers at the end of z that aren't noise

    def __init__(self, hidden: int = 1024) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(NOISE + CATEGORIES + CONTINUOUS, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, 128 * 7 * 7), nn.BatchNorm1d(128 * 7 * 7), nn.ReLU(),
            nn.Unflatten(1, (128, 7, 7)),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),  # 64 x 14 x 14
            nn.ConvTranspose2d(64, 1, 4, stride=2, padding=1),                                   # 1 x 28 x 28
        )  # fmt: skip
        normal_weights(self)
        self.register_buffer("digits", torch.arange(CATEGORIES))  # that the categories were matched to, for those who show them

    def latent(self, count: int, device: torch.device | str, rng: torch.Generator | None = None) -> torch.Tensor:
        noise = torch.empty(count, NOISE, device=device).normal_(generator=rng)
        category = torch.randint(CATEGORIES, (count,), device=device, generator=rng)
        continuous = torch.empty(count, CONTINUOUS, device=device).uniform_(-1, 1, generator=rng)
        return with_codes(noise, category, continuous)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return widen(self.layers(z)).sigmoid()


class Discriminator(nn.Module):
    """D and Q, which share a body. N x 1 x 28 x 28 to N logits, whose sigmoid is D(x), and to the N x 14 parameters of Q(c|x): ten
    logits of the category, and of the two continuous codes the means and the logarithms of the standard deviations."""

    def __init__(self, hidden: int = 1024) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 64, 4, stride=2, padding=1), nn.LeakyReLU(0.1),                            # 64 x 14 x 14
            nn.Conv2d(64, 128, 4, stride=2, padding=1), nn.BatchNorm2d(128), nn.LeakyReLU(0.1),     # 128 x 7 x 7
            nn.Flatten(),
            nn.Linear(128 * 7 * 7, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.1),
        )  # fmt: skip
        self.d = nn.Linear(hidden, 1)
        self.q = nn.Sequential(
            nn.Linear(hidden, 128), nn.BatchNorm1d(128), nn.LeakyReLU(0.1),
            nn.Linear(128, CATEGORIES + 2 * CONTINUOUS),
        )  # fmt: skip
        normal_weights(self)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x)
        return widen(self.d(features)).squeeze(1), widen(self.q(features))


def normal_weights(network: nn.Module) -> None:
    """Weights normal with deviation 0.02, biases zero, as in the authors' code."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


def with_codes(z: torch.Tensor, category: torch.Tensor, continuous: torch.Tensor) -> torch.Tensor:
    """z (N x 74, or its noise, N x 62) with other codes: category int64 N in 0..9, continuous float N x 2, in training within [-1, 1]."""
    one_hot = F.one_hot(category, CATEGORIES).to(z.dtype)
    return torch.cat([z[:, :NOISE], one_hot, continuous], 1)


def codes(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes in z (N x 74): category int64 N, continuous N x 2."""
    return z[:, NOISE : NOISE + CATEGORIES].argmax(1), z[:, NOISE + CATEGORIES :]


BAR = {
    "loss_d": "loss D {:.2f}", "loss_g": "G {:.2f}",
    "info_category": "info {:.2f}", "info_continuous": "+ {:.2f}", "error": "error {:.3f}",
}  # fmt: skip
CURVES = {
    "losses": {"loss_d": "D: -log D(x) - log(1 - D(G(z)))", "loss_g": "G: -log D(G(z))"},
    "information, at least, nats": {
        "info_category": "in a fake, about its category", "info_continuous": "in a fake, about its continuous codes",
        "info_shared": "shared by real images and distorted copies",
    },
    "share of test images in a wrong category": {"error": "unsupervised error"},
}
# Where the fakes are like the data, D says 1/2 to everything (theorem 1 of 2014) and an image tells its category.
THEORY = {"loss_d": ("log 4", math.log(4)), "loss_g": ("log 2", math.log(2)), "info_category": ("log 10", math.log(CATEGORIES))}


def make_generator(config: Config) -> nn.Module:
    """The generator that a Config asks for, untrained; UserError where it can't be built."""
    if not 1 <= config.hidden <= LARGEST:
        raise UserError(f"hidden is {config.hidden}, expected 1 to {LARGEST:,}: give --hidden another value")
    return Generator(config.hidden)


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor) -> torch.Tensor:
    """-V(D, G) = -log D(x) - log(1 - D(G(z))), means over the batch; log 4 where D can't tell them apart."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """-log D(G(z)), mean over the batch: the non-saturating loss."""
    return F.softplus(-logits_fake).mean()


def category_information(reading: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
    """L = E[log Q(c|x)] + H(c) for the category, in nats: at most the information that x holds about c (equation 5), also where Q sees
    a distorted copy, since that holds no more than x.

    reading: Q's, N x 14; category: int64 N. H(c) is log 10, and Q(c|x) the softmax of the first ten numbers.
    """
    log_q = reading[:, :CATEGORIES].log_softmax(1)
    return log_q.gather(1, category.unsqueeze(1)).mean() + math.log(CATEGORIES)


def continuous_information(reading: torch.Tensor, continuous: torch.Tensor) -> torch.Tensor:
    """The same for the two continuous codes, N x 2, together: H(c) is log 2 for each, as c is uniform on [-1, 1].

    Q(c|x) is normal, with a standard deviation that is learned, as in the paper (the authors' code fixes it at 1, where L is negative).
    """
    mean, log_std = reading[:, CATEGORIES:].chunk(2, 1)
    log_q = -0.5 * ((continuous - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return log_q.sum(1).mean() + CONTINUOUS * math.log(2)


def shared_information(run: Run, reading: torch.Tensor, reading_copies: torch.Tensor) -> torch.Tensor:
    """The information that the categories of images and of their distorted copies share, in nats: log 10 where they always agree and
    all categories are as frequent (Ji et al., "Invariant Information Clustering", 2019, equations 2 and 3).

    Both readings: Q's, N x 14. I = sum P log(P / (row sums x column sums)) moves with the joint distribution P as if the logarithm stood
    still (what that adds to the gradient is the same for all of P, whose sum is 1). So each process sums its own images' P against the
    logarithm of all processes' mean P, and the gradients' mean is that of all images' information.
    """
    p, q = (numbers[:, :CATEGORIES].softmax(1) for numbers in (reading, reading_copies))
    joint = (p.T @ q + q.T @ p) / (2 * len(p))  # 10 x 10
    everywhere = run.mean(joint.detach()).clamp_min(1e-12)
    pointwise = (everywhere / (everywhere.sum(0) * everywhere.sum(1, keepdim=True))).log()
    return (joint * pointwise).sum()


def distorted(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Images (N x 1 x 28 x 28), each turned, sheared, scaled and shifted by chance; what comes in from outside is black."""
    chance = torch.randn(len(images), 6, dtype=images.dtype, device=images.device)
    turn, shear, wide, high, x, y = (chance * images.new_tensor(DISTORTION) * strength).unbind(1)
    cos, sin, wide, high = turn.cos(), turn.sin(), wide.exp(), high.exp()
    rows = [(cos * wide, (shear - sin) * wide, x), (sin * high, cos * high, y)]
    maps = torch.stack([torch.stack(row, 1) for row in rows], 1)  # N x 2 x 3, from a pixel's place to the one that it is taken from
    return F.grid_sample(images, F.affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)


def move_at_once(
    run: Run, generator: nn.Module, discriminator: nn.Module, adam_g: Adam, adam_d: Adam, real: torch.Tensor, config: Config
) -> None:
    """One batch of fakes gives both players their gradients; then both move, Q with D."""
    z = generator.latent(len(real), run.device)
    category, continuous = codes(z)
    with run.autocast():
        fake = generator(z)
    copies_real, copies_fake = distorted(real, config.distortion), distorted(fake, config.distortion)
    seen = copies_fake.detach().requires_grad_()  # the gradient of what Q reads here is the same for both players: it is found once
    with run.autocast():  # each kind of image by itself: where batch norm sees all together, D wins
        logits_real, reading_real = discriminator(real)
        logits_fake, reading_fake = discriminator(fake)
        _, reading_copies_real = discriminator(copies_real)
        _, reading_copies_fake = discriminator(seen)
    info_category = category_information(reading_copies_fake, category)
    info_continuous = continuous_information(reading_fake, continuous)
    info_shared = shared_information(run, reading_real, reading_copies_real)
    weight_continuous = config.info_weight * config.continuous_weight
    information = config.info_weight * info_category + weight_continuous * info_continuous

    # Discriminator: ascend log D(x) + log(1 - D(G(z))). Q: ascend lambda L.                                    (equation 6)
    loss_d = discriminator_loss(logits_real, logits_fake)
    loss_q = -information - config.info_weight * config.agreement * info_shared
    run.backward(loss_d + loss_q, discriminator, retain_graph=True, also=[seen])

    # Generator: ascend log D(G(z)) and lambda L, whose part of the category goes on from where it was `seen`.
    loss_g = generator_loss(logits_fake)
    run.backward(loss_g - weight_continuous * info_continuous, generator, onward=[(copies_fake, seen.grad)])
    run.step(adam_d, adam_g)
    with torch.no_grad():
        d_real, d_fake = logits_real.sigmoid().mean(), logits_fake.sigmoid().mean()
    nats = {"info_category": info_category, "info_continuous": info_continuous, "info_shared": info_shared}
    run.log(loss_d=loss_d, loss_g=loss_g, d_real=d_real, d_fake=d_fake, **nats)


@torch.no_grad()
def read_categories(discriminator: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The category that Q finds likeliest for each image (uint8 N x 1 x 28 x 28): int64 N, on the CPU.

    Batch norm takes its running means, of the real images, fakes and copies of training.
    """
    discriminator.eval()
    device = next(discriminator.parameters()).device
    found = [discriminator(to_unit(part.to(device)))[1][:, :CATEGORIES].argmax(1).cpu() for part in images.split(1000)]
    discriminator.train()
    return torch.cat(found)


def match(categories: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The digit of each category, each digit once, by which most images are right; both int64 N in 0..9. Returns int64 10."""
    counts = torch.zeros(CATEGORIES, CATEGORIES, dtype=torch.int64)
    counts.index_put_((categories, labels), torch.ones_like(labels), accumulate=True)
    _, digits = linear_sum_assignment(counts.numpy(), maximize=True)
    return torch.from_numpy(digits)


def unsupervised_error(discriminator: nn.Module, train: ImageSet, test: ImageSet) -> tuple[float, torch.Tensor]:
    """The share of test images in the category of another digit, and each category's digit, matched on training images.

    Nothing else in this file looks at labels.
    """
    digits = match(read_categories(discriminator, train.images[:MATCHED]), train.labels[:MATCHED])
    wrong = digits[read_categories(discriminator, test.images)] != test.labels
    return wrong.double().mean().item(), digits


def train(config: Config) -> None:
    """One whole run; Run says what it leaves, and models/<name>/discriminator.safetensors has D and Q.

    Raises UserError for constants or data that can't be used.
    """
    require_positive(learning_rate=config.learning_rate, generator_rate=config.generator_rate)
    require_not_negative(info_weight=config.info_weight, continuous_weight=config.continuous_weight)
    require_not_negative(distortion=config.distortion, agreement=config.agreement, decay=config.decay)
    run = Run(config, "infogan_mnist", "" if config.info_weight else "plain", BAR)
    if run.share == 1:
        raise UserError("batch_size gives a process 1 image, expected at least 2 to normalise over: give --batch-size another value")
    generator, discriminator = run.place(make_generator(config), Discriminator(config.hidden))
    images, _ = run.load(config.data, size=28, channels=1, held_out=config.held_out)
    adam_g = Adam(generator.parameters(), config.generator_rate, betas=(0.5, 0.999), fused=True)
    adam_d = Adam(discriminator.parameters(), config.learning_rate, betas=(0.5, 0.999), fused=True)
    run.track(generator=generator, discriminator=discriminator, adam_g=adam_g, adam_d=adam_d)
    rng = torch.Generator().manual_seed(config.seed)
    columns = generator.latent(10, "cpu", rng).repeat(CATEGORIES, 1)
    fixed_z = with_codes(columns, torch.arange(CATEGORIES).repeat_interleave(10), codes(columns)[1]).to(run.device)
    labelled = [data.load(config.data, 28, 1, train=part) for part in (True, False)] if config.data in KNOWN and run.writes else []

    for _ in run.epochs():
        for real in run.batches(images):
            left = 1 - run.iteration / (config.epochs * (len(images) // config.batch_size))
            for adam, rate in ((adam_g, config.generator_rate), (adam_d, config.learning_rate)):
                adam.param_groups[0]["lr"] = rate * left**config.decay
            move_at_once(run, generator, discriminator, adam_g, adam_d, real, config)
        run.picture(generator, fixed_z)
        if labelled and run.due(1):
            error, digits = unsupervised_error(discriminator, *labelled)
            generator.digits.copy_(digits)
            run.log(error=error)
    papers = {"error": ("the paper: 5%", 0.05)} if config.data == "mnist" else {}
    run.finish(generator, CURVES, THEORY, papers, beside=("discriminator",))


if __name__ == "__main__":
    command_line(lambda: train(tyro.cli(Config)))
