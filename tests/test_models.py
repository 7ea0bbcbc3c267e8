import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import infogan_mnist
from gan_mnist import Config, make_generator
from sampler import images, latents, load
from utils.files import replacing
from utils.models import read_generator, save_generator
from utils.shell import UserError


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    generator = make_generator(Config(model="batchnorm"))
    generator(generator.latent(100, "cpu"))  # batch norm's statistics aren't those it starts with
    save_generator(tmp_path / "a.safetensors", generator, "gan_mnist", Config(model="batchnorm"), epoch=7, loss_d=1.25)
    return generator.eval(), tmp_path / "a.safetensors"


def test_half_the_bytes_make_the_same_pictures(saved):
    generator, path = saved
    z = latents(generator, 50, 0)
    difference = images(load(path)[2], z).int() - images(generator, z).int()
    assert difference.abs().max() <= 1
    with safe_open(path, "pt") as file:
        assert (file.metadata()["epoch"], file.metadata()["loss_d"]) == ("7", "1.25")
    assert path.stat().st_size < 2.1 * sum(weight.numel() for weight in generator.parameters())


def test_a_huge_matrix_is_stored_in_bytes_row_by_row(tmp_path):
    network = torch.nn.Linear(2001, 2000)
    network.weight.data *= torch.logspace(-6, 6, 2000)[:, None]
    network.weight.data[7] = 0
    save_generator(tmp_path / "a.safetensors", network, "gan_mnist", Config())
    _, _, weights = read_generator(tmp_path / "a.safetensors")
    assert weights.keys() == network.state_dict().keys()
    largest = network.weight.abs().amax(1, keepdim=True)
    assert ((weights["weight"] - network.weight).abs() <= largest / 127 * 0.501).all()
    assert torch.equal(weights["bias"], network.bias)
    assert (tmp_path / "a.safetensors").stat().st_size < 1.02 * network.weight.numel()


def test_the_statistics_of_many_units_keep_their_range(tmp_path):
    norm = torch.nn.BatchNorm1d(20_000)
    norm.running_var.fill_(1e6)  # past the largest half
    save_generator(tmp_path / "a.safetensors", norm, "gan_mnist", Config())
    _, _, weights = read_generator(tmp_path / "a.safetensors")
    assert torch.equal(weights["running_var"], norm.running_var)


def test_bytes_make_nearly_the_same_pictures(tmp_path):
    torch.manual_seed(0)
    generator = infogan_mnist.make_generator(infogan_mnist.Config())
    generator(generator.latent(100, "cpu"))
    save_generator(tmp_path / "a.safetensors", generator, "infogan_mnist", infogan_mnist.Config())
    assert (tmp_path / "a.safetensors").stat().st_size < 8e6
    z = latents(generator, 50, 0)
    difference = images(load(tmp_path / "a.safetensors")[2], z).int() - images(generator.eval(), z).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("rows", [torch.ones(1, 9), torch.ones(9), torch.ones(8, 1), torch.tensor(1.0)])
def test_rows_of_another_shape_are_refused(rows, saved):
    rewrite(saved[1], weights={"a": torch.zeros(9, 1, dtype=torch.int8), "a/scale": rows})
    with pytest.raises(UserError, match="no whole file of weights"):
        load(saved[1])
    rewrite(saved[1], weights={"a/scale": rows})
    with pytest.raises(UserError, match="no whole file of weights"):
        load(saved[1])


def rewrite(path, weights=None, **header):
    with safe_open(path, "pt") as file:
        old = file.metadata()
    save_file(weights or load_file(path), path, {**old, **header})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "no file"),
        (lambda path: path.write_bytes(b""), "no whole file of weights"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "no whole file of weights"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "no whole file of weights"),
        (lambda path: path.write_bytes(b"\xff" * 1000), "no whole file of weights"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "no whole file of weights"),
        (lambda path: save_file({"a": torch.zeros(3)}, path), "format 'none', expected 'gan 1'"),
        (lambda path: rewrite(path, format="gan 99"), "format 'gan 99', expected 'gan 1'"),
        (lambda path: rewrite(path, experiment="gan_mars"), "made by the experiment 'gan_mars', expected one of .*gan_mnist"),
        (lambda path: rewrite(path, config="[1]"), "holds no Config"),
        (lambda path: rewrite(path, config="{"), "no whole file of weights"),
        (lambda path: rewrite(path, config=json.dumps({"wings": 2})), "has wings = '2', which its experiment doesn't take"),
        (lambda path: rewrite(path, config=json.dumps({"model": "dcgan"})), "no model named"),
        (lambda path: rewrite(path, config=json.dumps({"model": "leaky"})), "don't fit the Config"),
        (lambda path: rewrite(path, weights={"a": torch.zeros(3)}), "don't fit the Config"),
    ],
)
def test_a_file_that_is_not_a_generator_is_refused(saved, harm, words):
    harm(saved[1])
    with pytest.raises(UserError, match=words):
        load(saved[1])


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "deep" / "a.txt"

    def write(fail):
        with replacing(target) as part:
            part.write_text("half")
            if fail:
                raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        write(fail=True)
    assert not list(target.parent.iterdir())
    write(fail=False)
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]
