"""Real images, on any machine, as one uint8 tensor N x C x H x W in memory; and the batches that a training sees of it."""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from utils.known import KNOWN, ImageSet, load_known
from utils.shell import UserError, printable

MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
FORMATS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]  # of its decoders: one starts a program on the file


def load(data: str, size: int, channels: int, train: bool = True) -> ImageSet:
    """All images of a source, in the size (pixels a side) and channels (1 grey, 3 colour) that an experiment works with.

    data: "mnist", "fashion-mnist", "cifar10", or the path of a folder with images anywhere below it.
    train: the training or the test images of a known set; a folder has only the ones it holds.
    Raises UserError when the source is unknown, unreachable, damaged, or holds no image.
    """
    if data in KNOWN:
        found = load_known(data, train)
        return ImageSet(_fit(found.images, size, channels), found.labels)
    if os.path.isdir(data):
        return ImageSet(_load_folder(Path(data), size, channels), None)
    raise UserError(f"no data named '{data}': give one of {', '.join(KNOWN)}, or the path of a folder with images")


def batches(
    images: torch.Tensor, batch_size: int, rng: torch.Generator, low: float = 0.0, high: float = 1.0, beside: torch.Tensor | None = None
) -> Iterator[Any]:
    """One epoch: every image once, in an order drawn from `rng`, but for the few that don't fill a last batch.

    images: uint8 N x C x H x W, on any device; rng: a generator on the CPU, so that a seed gives the same batches on every machine.
    Yields float32 tensors batch_size x C x H x W in [low, high], on the images' device; with `beside`, a tensor with a row for each
    image, pairs of them and their rows.
    """
    order = torch.randperm(len(images), generator=rng).to(images.device)
    for start in range(0, len(images) - batch_size + 1, batch_size):
        places = order[start : start + batch_size]
        batch = images.index_select(0, places).float().mul_((high - low) / 255).add_(low)
        yield batch if beside is None else (batch, beside[places])


def _fit(images: torch.Tensor, size: int, channels: int) -> torch.Tensor:
    """A known set in another experiment's size and channels; uint8 in, uint8 out."""
    if images.shape[1:] == (channels, size, size):
        return images
    fitted = np.empty((len(images), size, size, channels), np.uint8)
    for pixels, target in zip(images.permute(0, 2, 3, 1).numpy(), fitted, strict=True):
        picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
        target[:] = np.asarray(_fit_picture(picture, size, MODES[channels])).reshape(size, size, channels)
    return torch.from_numpy(fitted).permute(0, 3, 1, 2).contiguous()


def _fit_picture(picture: Image.Image, size: int, mode: str) -> Image.Image:
    """Any picture as a square: upright, on white where it is transparent, its shorter side resized, its centre kept."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        values = np.asarray(picture, np.float32) / 257
        picture = Image.fromarray(np.rint(values, out=values).clip(0, 255, out=values).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return ImageOps.fit(picture.convert("RGB").convert(mode), (size, size), Image.Resampling.LANCZOS)


def _load_folder(folder: Path, size: int, channels: int) -> torch.Tensor:
    """Every image below a folder, in the order of their paths; those that can't be read are named on stderr and skipped, those that had
    to be enlarged are counted there.

    So are links to nothing or elsewhere, and pictures so large that only a decompression bomb would be (for Pillow: from 90 million
    pixels on). Linked folders aren't entered.
    """
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    home = folder.resolve()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and (os.path.isfile(path) or path.is_symlink()))
    if not paths:
        raise UserError(f"the folder {folder} has no images: expected files such as .png or .jpg in it or anywhere below it")
    images, broken, small = [], [], 0
    for path in paths:
        try:
            target = path.resolve()
            if not (target.is_relative_to(home) and target.is_file()):
                raise PermissionError
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of odd metadata
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=FORMATS) as picture:
                    fitted = np.asarray(_fit_picture(picture, size, MODES[channels]))
                    small += min(picture.size) < size
            images.append(fitted.reshape(size, size, channels))
        except Exception:  # Pillow's decoders raise many kinds
            broken.append(path)
    if broken:
        names = ", ".join(printable(str(path.relative_to(folder))) for path in broken[:10]) + (", ..." if len(broken) > 10 else "")
        if not images:
            raise UserError(f"none of the {len(paths)} images in {folder} can be read ({names}): replace them with whole ones")
        print(f"skipped {len(broken)} of {len(paths)} images in {folder} that can't be read: {names}", file=sys.stderr)
    if small:
        print(f"enlarged {small} of {len(images)} images in {folder} to {size} pixels: they will look blurred", file=sys.stderr)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
