"""Real runs of every experiment, short, in processes of their own: what is to be done to all of them is done to this list."""

import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import random
import re
import runpy
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import sampler
from utils import data
from utils.known import ImageSet
from utils.run import Run

PROJECT = Path(__file__).parent.parent
EPOCHS = 3
DIGITS, PHOTOS = "DIGITS", "PHOTOS"  # stand for folders of pictures
RUNS = {  # each of a second or two, and so with several steps between any two moments that a test may pick
    "gan_mnist maxout": ["gan_mnist.py", "--model", "maxout", "--data", DIGITS, "--batch-size", "10"],
    "gan_mnist batchnorm": ["gan_mnist.py", "--model", "batchnorm", "--data", DIGITS, "--batch-size", "10", "--average", "0"],
    "gan_mnist leaky": ["gan_mnist.py", "--model", "leaky", "--data", DIGITS, "--batch-size", "10"],
    "gan_normal": ["gan_normal.py", "--batch-size", "64", "--picture-every", "4"],
    "gan_ring": ["gan_ring.py", "--batch-size", "64"],
    "infogan_mnist": ["infogan_mnist.py", "--data", DIGITS, "--batch-size", "10", "--hidden", "8"],
    "dcgan_cifar10 paper": ["dcgan_cifar10.py", "--recipe", "paper", "--data", PHOTOS, "--batch-size", "4", "--base", "4"],
    "dcgan_cifar10 modern": ["dcgan_cifar10.py", "--batch-size", "4", "--base", "4"],  # on the same photographs with labels
    "gan_cifar10_conv": [
        "gan_cifar10_conv.py", "--data", PHOTOS, "--batch-size", "4", "--hidden", "16", "--maps", "4", "--channels", "4", "--units", "8"
    ],
}  # fmt: skip
# Forked from a process that has imported everything, a run starts at once.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([*{script.removesuffix(".py") for script, *_ in RUNS.values()}, "matplotlib.figure", "torch._dynamo"])


def make_pictures(folder: Path) -> None:
    """Fills a folder with the first 300 training images of MNIST, 28 x 28, and one beside it, "photos", with the first 100 of CIFAR-10."""
    for sprite, size, columns, count, target in (("digits", 28, 20, 300, folder), ("photos", 32, 10, 100, folder.with_name("photos"))):
        target.mkdir()
        with Image.open(Path(__file__).parent / f"{sprite}.png") as picture:
            for number in range(count):
                left, top = number % columns * size, number // columns * size
                picture.crop((left, top, left + size, top + size)).save(target / f"{number:03d}.png")


def command(name: str, root: Path, folder: Path, *more: str) -> list[str]:
    """A run's script and arguments: below `root`, under the name "run"."""
    folders = {DIGITS: str(folder), PHOTOS: str(folder.with_name("photos"))}
    start = [folders.get(argument, argument) for argument in RUNS[name]]
    return [*start, "--name", "run", "--root", str(root), "--device", "cpu", "--epochs", str(EPOCHS), *more]


def free_port() -> int:
    """One of this machine's loopback that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


STARTED: list["Started"] = []  # tests that fail leave some running; conftest.py ends them


class Started:
    """A run in a process of its own, below `root`, under the name "run"; before: what that process calls first.

    team: of a run of several processes, the number of this one, how many there are, and the port at which they meet.
    """

    def __init__(
        self, name: str, root: Path, folder: Path, *more: str, before: object = None, team: tuple[int, int, int] = (0, 1, 0)
    ) -> None:
        script, *arguments = command(name, root, folder, *more)
        self.root, self.said = root, [root.parent / f"{root.name}_{team[0]}.{stream}" for stream in ("out", "err")]
        self.process = context.Process(target=_in_child, args=(script, arguments, folder.with_name("photos"), self.said, before, team))
        self.process.start()
        self.pid = self.process.pid
        STARTED.append(self)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def end(self, status: int | None = None, seconds: float = 60) -> None:
        """Waits for its end, which must be with this status, as a shell has it."""
        self.process.join(seconds)
        found = self.process.exitcode
        assert found is not None, f"still running after {seconds} s: {self.errors}"
        assert status in (None, found if found >= 0 else 128 - found), self.errors

    def wait_for(self, file: str, seconds: float = 60) -> None:
        """Until there is a file of this name in its outputs."""
        until = time.monotonic() + seconds
        while not (self.root / "outputs" / "run" / file).exists():
            assert time.monotonic() < until, self.errors
            assert self.process.is_alive(), self.errors
            time.sleep(0.002)

    def wait_for_writing(self, chance: random.Random) -> None:
        """Until it writes a checkpoint, one of its first few; or until it ends."""
        unfinished = self.root / "outputs" / "run" / ".unfinished-checkpoint.pt"
        for _ in range(chance.randint(1, 4)):
            for written in (False, True):
                while self.process.is_alive() and unfinished.exists() is not written:
                    pass
        time.sleep(chance.choice((0, chance.uniform(0, 0.02))))

    @property
    def output(self) -> str:
        return self.said[0].read_text()

    @property
    def errors(self) -> str:
        """What it said on stderr, but for the progress bar."""
        lines = self.said[1].read_text().splitlines()  # \r, by which the bar starts anew, ends a line too
        return "\n".join(line for line in lines if line.strip() and not re.search(r"/s [\d?:]* *$", line))


def save_often() -> None:
    """Makes a run's checkpoints within an epoch come after a quarter of a second, not after ten minutes."""
    import utils.run

    utils.run.SECONDS_BETWEEN_CHECKPOINTS = 0.25


class PlainRun(SimpleNamespace):
    """What the steps ask of a run, without its plumbing."""

    device = "cpu"
    autocast = staticmethod(lambda: torch.autocast("cpu", enabled=False))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    backward, step = Run.backward, Run.step

    def mean(self, values):
        return values

    def log(self, **values):
        self.logged = vars(self).get("logged", {}) | values


def weights_of(network: nn.Module) -> torch.Tensor:
    """All in one row."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def steps_of(experiment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Of each step of the runs from now on: what move_at_once was given, each group's rate and first momentum, G's weights after it."""
    seen, move_at_once = [], experiment.move_at_once

    def move(*given):
        groups = [group for optimizer in given[3:5] for group in optimizer.param_groups]
        settings = [(group["lr"], group.get("momentum") or group["betas"][0]) for group in groups]
        move_at_once(*given)
        seen.append((given, settings, weights_of(given[1])))

    monkeypatch.setattr(experiment, "move_at_once", move)
    return seen


def checkpoint(root: Path) -> dict[str, dict]:
    """The states in the newest of the run "run"."""
    return torch.load(root / "outputs" / "run" / "checkpoint.pt", weights_only=True)["parts"]


def committed(path: str) -> dict[str, object]:
    """A JSON file as it is in git: a run of one's own replaces the one in the folder."""
    return json.loads(subprocess.run(["git", "show", f":{path}"], cwd=PROJECT, capture_output=True, check=True).stdout)


def pictured(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Of each generator that a run shows in a picture from now on, the weights."""
    shown, picture = [], Run.picture
    monkeypatch.setattr(Run, "picture", lambda run, generator, z: shown.append(weights_of(generator)) or picture(run, generator, z))
    return shown


def assert_the_result(generator: nn.Module, shown: list[torch.Tensor], root: Path) -> None:
    """It is in the last picture of the run "run", in its checkpoint, and in its file of weights, which rounds them."""
    assert torch.equal(shown[-1], weights_of(generator))
    for name, value in generator.state_dict().items():
        assert torch.equal(checkpoint(root)["generator"][name], value), name
    _, _, stored = sampler.load(root / "models" / "run.safetensors")
    torch.testing.assert_close(weights_of(stored), weights_of(generator), rtol=2**-11, atol=2**-25)


def _in_child(
    script: str, arguments: list[str], photos: Path, said: list[Path], before: object, team: tuple[int, int, int]
) -> None:
    data.load_known = lambda *_: ImageSet(data.load(str(photos), 32, 3).images, torch.arange(100) % 10)
    for path, stream in zip(said, (sys.stdout, sys.stderr), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    if team[1] > 1:
        join(*team)
    if before is not None:
        before()
    sys.argv = [script, *arguments]
    runpy.run_path(str(PROJECT / script), run_name="__main__")


def join(rank: int, size: int, port: int) -> None:
    """Makes this process one of several, as torchrun does."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def result(root: Path) -> dict[str, object]:
    """All that a finished run leaves, but for times: its weights, metrics and pictures."""
    outputs = root / "outputs" / "run"
    with open(outputs / "metrics.csv", newline="") as file:
        rows = [{name: value for name, value in row.items() if "second" not in name} for row in csv.DictReader(file)]
    weights = {}
    for path in (root / "models").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            weights |= {(path.stem, name): file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
    pictures = [*outputs.glob("epoch_*.png"), outputs / "real.png", root / "gif" / "run.gif"]
    return {"rows": rows, "weights": weights} | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures}


def assert_all_whole(root: Path) -> None:
    """Whatever bears a final name can be read to its end."""
    for path in root.rglob("*"):
        if not path.is_file() or any(part.startswith(".") or part == "tensorboard" for part in path.relative_to(root).parts):
            continue
        if path.suffix in (".png", ".gif"):
            with Image.open(path) as picture:
                for frame in range(getattr(picture, "n_frames", 1)):
                    picture.seek(frame)
                    picture.load()
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        elif path.suffix == ".csv":
            with open(path, newline="") as file:
                assert all(None not in row.values() for row in csv.DictReader(file))
        elif path.suffix == ".pt":
            with zipfile.ZipFile(path) as file:
                assert file.testzip() is None
            torch.load(path, weights_only=True)
        else:
            assert path.suffix == ".json", path
            json.loads(path.read_text())
