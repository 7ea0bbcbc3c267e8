"""DCGAN on CIFAR-10: the recipe of its paper, and one with what GAN papers have added since.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks", ICLR 2016
(arXiv 1511.06434): strided convolutions in D, transposed ones in G, batch norm nearly everywhere. The constant `recipe` is

    paper     their networks, one size smaller for images of 32 x 32, their losses, rates and starting weights
    modern    the same networks, half as wide, G told what to show and D asked which class it sees; what the other changes are worth,
              but for the falling rates, benchmarks/dcgan.py measures

The kernels are 4 x 4, as in the authors' Torch code (in their Theano code 5 x 5). There the players take turns; here both move at once,
from one batch of fakes. A run takes 50 to 75 minutes on two cores that have bf16 units (on two that have none over two hours, `paper`
nearly five). Each epoch adds a grid of images to outputs/dcgan_cifar10_<recipe>/; gif/dcgan_cifar10_<recipe>.gif shows them one after the
other.

    python dcgan_cifar10.py
    python dcgan_cifar10.py --recipe paper
    python dcgan_cifar10.py --data my_pictures/ --name mine
"""

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Adam
from torch.optim.swa_utils import update_bn

from utils.average import add_to_average
from utils.device import widen
from utils.known import KNOWN
from utils.layers import Conv2d, ConvTranspose2d, Flatten, Unflatten
from utils.run import Run
from utils.shell import UserError, command_line, require_not_negative, require_positive, require_share

NOISE, CLASSES = 100, 10  # numbers of noise in z; classes of each known set
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "labels": False, "base": 128, "batch_size": 128, "average": 0.0, "decay": False, "flips": False, "augment": False, "penalty": 0.0
    },
    "modern": {
        "labels": True, "base": 64, "batch_size": 16, "average": 0.1, "decay": True, "flips": True, "augment": True, "penalty": 0.01
    },
}  # fmt: skip


@dataclass
class Config:
    """Train DCGAN on CIFAR-10, or on your own pictures."""

    recipe: Annotated[str, tyro.conf.arg(metavar="paper|modern")] = "modern"
    """The paper's, or one with what came since. The constants that are None here follow from it, by the table at the top of the file."""
    labels: bool | None = None
    """Whether G is told what to show and D has to recognise it, where labels are known: of a folder of pictures they aren't."""
    base: int | None = None
    """Channels of the 16 x 16 pictures within the networks; those of 8 x 8 have twice as many, those of 4 x 4 four times."""
    batch_size: int | None = None
    """Images a step."""
    average: float | None = None
    """How far back the average of G's weights, the result, reaches: 0 not at all, 1 to the start."""
    decay: bool | None = None
    """Whether the learning rates fall to zero, evenly over all epochs (with --resume and more of these they rise again first)."""
    flips: bool | None = None
    """Whether real images are mirrored, each with a chance of one half; MNIST's, which have a direction, only where this is given."""
    augment: bool | None = None
    """Whether all that the discriminator sees is augmented, differentiably."""
    penalty: float | None = None
    """Weight of the zero-centred gradient penalty: half of it times |dD/dx|^2 at the real images that D sees, and at the fakes; 0: none."""
    learning_rate: float = 0.0002
    """The discriminator's."""
    generator_rate: float = 1.0
    """The generator's learning rate, in units of the discriminator's."""
    loss: Annotated[str, tyro.conf.arg(metavar="logistic|hinge|relativistic")] = "logistic"
    """What the players play for: the game of 2014, the hinge, or the relativistic pairing."""
    batch_norm: tyro.conf.FlagConversionOff[bool] = True
    """Whether the discriminator's hidden layers are normalised over the batch; the generator's always are."""
    spectral_norm: tyro.conf.FlagConversionOff[bool] = False
    """Whether each of the discriminator's weight matrices is divided by its largest singular value."""
    penalty_every: int = 16
    """Steps from one penalty to the next, each of which counts as many times (Karras et al. 2020, "lazy regularization")."""
    epochs: int = 38
    """Passes over the training images."""
    data: str = "cifar10"
    """cifar10, mnist, fashion-mnist, or the path of a folder with images; all become 32 x 32 and coloured."""
    held_out: int = 0
    """The last images of a known set that aren't trained on."""
    seed: int = 0
    """Of the weights, the noise, the augmentations and the order of the data."""
    name: str = ""
    """Of the run and its files (by default dcgan_cifar10_<recipe>)."""
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
        if self.data == "mnist" and self.flips is None:
            self.flips = False  # a mirrored 3 is none
        for name, value in RECIPES.get(self.recipe, RECIPES["paper"]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    @property
    def classes(self) -> int:
        """That the players are told of; 0 where they play without."""
        return CLASSES if self.labels and self.data in KNOWN else 0


class ClassNorm(nn.BatchNorm2d):
    """Batch norm with a scale and a shift for each class besides (de Vries et al. 2017): N x C x H x W and N x classes, one-hot, to
    N x C x H x W."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels)
        self.of_class = nn.Parameter(torch.zeros(classes, 2 * channels))

    def forward(self, x: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
        scale, shift = (one_hot @ self.of_class)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, super().forward(x), 1 + scale)


class Generator(nn.Module):
    """N x 100 uniform noise, and beside it N x classes, one-hot, to N x 3 x 32 x 32 images in [-1, 1].

    The shapes beside the layers are those of base 128.
    """

    pixels = (-1.0, 1.0)
    noise = "uniform"

    def __init__(self, base: int = 128, classes: int = 0) -> None:
        super().__init__()
        self.classes = classes
        wide, norm = 4 * base, partial(ClassNorm, classes=classes) if classes else nn.BatchNorm2d
        self.layers = nn.Sequential(
            nn.Linear(NOISE, wide * 4 * 4, bias=False), Unflatten(1, (wide, 4, 4)), norm(wide), nn.ReLU(True),               # 512 x 4 x 4
            ConvTranspose2d(wide, wide // 2, 4, stride=2, padding=1, bias=False), norm(wide // 2), nn.ReLU(True),            # 256 x 8 x 8
            ConvTranspose2d(wide // 2, base, 4, stride=2, padding=1, bias=False), norm(base), nn.ReLU(True),                 # 128 x 16 x 16
            ConvTranspose2d(base, 3, 4, stride=2, padding=1),                                                                # 3 x 32 x 32
        )  # fmt: skip
        normal_weights(self)

    def latent(self, count: int, device: torch.device | str, rng: torch.Generator | None = None) -> torch.Tensor:
        noise = torch.empty(count, NOISE, device=device).uniform_(-1, 1, generator=rng)
        if not self.classes:
            return noise
        return with_class(noise, torch.randint(self.classes, (count,), device=device, generator=rng), self.classes)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x, one_hot = z[:, :NOISE], z[:, NOISE:]
        for layer in self.layers:
            x = layer(x, one_hot) if isinstance(layer, ClassNorm) else layer(x)
        return widen(x).tanh()


class Discriminator(nn.Module):
    """N x 3 x 32 x 32 images, and N x classes, one-hot, that they should show, to N logits, whether they are real images of these, and
    N x classes logits, which they show.

    The former add up what speaks for any image and what speaks for one of that class (Miyato and Koyama, "cGANs with Projection
    Discriminator", 2018), the latter are those of Odena et al., "Conditional Image Synthesis with Auxiliary Classifier GANs", 2017.
    spectral: whether weights are normalised as by Miyato et al. 2018.
    """

    def __init__(self, base: int = 128, batch_norm: bool = True, spectral: bool = False, classes: int = 0) -> None:
        super().__init__()
        self.classes = classes
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        self.layers = nn.Sequential(
            Conv2d(3, base, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True),                                                # 128 x 16 x 16
            Conv2d(base, 2 * base, 4, stride=2, padding=1, bias=not batch_norm), norm(2 * base), nn.LeakyReLU(0.2, True),    # 256 x 8 x 8
            Conv2d(2 * base, 4 * base, 4, stride=2, padding=1, bias=not batch_norm), norm(4 * base), nn.LeakyReLU(0.2, True),  # 512 x 4 x 4
            Flatten(), nn.Linear(4 * base * 4 * 4, 1 + 2 * classes),
        )  # fmt: skip
        normal_weights(self)
        if spectral:
            for layer in self.layers:
                if isinstance(layer, (Conv2d, nn.Linear)):
                    spectral_norm(layer)

    def forward(self, x: torch.Tensor, one_hot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        of_any, of_class, which = widen(self.layers(x)).split([1, self.classes, self.classes], 1)
        return of_any.squeeze(1) + (of_class * one_hot).sum(1), which


def normal_weights(network: nn.Module) -> None:
    """Weights normal with deviation 0.02, biases zero, as in the paper."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    network.to(memory_format=torch.channels_last)  # all channels of a pixel side by side: convolutions are faster


BAR = {"loss_d": "loss D {:.2f}", "loss_g": "G {:.2f}", "logit_real": "logits real {:.1f}", "logit_fake": "fake {:.1f}"}
CURVES = {
    "losses": {"loss_d": "D", "loss_g": "G"},
    "D's logits": {"logit_real": "of real images", "logit_fake": "of fakes"},
    "-log of the probability of the right class": {"class_real": "real images", "class_fake": "fakes"},
    "squared gradient at an image": {"slope_real": "real", "slope_fake": "fake"},
}
# Where the fakes are like the data, the best D says the same to everything: of the logistic losses theorem 1 of Goodfellow et al. 2014.
# Under the hinge that may be any number from -1 to 1, and G's loss is minus this number: there is no line for it.
THEORY = {
    "logistic": {"loss_d": ("log 4", math.log(4)), "loss_g": ("log 2", math.log(2))},
    "hinge": {"loss_d": ("2", 2.0)},
    "relativistic": {"loss_d": ("log 2", math.log(2)), "loss_g": ("log 2", math.log(2))},
}
LARGEST = 1024  # of the networks' base, where G has 174 million weights and D 168
AVERAGED_EVERY = 4  # steps: neighbours hardly differ
SETTLING = 2000  # points of the latent space that the averaged generator's batch norm takes its statistics from


def make_generator(config: Config) -> nn.Module:
    """The generator that a Config asks for, untrained; UserError where it can't be built."""
    if not 1 <= config.base <= LARGEST:
        raise UserError(f"base is {config.base}, expected 1 to {LARGEST:,}: give --base another value")
    return Generator(config.base, config.classes)


def with_class(noise: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The latent space's points (N x (100 + classes)) of this noise (N x 100) that show these classes (int64 N, below `classes`)."""
    return torch.cat([noise, F.one_hot(labels, classes).to(noise.dtype)], 1)


def losses(kind: str, logits_real: torch.Tensor, logits_fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """D's and G's, means over the batch, from N logits each.

    logistic      -log D(x) - log(1 - D(G(z))) and -log D(G(z)), where D is the logit's sigmoid (Goodfellow et al. 2014)
    hinge         D pushes real logits above 1 and fake ones below -1, no further; G raises the latter (Miyato et al. 2018, equation 17)
    relativistic  both ask of a pair, one real and one fake, which has the higher logit (Jolicoeur-Martineau 2018, equation 4)
    """
    if kind == "logistic":
        return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean(), F.softplus(-logits_fake).mean()
    if kind == "hinge":
        return F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean(), -logits_fake.mean()
    return F.softplus(logits_fake - logits_real).mean(), F.softplus(logits_real - logits_fake).mean()


def class_loss(logits: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
    """-log of the probability of the right class, mean over the batch, from N x classes logits; 0 where there are no classes.

    The two halves of -L_C of Odena et al. 2017. They have D learn both; here D learns from real images and G from fakes, since a D that
    also learns what fakes should show finds it in whatever G makes.
    """
    return -(one_hot * logits.log_softmax(1)).sum(1).mean()


def squared_slope(discriminator: nn.Module, images: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
    """|dD/dx|^2, mean over the images (N x 3 x 32 x 32, of N x classes): the zero-centred gradient penalty (Mescheder et al. 2018), at
    real images R1 (equation 9), at fakes R2 (10). Where D has batch norm, an image sways the logits of the others, and D is their sum."""
    images = images.detach().requires_grad_()
    logits, _ = discriminator(images, one_hot)
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Images (N x 3 x 32 x 32 in [-1, 1]), each in other colours, shifted by up to 4 pixels and without a square of 16 x 16, by chance.

    Differentiable, so that G learns through it and never sees it: Zhao et al., "Differentiable Augmentation for Data-Efficient GAN
    Training", 2020.
    """
    count, _, side, _ = images.shape
    brightness, saturation, contrast = torch.rand(3, count, 1, 1, 1, device=images.device)
    images = images + brightness - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * 2 * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (contrast + 0.5)

    places, each = torch.arange(side, device=images.device), torch.arange(count, device=images.device).view(-1, 1, 1)
    shift = torch.randint(-side // 8, side // 8 + 1, (count, 2, 1), device=images.device)
    rows, columns = (places + shift + 1).clamp(0, side + 1).unbind(1)  # in an image with a grey frame
    framed = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    images = framed[each, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)

    corner = torch.randint(-side // 4, 3 * side // 4 + 1, (count, 2, 1), device=images.device)
    in_rows, in_columns = ((places >= corner) & (places < corner + side // 2)).unbind(1)
    return images * ~(in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)


def move_at_once(
    run: Run, generator: nn.Module, discriminator: nn.Module, adam_g: Adam, adam_d: Adam, real: torch.Tensor, of_real: torch.Tensor,
    config: Config,
) -> None:  # fmt: skip
    """One batch of fakes, seen once by D, gives both players their gradients; then both move. of_real: N x classes, one-hot."""
    if config.flips:
        real = torch.where(torch.rand(len(real), 1, 1, 1, device=real.device) < 0.5, real.flip(3), real)
    real = real.contiguous(memory_format=torch.channels_last)
    z = generator.latent(len(real), run.device)
    with run.autocast():
        fake = generator(z)
    seen = fake.detach().requires_grad_()
    of_fake = z[:, NOISE:]
    pairs = (real, of_real), (seen, of_fake)
    if config.augment:
        pairs = [(augmented(images), one_hot) for images, one_hot in pairs]
    with run.autocast():  # each kind of image by itself, as batch norm wants it
        (logits_real, which_real), (logits_fake, which_fake) = (discriminator(*pair) for pair in pairs)
    loss_d, loss_g = losses(config.loss, logits_real, logits_fake)
    class_real, class_fake = class_loss(which_real, of_real), class_loss(which_fake, of_fake)
    penalty = 0.0
    if config.penalty and run.iteration % config.penalty_every == 0:
        with run.autocast():
            slope_real, slope_fake = (squared_slope(discriminator, *pair) for pair in pairs)
        penalty = config.penalty_every * config.penalty / 2 * (slope_real + slope_fake)
        run.log(slope_real=slope_real, slope_fake=slope_fake)

    # Generator, before D forgets what it saw.
    (gradient,) = torch.autograd.grad(run.scaler.scale(loss_g + class_fake), seen, retain_graph=True)
    run.backward(None, generator, onward=[(fake, gradient)])

    # Discriminator: it learns the classes from real images alone.
    run.backward(loss_d + class_real + penalty, discriminator)
    run.step(adam_d, adam_g)
    run.log(loss_d=loss_d, loss_g=loss_g, logit_real=logits_real.mean(), logit_fake=logits_fake.mean())
    if config.classes:
        run.log(class_real=class_real, class_fake=class_fake)


def train(config: Config) -> None:
    """One whole run; Run says what it leaves. Raises UserError for constants or data that can't be used."""
    for name, known in (("recipe", RECIPES), ("loss", THEORY)):
        if getattr(config, name) not in known:
            raise UserError(f"no {name} named '{getattr(config, name)}': give --{name} one of {', '.join(known)}")
    require_positive(learning_rate=config.learning_rate, generator_rate=config.generator_rate, penalty_every=config.penalty_every)
    require_not_negative(penalty=config.penalty)
    require_share(average=config.average)
    run = Run(config, "dcgan_cifar10", config.recipe, BAR)
    if run.share == 1:
        raise UserError("batch_size gives a process 1 image, expected at least 2 to normalise over: give --batch-size another value")
    players = make_generator(config), Discriminator(config.base, config.batch_norm, config.spectral_norm, config.classes)
    generator, discriminator = run.place(*players)
    images, _ = run.load(config.data, size=32, channels=3, held_out=config.held_out)
    one_hot = F.one_hot(run.labels, CLASSES).float() if config.classes else torch.zeros(len(images), 0, device=run.device)
    rate_g, rate_d = config.learning_rate * config.generator_rate, config.learning_rate
    adam_g = Adam(generator.parameters(), rate_g, betas=(0.5, 0.999), fused=True)
    adam_d = Adam(discriminator.parameters(), rate_d, betas=(0.5, 0.999), fused=True)
    result = copy.deepcopy(generator) if config.average else generator
    run.track(generator=result, player=generator, discriminator=discriminator, adam_g=adam_g, adam_d=adam_d)
    fixed_z = generator.latent(SETTLING, "cpu", torch.Generator().manual_seed(config.seed)).to(run.device)

    for _ in run.epochs():
        for real, of_real in run.batches(images, *generator.pixels, beside=one_hot):
            if config.decay:
                left = 1 - run.iteration / (config.epochs * run.count)
                adam_g.param_groups[0]["lr"], adam_d.param_groups[0]["lr"] = rate_g * left, rate_d * left
            move_at_once(run, generator, discriminator, adam_g, adam_d, real, of_real, config)
            if config.average and run.iteration % AVERAGED_EVERY == 0:
                add_to_average(result, generator, run.iteration // AVERAGED_EVERY, config.average)
        if config.average:
            update_bn(fixed_z.split(500), result)
        run.picture(result, fixed_z[:64])
    run.finish(result, CURVES, THEORY[config.loss])


if __name__ == "__main__":
    command_line(lambda: train(tyro.cli(Config)))
