"""Look at a trained generator. Nothing but its file of weights is needed.

    python sampler.py grid models/gan_mnist_batchnorm.safetensors
    python sampler.py interpolate models/gan_mnist_batchnorm.safetensors
    python sampler.py export models/gan_mnist_batchnorm.safetensors --count 10000 --seed 0 --out samples.npz
    python sampler.py grid models/gan_normal.safetensors
    python sampler.py codes models/infogan_mnist.safetensors
    python sampler.py classes models/dcgan_cifar10_modern.safetensors
"""

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

import dcgan_cifar10
import gan_cifar10_conv
import gan_mnist
import gan_normal
import gan_ring
import infogan_mnist
from utils.files import replacing
from utils.images import captioned, save_gif, save_png, to_uint8
from utils.images import grid as arrange
from utils.models import fill_generator, read_config, read_generator
from utils.shell import UserError, command_line, require_positive, require_seed

EXPERIMENTS = {
    "gan_normal": gan_normal, "gan_ring": gan_ring, "gan_mnist": gan_mnist, "infogan_mnist": infogan_mnist,
    "gan_cifar10_conv": gan_cifar10_conv, "dcgan_cifar10": dcgan_cifar10,
}  # fmt: skip
CODE_FRAMES = 24  # of the GIF, for a code's way to one end, to the other and back
FARTHEST = 100.0  # that a code is swept: a hundred times as far as in training
LATENT_BLOCK = 64  # drawn at once: torch's generators give other numbers for other shapes

Model = tyro.conf.Positional[Path]


def load(model: Path) -> tuple[ModuleType, Any, nn.Module]:
    """The experiment, its Config and its generator, ready to sample, on the CPU, of a file of weights; UserError where it can't be used."""
    experiment, constants, weights = read_generator(model)
    if experiment not in EXPERIMENTS:
        raise UserError(f"{model} was made by the experiment '{experiment}', expected one of {', '.join(EXPERIMENTS)}: give another file")
    module = EXPERIMENTS[experiment]
    config = read_config(module.Config, constants, model)
    with torch.device("meta"):
        generator = module.make_generator(config)
    return module, config, fill_generator(generator, weights, model)


def latents(generator: nn.Module, count: int, seed: int) -> torch.Tensor:
    """`count` points of the generator's latent space, float32; the first ones are the same for every count."""
    rng = torch.Generator().manual_seed(seed)
    blocks = [generator.latent(LATENT_BLOCK, "cpu", rng) for _ in range(math.ceil(count / LATENT_BLOCK))]
    return torch.cat(blocks)[:count]


@torch.no_grad()
def images(generator: nn.Module, z: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
    """The generator's images of `z`, uint8 N x C x H x W. It is float64 from then on.

    In float64 the rounding, which differs with the batch size and the machine, doesn't reach a pixel.
    """
    generator = generator.double()
    parts = []
    for part in z.split(batch_size):
        made = generator(part.double())
        if not made.isfinite().all():
            raise UserError("the generator makes images with numbers that are not finite: train it again")
        parts.append(to_uint8(made, *generator.pixels))
    return torch.cat(parts)


@torch.no_grad()
def points(generator: nn.Module, z: torch.Tensor) -> np.ndarray:
    """What a generator of numbers, not images, makes of `z`: float32 N x dimensions. It is float64 from then on, as for images."""
    return generator.double().samples(z.double()).float().numpy()


def between(a: torch.Tensor, b: torch.Tensor, share: float, noise: str, coded: int = 0) -> torch.Tensor:
    """Points on the way from a to b (N x latent), after a share of it in [0, 1).

    Normal noise lives near a sphere, which the straight way leaves: along the great circle (Shoemake 1985). Uniform noise
    fills a cube, which the straight way never leaves. The last `coded` numbers, which aren't noise, go straight, too.
    """
    if noise == "uniform":
        return torch.lerp(a, b, share)
    if coded:
        return torch.cat([between(a[:, :-coded], b[:, :-coded], share, noise), torch.lerp(a[:, -coded:], b[:, -coded:], share)], 1)
    angle = torch.acos(torch.cosine_similarity(a, b, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)).unsqueeze(1)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def grid(model: Model, seed: int = 0, rows: int = 10, columns: int = 10, out: Path | None = None) -> None:
    """Write a PNG of samples: images in a grid, or, of an experiment without images, points over the target.

    Args:
        model: The file of weights.
        seed: Of the samples.
        rows: Of images.
        columns: Of images.
        out: The PNG (by default outputs/<model>/grid.png).
    """
    require_positive(rows=rows, columns=columns)
    require_seed(seed)
    out = with_ending(out or Path("outputs") / model.stem / "grid.png", ".png")
    experiment, config, generator = load(model)
    if makes_images(generator):
        picture = arrange(images(generator, latents(generator, rows * columns, seed)), columns)
    else:
        picture = experiment.portrait(config, points(generator, latents(generator, 100_000, seed)))
    save_png(picture, out)
    print(out)


def interpolate(
    model: Model, seed: int = 0, rows: int = 4, columns: int = 8, points: int = 6, steps: int = 12, out: Path | None = None
) -> None:
    """Write a GIF that walks between random points of the latent space and ends where it began.

    Args:
        model: The file of weights.
        seed: Of the points.
        rows: Of images.
        columns: Of images; each walks by itself.
        points: That each image passes.
        steps: From a point to the next.
        out: The GIF (by default gif/<model>_interpolation.gif).
    """
    require_positive(rows=rows, columns=columns, points=points, steps=steps)
    require_seed(seed)
    out = with_ending(out or Path("gif") / f"{model.stem}_interpolation.gif", ".gif")
    _, _, generator = load(model)
    if not makes_images(generator):
        raise UserError(f"{model} makes points, not images, so there is nothing to walk through: take the command grid")
    stops = latents(generator, rows * columns * points, seed).split(rows * columns)
    ways = zip(stops, [*stops[1:], stops[0]], strict=True)
    coded = getattr(generator, "coded", 0)
    frames = [between(a, b, step / steps, generator.noise, coded) for a, b in ways for step in range(steps)]
    save_gif([arrange(images(generator, z), columns) for z in frames], out, seconds=0.08)
    print(out)


def codes(model: Model, seed: int = 0, columns: int = 10, reach: float = 2.0, out: Path | None = None) -> None:
    """Write what the codes of an InfoGAN do: for each continuous code a PNG, one category a row, in the order of their digits, the code
    sweeping from left to right and all else the same (the paper's Figure 2); and a GIF that sweeps one code after the other.

    Args:
        model: The file of weights.
        seed: Of the noise.
        columns: Of images.
        reach: How far a code is swept to both sides; in training it is within 1, in the paper's figure 2.
        out: The folder of the PNGs, code_1.png and so on (by default outputs/<model>/); the GIF is gif/<model>_codes.gif, or here too.
    """
    require_positive(columns=columns, reach=reach)
    require_seed(seed)
    if reach > FARTHEST:
        raise UserError(f"reach is {reach}, expected at most {FARTHEST}: give --reach another value")
    experiment, _, generator = load(model)
    require_codes(model, generator)
    folder, gif = out or Path("outputs") / model.stem, (out or Path("gif")) / f"{model.stem}_codes.gif"
    rows = generator.digits.argsort().repeat_interleave(columns)  # the category of each image
    z = latents(generator, columns, seed).repeat(len(generator.digits), 1)
    frames = []
    for code in range(experiment.CONTINUOUS):
        swept = torch.zeros(len(z), experiment.CONTINUOUS)
        swept[:, code] = torch.linspace(-reach, reach, columns).repeat(len(generator.digits))
        path = folder / f"code_{code + 1}.png"
        save_png(arrange(images(generator, experiment.with_codes(z[:1].expand(len(z), -1), rows, swept)), columns), path)
        print(path)
        for number in range(CODE_FRAMES):
            value = reach * math.sin(2 * math.pi * number / CODE_FRAMES)
            swept[:, code] = value
            frame = arrange(images(generator, experiment.with_codes(z, rows, swept)), columns)
            frames.append(captioned(frame, f"code {code + 1}: {value:+.1f}"))
    save_gif(frames, gif, seconds=0.08)
    print(gif)


def classes(model: Model, seed: int = 0, columns: int = 10, out: Path | None = None) -> None:
    """Write a PNG of a generator that is told what to show: a class in each row, the same noise in each column.

    Args:
        model: The file of weights.
        seed: Of the noise.
        columns: Of images.
        out: The PNG (by default outputs/<model>/classes.png).
    """
    require_positive(columns=columns)
    require_seed(seed)
    out = with_ending(out or Path("outputs") / model.stem / "classes.png", ".png")
    experiment, _, generator = load(model)
    if not is_told_classes(generator):
        raise UserError(f"{model} isn't told classes: give the file of one that is, such as models/dcgan_cifar10_modern.safetensors")
    noise = latents(generator, columns, seed)[:, : experiment.NOISE].repeat(generator.classes, 1)
    rows = torch.arange(generator.classes).repeat_interleave(columns)
    save_png(arrange(images(generator, experiment.with_class(noise, rows, generator.classes)), columns), out)
    print(out)


def export(model: Model, count: int = 10_000, seed: int = 0, out: str = "samples.npz", codes: bool = False) -> None:
    """Write samples for other tools: the same seed gives the same bytes.

    Args:
        model: The file of weights.
        count: Of samples.
        seed: Of the samples.
        out: An .npz (key images: uint8, N x H x W x C; or samples: float32, N x dimensions; and labels: int64, N, of a
            generator that is told classes), or a folder, with a / at its end, for PNGs.
        codes: Of an InfoGAN, also the codes, in the .npz (keys category: int64, N; and continuous: float32, N x 2).
    """
    require_positive(count=count)
    require_seed(seed)
    folder = out.endswith("/") or Path(out).is_dir()
    if not folder:
        with_ending(Path(out), ".npz")
    elif any(Path(out).glob("*.png")):
        raise UserError(f"{out} has pictures in it already, which would get mixed with the new ones: give an empty folder")
    experiment, _, generator = load(model)
    z = latents(generator, count, seed)
    if codes:
        require_codes(model, generator)
        if folder:
            raise UserError("PNGs hold no codes: give --out a name that ends in .npz, or leave out --codes")
    if not makes_images(generator):
        if folder:
            raise UserError(f"{model} makes points, not images, so there are no PNGs to write: give --out a name that ends in .npz")
        arrays = {"samples": points(generator, z)}
    else:
        samples = images(generator, z)
        arrays = {"images": samples.permute(0, 2, 3, 1).numpy()}
    if is_told_classes(generator):
        arrays["labels"] = z[:, experiment.NOISE :].argmax(1).numpy()
    if codes:
        arrays |= zip(("category", "continuous"), (code.numpy() for code in experiment.codes(z)), strict=True)
    if folder:
        for number, sample in enumerate(samples):
            save_png(arrange(sample.unsqueeze(0), gap=0), Path(out) / f"{number:05d}.png")
    else:
        with replacing(out) as part, open(part, "wb") as file:
            np.savez(file, **arrays)
    print(out)


def makes_images(generator: nn.Module) -> bool:
    """Whether it makes images, of the range `pixels`, and not points, which its method `samples` gives."""
    return hasattr(generator, "pixels")


def is_told_classes(generator: nn.Module) -> bool:
    """Whether its points of the latent space say which class an image is to show."""
    return getattr(generator, "classes", 0) > 0


def require_codes(model: Path, generator: nn.Module) -> None:
    """UserError unless it is one whose latent space has codes in it."""
    if not hasattr(generator, "coded"):
        raise UserError(f"{model} has no codes: give the file of an InfoGAN, such as models/infogan_mnist.safetensors")


def with_ending(path: Path, ending: str) -> Path:
    """The path; UserError unless it ends like that."""
    if path.suffix.lower() != ending:
        raise UserError(f"can't write to {path}: expected a name that ends in {ending}")
    return path


if __name__ == "__main__":
    commands = {"grid": grid, "interpolate": interpolate, "codes": codes, "classes": classes, "export": export}
    command_line(lambda: tyro.extras.subcommand_cli_from_dict(commands, description=__doc__))
