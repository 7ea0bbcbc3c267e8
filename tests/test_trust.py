"""Files from others do nothing but be read, or be refused with a sentence."""

import io
import json
import os
import pickle
import struct
import zipfile
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from spoiled import READERS, spoil, spoil_values, write_checkpoint

import gan_mnist
from gan_mnist import Config, make_generator
from sampler import load
from utils.checkpoints import Checkpoints
from utils.models import save_generator
from utils.shell import UserError

MUTANTS = 500  # of each reader's file; benchmarks/faults.py takes 10,000
VALUES = 50  # of checkpoints; there 1,000


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "a.safetensors"
    save_generator(path, make_generator(Config(model="leaky")), "gan_mnist", Config(model="leaky"))
    return path


@pytest.mark.parametrize("reader", READERS)
def test_spoiled_files_are_read_or_refused(reader, tmp_path):
    refused, wrong = spoil(reader, tmp_path, MUTANTS, seed=0)
    assert not wrong
    assert refused > MUTANTS / 10  # else the mutations do too little


@pytest.mark.parametrize("packed", [False, True])
def test_a_payload_in_a_checkpoint_does_not_run(packed, tmp_path):
    path, trace = tmp_path / "checkpoint.pt", tmp_path / "trace"
    if packed:
        torch.save({"rows": Payload(trace)}, path)
        assert zipfile.is_zipfile(path)
    else:
        path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(path).load()
    assert not trace.exists()


def test_a_payload_in_the_place_of_weights_does_not_run(weights, tmp_path):
    weights.write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    with pytest.raises(UserError, match="no whole file of weights"):
        load(weights)
    assert not (tmp_path / "trace").exists()


def test_a_header_that_asks_for_a_hundred_gigabytes_is_refused_before_any_is_taken(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(gan_mnist.GENERATORS, "leaky", lambda: torch.nn.Linear(200_000, 200_000))  # as a Config with sizes might
    with pytest.raises(UserError, match="don't fit the Config"):
        load(weights)
    header = json.dumps({"a": {"dtype": "F32", "shape": [200_000, 200_000], "data_offsets": [0, 160_000_000_000]}}).encode()
    weights.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="no whole file of weights"):
        load(weights)
    os.truncate(weights, 8 + len(header) + 160_000_000_000)  # as large as it says, though all of it a hole
    with pytest.raises(UserError, match="more than any generator"):
        load(weights)


CONFIG = asdict(Config(model="leaky"))


@pytest.mark.parametrize("state", [1, [1], {"a": 1}, {"config": 1}, {"config": {}, "rows": 1}, {"config": CONFIG, "rows": [], "epoch": {}}])
def test_a_checkpoint_of_something_else_is_refused(state, digit_folder, tmp_path):
    path = tmp_path / "outputs" / "a" / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    with pytest.raises(UserError):
        gan_mnist.train(Config(model="leaky", data=str(digit_folder), root=str(tmp_path), name="a", device="cpu", resume=True))


def png(mode, size):
    content = io.BytesIO()
    Image.new(mode, (size, size)).save(content, "PNG")
    return torch.frombuffer(bytearray(content.getvalue()), dtype=torch.uint8)


def trained(data, root):
    """A run of one epoch, and its checkpoint."""
    config = Config(model="leaky", data=str(data), root=str(root), name="a", device="cpu", epochs=1)
    gan_mnist.train(config)
    return config, root / "outputs" / "a" / "checkpoint.pt"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("frames", {"../../escaped.png": torch.zeros(9, dtype=torch.uint8)}),
        ("frames", {"epoch_0001.png": torch.zeros(9, dtype=torch.uint8)}),
        ("rows", [{"epoch": 1, "loss_d": "a"}]),
        ("rows", [{"epoch": 7, "loss_d": 1.0}]),
        ("winner", {"value": 1e9, "facts": {}, "weights": {}}),
        ("winner", {"value": 1e9, "facts": {"epoch": "a"}, "weights": {}}),
        ("frames", {"epoch_0001.png": png("RGBA", 10)}),
        ("frames", {"epoch_0001.png": png("L", 3000)}),
        ("frames", {"epoch_0001.png": png("L", 10), "epoch_0002.png": png("L", 20)}),
        ("frames", {f"epoch_{10**300}.png": png("L", 10)}),
        ("epoch", {"done": "1", "seconds": 1.0, "sums": {}}),
        ("epoch", {"done": -3, "seconds": 1.0, "sums": {}}),
        ("epoch", {"done": 1, "seconds": 1.0, "sums": {("loss_d", "loss_g"): (torch.ones(3), 1)}}),
        ("parts", {}),
        ("random", {}),
    ],
)
def test_a_checkpoint_with_a_strange_part_is_refused(part, value, digit_folder, tmp_path):
    config, path = trained(digit_folder, tmp_path)
    torch.save(torch.load(path, weights_only=True) | {part: value}, path)
    with pytest.raises(UserError, match=r"is no checkpoint of gan_mnist"):
        gan_mnist.train(replace(config, resume=True, epochs=2))
    assert not list(tmp_path.rglob("escaped.png"))


@pytest.mark.parametrize("spoil", [lambda values: torch.zeros(1), lambda values: torch.zeros(1).expand_as(values)])
def test_an_optimizer_that_would_write_beside_its_memory_is_refused(spoil, digit_folder, tmp_path):
    config, path = trained(digit_folder, tmp_path)
    state = torch.load(path, weights_only=True)
    moments = state["parts"]["optimizer_g"]["state"][0]
    moments["exp_avg"] = spoil(moments["exp_avg"])
    torch.save(state, path)
    with pytest.raises(UserError, match="an optimizer has another state"):
        gan_mnist.train(replace(config, resume=True, epochs=2))


def test_an_optimizers_rates_are_the_configs_not_the_files(digit_folder, tmp_path):
    config, path = trained(digit_folder, tmp_path)
    state = torch.load(path, weights_only=True)
    gan_mnist.train(replace(config, resume=True, epochs=2))
    expected = load_file(tmp_path / "models" / "a.safetensors")
    state["parts"]["optimizer_g"]["param_groups"] = [{"lr": "fast", "params": "many"}]
    torch.save(state, path)
    gan_mnist.train(replace(config, resume=True, epochs=2))
    found = load_file(tmp_path / "models" / "a.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_checkpoint_whose_tensors_are_larger_than_the_file_is_refused(tmp_path):
    torch.save({"frames": {"epoch_0001.png": torch.zeros(1).expand(10**12)}}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="take more than the file"):
        Checkpoints(tmp_path / "checkpoint.pt").load()


def test_a_checkpoint_of_other_values_is_used_or_refused(digit_folder, tmp_path):
    refused, wrong = spoil_values(digit_folder, tmp_path, VALUES, seed=0)
    assert not wrong
    assert refused > VALUES / 10


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    write_checkpoint(tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(tmp_path / "checkpoint.pt").load()


@pytest.mark.parametrize(
    ("experiment", "config"),
    [
        ("../../etc/passwd", {}),
        ("os", {"name": "system"}),
        ("gan_mnist\x1b[2J\n", {}),
        ("gan_mnist", {"model": ["leaky"]}),
        ("gan_mnist", {"model": "leaky", "epochs": "50"}),
        ("gan_mnist", {"model": "leaky", "epochs": True}),
        ("gan_mnist", {"model": "leaky", "learning_rate": {"a": 1}}),
        ("gan_mnist", {"model": "leaky", "wings": 2}),
        ("gan_mnist", {"model": "../leaky"}),
        ("gan_normal", {"target": "__import__('os').system('ls')"}),
    ],
)
def test_a_hostile_header_is_refused(experiment, config, tmp_path):
    header = {"format": "gan 1", "experiment": experiment, "config": json.dumps(config)}
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors", header)
    with pytest.raises(UserError) as error:
        load(tmp_path / "a.safetensors")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("config", "kind"), [("[" * 100_000, "F32"), ("{}", "F4"), ("{}", "C64")])
def test_a_header_that_torch_or_json_cannot_take_is_refused(config, kind, tmp_path, recwarn):
    tensor = {"dtype": kind, "shape": [8], "data_offsets": [0, {"F32": 32, "F4": 4, "C64": 64}[kind]]}
    header = json.dumps({"__metadata__": {"format": "gan 1", "experiment": "gan_mnist", "config": config}, "a": tensor}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(tensor["data_offsets"][1]))
    with pytest.raises(UserError, match="no whole file of weights"):
        load(tmp_path / "a.safetensors")
    assert not recwarn.list
