"""The readers of files from elsewhere, each with a whole file of its kind, and what becomes of those that chance and malice spoil."""

import contextlib
import dataclasses
import faulthandler
import math
import random
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

import gan_mnist
import infogan_mnist
from gan_normal import Config, make_generator
from sampler import load
from utils import data
from utils.checkpoints import Checkpoints
from utils.models import save_generator
from utils.run import Run
from utils.shell import UserError

SECONDS = 60  # after which a reader hangs, and the process ends and says where


def mutated(whole: bytes, chance: random.Random) -> bytes:
    """One of the ways to spoil a file: cut, lengthened, bytes changed, a stretch repeated, emptied or moved, a number made huge."""
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        # Half of all places are in the first kilobyte, where headers are.
        at = chance.randrange(min(len(data), 1024) if chance.random() < 0.5 else len(data)) if data else 0
        length = chance.choice((1, 2, 4, 8, 64, 1000))
        match chance.randrange(7):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = chance.randbytes(length)
            case 2:
                data[at : at + length] = chance.randbytes(min(length, len(data) - at))
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                del data[at : at + length]
            case 5:
                data[at : at + 8] = struct.pack("<Q", chance.choice((0, 1, 2**31 - 1, 2**32, 2**40, 2**63 - 1, 2**64 - 1)))
            case 6:
                digits = [place for place in range(min(len(data), 2048)) if chr(data[place]).isdigit()]
                if digits:
                    place = chance.choice(digits)
                    data[place : place + 1] = chance.choice((b"-1", b"99999999999", b"0", b"1e9", b'"1"', b"null", b"[]", b"{}"))
    return bytes(data)


def write_weights(path: Path) -> None:
    save_generator(path, make_generator(Config()), "gan_normal", Config())


def write_weights_in_bytes(path: Path) -> None:
    config = infogan_mnist.Config(hidden=8)
    with mock.patch("utils.models.HUGE", 1000):
        save_generator(path, infogan_mnist.make_generator(config), "infogan_mnist", config)


def write_checkpoint(path: Path) -> None:
    state = {"rows": [{"loss": 1.5}], "parts": {"g": {"weight": torch.arange(2000.0)}}, "random": torch.get_rng_state()}
    torch.save(state, path)


def write_picture(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)


READERS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], object]]] = {
    "weights": ("a.safetensors", write_weights, load),
    "weights in bytes": ("a.safetensors", write_weights_in_bytes, load),
    "checkpoint": ("checkpoint.pt", write_checkpoint, lambda path: Checkpoints(path).load()),
    **{
        f"pictures, {ending}": (f"a.{ending}", write_picture, lambda path: data.load(str(path.parent), 28, 1))
        for ending in ("png", "jpg", "gif", "webp", "bmp", "tiff")
    },
}


STRANGE = (None, True, -1, 0, 2**63, 10**400, 1e308, math.nan, "", "a", [], {}, (), [[]], {"a": 1}, torch.zeros(0), torch.zeros(1))


def changed(state: object, chance: random.Random) -> object:
    """A checkpoint's state with one value, at any depth, taken out, put in, or made another of any type, shape or size."""
    if not isinstance(state, dict | list | tuple) or not state or chance.random() < 0.1:
        if isinstance(state, torch.Tensor) and state.numel() and chance.random() < 0.5:
            kinds = (state.double(), state.flatten()[0].expand(state.shape), state.flatten()[1:], -state.float(), state.float() / 0)
            return chance.choice(kinds)
        return chance.choice(STRANGE)
    parts = dict(state) if isinstance(state, dict) else dict(enumerate(state))
    name = chance.choice(list(parts))
    match chance.randrange(20):
        case 0:
            del parts[name]
        case 1:
            parts[chance.choice(("a", 7, ("a", "b")))] = parts[name]
        case _:
            parts[name] = changed(parts[name], chance)
    return parts if isinstance(state, dict) else type(state)(parts.values())


def spoil_values(data: Path, folder: Path, count: int, seed: int) -> tuple[int, list[str]]:
    """Resumes, for the rest of an epoch and one more, from so many checkpoints with one changed value: what spoil() says of files.

    data: a folder of pictures.
    """
    config = gan_mnist.Config(model="leaky", data=str(data), root=str(folder), name="a", device="cpu", epochs=2, batch_size=100)
    path = folder / "outputs" / "a" / "checkpoint.pt"
    step = Run.step

    def interrupted(run: Run, *optimizers: torch.optim.Optimizer) -> None:
        step(run, *optimizers)
        if run.epoch == 2:
            run.stopping = signal.SIGINT

    with mock.patch.object(Run, "step", interrupted), contextlib.suppress(SystemExit):
        gan_mnist.train(config)
    state, chance = torch.load(path, weights_only=True), random.Random(seed)
    assert 0 < state["epoch"]["done"] < 3

    def spoiled() -> None:
        path.with_stem("checkpoint_before").unlink(missing_ok=True)  # it would be read instead
        torch.save(changed(state, chance), path)

    return _outcomes(count, spoiled, lambda: gan_mnist.train(dataclasses.replace(config, epochs=3, resume=True)))


def spoil(reader: str, folder: Path, count: int, seed: int) -> tuple[int, list[str]]:
    """Reads so many mutants of a reader's file: how many were refused by a sentence, and what else happened to any."""
    name, write, read = READERS[reader]
    path = folder / reader / name
    path.parent.mkdir()
    torch.manual_seed(seed)  # of the weights in it
    write(path)
    whole, chance = path.read_bytes(), random.Random(f"{reader} {seed}")
    return _outcomes(count, lambda: path.write_bytes(mutated(whole, chance)), lambda: read(path))


def _outcomes(count: int, spoiled: Callable[[], object], read: Callable[[], object]) -> tuple[int, list[str]]:
    """Of spoiling and reading a file so many times."""
    refused, wrong = 0, []
    for number in range(count):
        spoiled()
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)  # which may be caught elsewhere
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except UserError as error:
            refused += 1
            if not str(error).isprintable():
                wrong.append(f"{number}: says {str(error)!r}")
        except Exception as error:  # any of them is a traceback for the user
            wrong.append(f"{number}: {error!r}")
        finally:
            faulthandler.cancel_dump_traceback_later()
    return refused, wrong
