"""Of the two checkpoints one is whole, whatever happens."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT

from utils.checkpoints import Checkpoints
from utils.shell import UserError


@pytest.fixture(autouse=True, params=[2**28, 0], ids=["buffered", "straight to the file"])
def buffered(request, monkeypatch):
    """Bytes of states that are copied in memory first."""
    monkeypatch.setattr("utils.checkpoints.BUFFERED", request.param)
    return request.param


def saved(checkpoints, *values):
    for value in values:
        checkpoints.save({"weight": torch.full((1000,), float(value))})
    checkpoints.wait()


def value(checkpoints):
    return checkpoints.load()[0]["weight"][0].item()


def damage(path):
    """Changes a byte of a tensor, which torch.load doesn't notice."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((1000,), torch.load(path)["weight"][0].item()).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(content)
    torch.load(path)


def test_the_newest_is_read_and_the_one_before_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a" / "checkpoint.pt")
    assert not checkpoints.exist()
    saved(checkpoints, 1, 2, 3)
    assert value(checkpoints) == 3
    checkpoints.path.unlink()
    assert checkpoints.exist()
    assert value(checkpoints) == 2


def test_a_changed_byte_is_noticed_and_the_one_before_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt")
    saved(checkpoints, 1, 2)
    damage(checkpoints.path)
    state, said = checkpoints.load()
    assert state["weight"][0] == 1
    assert "checkpoint.pt is damaged" in said


def test_a_damaged_one_never_takes_the_place_of_a_whole_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt")
    saved(checkpoints, 1, 2)
    damage(checkpoints.path)
    assert value(checkpoints) == 1
    saved(checkpoints, 3)
    damage(checkpoints.path)
    assert value(checkpoints) == 1


def test_without_a_whole_one_both_are_named(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt")
    saved(checkpoints, 1, 2)
    damage(checkpoints.path)
    damage(checkpoints.before)
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged .*checkpoint_before.pt is damaged"):
        checkpoints.load()


def test_one_that_cannot_be_opened_is_left_alone(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoint.pt")
    saved(checkpoints, 1, 2)
    before = checkpoints.path.read_bytes()

    def closed(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(PermissionError, match="checkpoint.pt"):
        checkpoints.load()
    monkeypatch.undo()
    assert checkpoints.path.read_bytes() == before


@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_does_not_end_before_its_checkpoint_is_on_the_disk(processes, buffered, tmp_path):
    code = f"""
import os, time
from pathlib import Path
import torch
from utils import checkpoints
from utils.checkpoints import Checkpoints
from utils.shell import UserError, command_line
fsync = os.fsync
os.fsync = lambda file: time.sleep(1) or fsync(file)
checkpoints.BUFFERED = {buffered}

def save_and_fail():
    Checkpoints(Path({str(tmp_path / "checkpoint.pt")!r})).save({{"weight": torch.ones(1000)}})
    raise UserError("no more")

command_line(save_and_fail)
"""
    environment = os.environ | {"WORLD_SIZE": str(processes), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "-c: no more\n")
    assert (tmp_path / "checkpoint.pt").exists()
