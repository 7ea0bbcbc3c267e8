"""A run's pictures: a PNG for each, and a GIF of them all."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from utils.files import write_whole
from utils.images import captioned, save_gif

GIF_FRAMES = 50, 40, 30, 20  # at most, whichever comes first of those that fit: photographs take more space than drawings
GIF_BYTES = 2_000_000
LARGEST = 2**22  # pixels of a picture, of which the GIF's are in memory at once


class Film:
    """The PNGs in the folder `outputs`, and the file `gif`; frames: their names and bytes."""

    def __init__(self, outputs: Path, gif: Path) -> None:
        self.outputs, self.gif = outputs, gif
        self.frames: dict[str, bytes] = {}

    def add(self, picture: Image.Image, epoch: int, step: int | None = None) -> None:
        """The picture of the state after a whole epoch, or after so many steps of the whole run, before the epoch's end."""
        name = f"epoch_{epoch:04d}.png" if step is None else f"epoch_{epoch - 1:04d}_{step:04d}.png"
        png = io.BytesIO()
        picture.save(png, "PNG", optimize=True)
        self.frames[name] = png.getvalue()
        self._write(name)

    def take(self, frames: dict[str, bytes]) -> None:
        """These in place of its own; ValueError where a name isn't one that add() gives, or a picture isn't like one of its."""
        forms = set()
        for name, png in frames.items():
            if not re.fullmatch(r"epoch_\d{4,9}(_\d{4,9})?\.png", name):
                raise ValueError(f"a picture called {name!r}")
            with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
                if picture.width * picture.height > LARGEST or picture.mode not in ("L", "RGB"):
                    raise ValueError(f"a picture of {picture.width} x {picture.height} pixels in mode {picture.mode}")
                picture.load()
                forms.add((picture.size, picture.mode))
        if len(forms) > 1:
            raise ValueError("pictures that don't go together")
        self.frames = frames

    def of_epochs(self) -> Iterator[tuple[int, Image.Image]]:
        """The pictures of whole epochs, with their numbers."""
        for name, png in sorted(self.frames.items()):
            if match := re.fullmatch(r"epoch_(\d+)\.png", name):
                yield int(match[1]), Image.open(io.BytesIO(png))

    def restore(self) -> None:
        """Makes the folder's PNGs those of `frames`, without any of other runs or of epochs that are yet to be repeated."""
        for old in self.outputs.glob("epoch_*.png"):
            if old.name not in self.frames:
                old.unlink()
        for name in self.frames:
            self._write(name)

    def save(self, captions: bool) -> None:
        """Writes the GIF: every early picture, where most happens, then fewer and fewer; without pictures there is none.

        It has as many frames of GIF_FRAMES as fit into GIF_BYTES, or the fewest where these don't fit either.
        captions: whether a frame needs its epoch above it.
        """
        names = sorted(self.frames)
        if not names:
            self.gif.unlink(missing_ok=True)  # an earlier run's would pass for this one's
            return
        for most in GIF_FRAMES:
            shown = np.arange(len(names))
            if len(names) > most:
                shown = np.unique(np.geomspace(1, len(names), most).round().astype(int)) - 1
            pictures = [Image.open(io.BytesIO(self.frames[names[number]])) for number in shown]
            if captions:
                epochs = [int(names[number].removeprefix("epoch_").removesuffix(".png")) for number in shown]
                pictures = [captioned(picture, f"epoch {epoch}") for picture, epoch in zip(pictures, epochs, strict=True)]
            save_gif(pictures, self.gif, hold=2)
            if self.gif.stat().st_size <= GIF_BYTES:
                return

    def _write(self, name: str) -> None:
        """The PNG, unless it is there."""
        path = self.outputs / name
        if not path.exists() or path.read_bytes() != self.frames[name]:
            write_whole(path, self.frames[name])
