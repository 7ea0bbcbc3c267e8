import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import STARTED, make_pictures

PROJECT = Path(__file__).parent.parent

# Of tests that run beside each other on every core, the threads would wait for one another: up to five times as long.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_leftovers():
    """Runs that a test has started end with it."""
    yield
    for run in STARTED:
        run.process.kill()
    STARTED.clear()


@pytest.fixture(scope="session")
def digits():
    """The first 300 training images of MNIST, uint8 300 x 1 x 28 x 28."""
    sprite = np.asarray(Image.open(Path(__file__).parent / "digits.png"))
    return torch.from_numpy(sprite.reshape(15, 28, 20, 28).transpose(0, 2, 1, 3).reshape(300, 1, 28, 28).copy())


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory):
    """The same as a folder of pictures."""
    folder = tmp_path_factory.mktemp("digits") / "pictures"
    make_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def photos():
    """The first 100 training images of CIFAR-10, uint8 100 x 3 x 32 x 32."""
    sprite = np.asarray(Image.open(Path(__file__).parent / "photos.png"))
    return torch.from_numpy(sprite.reshape(10, 32, 10, 32, 3).transpose(0, 2, 4, 1, 3).reshape(100, 3, 32, 32).copy())


@pytest.fixture(scope="session")
def photo_folder(digit_folder):
    """The first 100 training images of CIFAR-10 as a folder of pictures."""
    return digit_folder.with_name("photos")


@pytest.fixture
def shell(monkeypatch, capsys):
    """Runs a script of the project as the shell would, but in this process: (status, stdout, stderr)."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(PROJECT / script), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def process():
    """Starts a script of the project in a process of its own."""

    started = []

    def start(script, *arguments, **options):
        command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options))
        return started[-1]

    yield start
    for child in started:
        child.terminate()  # torchrun passes that on to its processes
        try:
            child.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()


def assert_bar_fits(stderr):
    """The bar of a run of two epochs has room for more and for faster ones in 80 columns. Returns the numbers that it shows at the end."""
    bar = stderr.split("\r")[-1].rstrip()  # where the line before was longer, it ends in spaces
    numbers = re.fullmatch(r"2/2 (.* )[█▏▎▍▌▋▊▉]+ \S+ img/s \d\d:\d\d", bar)[1]
    assert len(f"100/100 {numbers}# 17.5k img/s 59:59") < 80
    return numbers


def assert_one_sentence(status, stderr, *words):
    """Bad input: status 2 and one line that says these words, not a traceback."""
    assert status == 2
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr
