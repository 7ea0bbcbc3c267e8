"""Pictures of a run: grids, GIFs, curves."""

import csv
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from utils.files import replacing
from utils.shell import UserError

GAP = 2  # pixels between the images of a grid
GIF_LARGEST = 65_535  # pixels a side
GIF_LEVELS = {1: 16, 3: 128}  # shades or colours of a GIF by its channels: fewer make a smaller file


def to_uint8(images: torch.Tensor, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Float images N x C x H x W in [low, high] (values beyond are clipped) as uint8 on the CPU, rounded."""
    return ((images.detach().cpu() - low) * (255 / (high - low))).round_().clamp_(0, 255).to(torch.uint8)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float() / 255


def grid(images: torch.Tensor, columns: int | None = None, gap: int = GAP) -> Image.Image:
    """uint8 images N x C x H x W, row after row, in as square a grid as they fill (or `columns` wide)."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.zeros((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), np.uint8)
    for k, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = (k // columns) * (height + gap) + gap, (k % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = pixels
    return Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas)


def save_png(picture: Image.Image, path: str | Path) -> None:
    """Writes a picture, whole or not at all."""
    with replacing(path) as part:
        picture.save(part, "PNG", optimize=True)


def captioned(picture: Image.Image, caption: str) -> Image.Image:
    """The picture under a line of text."""
    strip = 14
    framed = Image.new(picture.mode, (picture.width, picture.height + strip))
    framed.paste(picture, (0, strip))
    ImageDraw.Draw(framed).text((GAP, 1), caption, fill="white")
    return framed


def save_gif(frames: Sequence[Image.Image], path: str | Path, seconds: float = 0.1, hold: float = 0.0) -> None:
    """An endless GIF; every frame stands for `seconds`, the last one `hold` seconds longer. UserError where they are too large for one."""
    if max(frames[0].size) > GIF_LARGEST:
        raise UserError(f"{path} would be {' x '.join(map(str, frames[0].size))} pixels, a GIF has at most {GIF_LARGEST:,}: give it less")
    levels = GIF_LEVELS[len(frames[0].getbands())]
    if frames[0].mode == "L":
        shades = [level * 255 // (levels - 1) for level in range(levels)]
        palette = Image.new("P", (1, 1))
        palette.putpalette([value for shade in shades for value in (shade,) * 3])
    else:
        some = frames[:: math.ceil(len(frames) / 8)]
        strip = Image.new("RGB", (some[0].width, sum(frame.height for frame in some)))
        for number, frame in enumerate(some):
            strip.paste(frame, (0, number * frame.height))
        palette = strip.quantize(levels)  # one for all frames, or colours would flicker
    reduced = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * (seconds + hold))]
    with replacing(path) as part:
        reduced[0].save(part, "GIF", save_all=True, append_images=reduced[1:], duration=durations, loop=0, optimize=True)


def save_curves(metrics: Path, panels: dict[str, dict[str, str]], marks: dict[str, tuple[str, float]], path: Path) -> None:
    """Plots columns of a metrics.csv over the epochs that have a number in them; a panel without any is left out.

    panels: by the panel's title, the columns it shows and their labels; marks: what to hold a column against, label and value, dotted.
    """
    from matplotlib.figure import Figure  # here, because it takes half a second that no run should start with

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of its cache the first time
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    panels = {title: columns for title, columns in panels.items() if any(row.get(column) for row in rows for column in columns)}
    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    for axes, (title, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for column, label in columns.items():
            points = [(int(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
            (line,) = axes.plot(*np.array(points).reshape(-1, 2).T, label=label, marker="." if len(points) < 3 else "")
            if column in marks:
                name, value = marks[column]
                axes.axhline(value, color=line.get_color(), linestyle=":", label=name)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)  # below, where no curve can go behind it
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
