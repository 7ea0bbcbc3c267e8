"""Short trainings on a few real digits: what they leave, and that seeds, resuming and precisions do what they say."""

import csv
import json
import math
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from conftest import assert_bar_fits
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_mnist import DISCRIMINATORS, Config, make_generator, move_at_once, train
from utils.known import ImageSet
from utils.logbook import Logbook, NotFinite
from utils.models import read_generator
from utils.run import Run
from utils.shell import UserError

MODELS = ["maxout", "batchnorm", "leaky"]


@pytest.fixture
def config(digit_folder, tmp_path):
    """A Config of a short run: 3 steps an epoch."""

    def make(**constants):
        return Config(**{"data": str(digit_folder), "root": str(tmp_path), "epochs": 2, "batch_size": 100, "device": "cpu", **constants})

    return make


def weights(root, name):
    return read_generator(root / "models" / f"{name}.safetensors")[2]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(root, name):
    with open(root / "outputs" / name / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model", MODELS)
def test_a_run_leaves_what_it_promises(config, tmp_path, model, capsys):
    train(config(model=model, keep_every=2, epochs=3))
    name = f"gan_mnist_{model}"
    outputs = tmp_path / "outputs" / name
    left = {path.name for path in outputs.iterdir()}
    pictures = {"real.png", "curves.png", *(f"epoch_000{epoch}.png" for epoch in (1, 2, 3))}
    checkpoints = {"checkpoint.pt", "checkpoint_before.pt", ".spare-checkpoint.pt"}
    assert left == {"config.json", "metrics.csv", ".lock", "tensorboard", *checkpoints, *pictures}
    assert json.loads((outputs / "config.json").read_text())["model"] == model
    for picture in pictures - {"curves.png"}:
        assert Image.open(outputs / picture).size == (302, 302)
    gif = Image.open(tmp_path / "gif" / f"{name}.gif")
    assert gif.n_frames == 3
    assert gif.info["loop"] == 0

    table = rows(tmp_path, name)
    assert list(table[0]) == ["epoch", "loss_d", "loss_g", "d_real", "d_fake", "accuracy_d", "seconds", "images_per_second"]
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert all(math.isfinite(float(value)) for row in table for value in row.values())
    assert all(0 <= float(row[column]) <= 1 for row in table for column in ("d_real", "d_fake", "accuracy_d"))

    with safe_open(tmp_path / "models" / f"{name}.safetensors", "pt") as file:
        header = file.metadata()
    assert header["experiment"] == "gan_mnist"
    assert json.loads(header["config"])["model"] == model
    (kept,) = (tmp_path / "models" / name).iterdir()
    with safe_open(kept, "pt") as file:
        assert file.metadata()["loss_d"] == table[1]["loss_d"]

    events = EventAccumulator(str(outputs / "tensorboard")).Reload()
    assert {"loss_d", "loss_g", "accuracy_d"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"real", "fake"}
    assert [event.step for event in events.Scalars("loss_d")] == [1, 2, 3]
    assert [event.step for event in events.Images("fake")] == [1, 2, 3]

    said = capsys.readouterr()
    assert name in said.out.splitlines()[0]
    last = said.err.split("\r")[-1]
    assert re.fullmatch(r"3/3 loss D \S+ G \S+ D\(real\) \S+ D\(fake\) \S+ acc \S+ .* img/s \d\d:\d\d *\n", last)
    assert said.err.count("\n") == 1  # one bar


def test_the_seed_decides(config, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config(name=name, seed=seed, epochs=1))
    assert same(weights(tmp_path, "a"), weights(tmp_path, "b"))
    assert not same(weights(tmp_path, "a"), weights(tmp_path, "c"))


def test_a_finished_run_goes_on_to_more_epochs_as_one_that_had_them_from_the_start(config, tmp_path):
    train(config(name="whole", epochs=3))
    train(config(name="parts", epochs=1))
    train(config(name="parts", epochs=3, resume=True))
    assert same(weights(tmp_path, "whole"), weights(tmp_path, "parts"))
    drop = {"seconds", "images_per_second"}
    whole, parts = ([{k: v for k, v in row.items() if k not in drop} for row in rows(tmp_path, name)] for name in ("whole", "parts"))
    assert whole == parts
    assert Image.open(tmp_path / "gif" / "parts.gif").n_frames == 3


def test_a_resumed_run_keeps_its_constants(config, tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        train(config(resume=True))
    assert not list(tmp_path.iterdir())
    train(config(epochs=1))
    with pytest.raises(UserError, match="learning_rate was 0.2 .* is 0.1 now"):
        train(config(resume=True, learning_rate=0.1))
    train(config(resume=True, name="gan_mnist_batchnorm", keep_every=1))  # the name that it had all along
    for checkpoint in (tmp_path / "outputs" / "gan_mnist_batchnorm").glob("checkpoint*.pt"):
        checkpoint.write_bytes(b"half")
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged .*checkpoint_before.pt is damaged"):
        train(config(resume=True, epochs=3))


def test_a_resumed_run_has_the_images_that_it_had(config, digits, tmp_path):
    pictures = tmp_path / "mine"
    pictures.mkdir()
    for number in range(101):
        Image.fromarray(digits[number, 0].numpy()).save(pictures / f"{number}.png")
    train(config(epochs=1, data=str(pictures)))
    (pictures / "100.png").unlink()
    with pytest.raises(UserError, match="these aren't the images"):
        train(config(data=str(pictures), resume=True))


def test_scores_do_not_outlive_the_weights_that_they_are_of(config, tmp_path):
    outputs = tmp_path / "outputs" / "gan_mnist_batchnorm"
    scores = [outputs / name for name in ("scores.json", "scores_inception.json", "copies.png")]
    train(config(epochs=1))
    for epochs, left in ((1, 3), (2, 0)):
        for path in scores:
            path.touch()
        train(config(epochs=epochs, resume=True))
        assert sum(path.exists() for path in scores) == left
    scores[0].touch()
    train(config(epochs=1))
    assert not scores[0].exists()


def test_a_run_can_go_on_where_other_short_numbers_are_native(config, monkeypatch):
    train(config(epochs=1, precision="auto"))
    monkeypatch.setattr("utils.run.pick_precision", lambda *_: ("fp16", ""))  # which, unlike the others, scales its gradients
    train(config(epochs=2, precision="auto", resume=True))
    monkeypatch.setattr("utils.run.pick_precision", lambda *_: ("fp32", ""))
    train(config(epochs=3, precision="auto", resume=True))


def test_ctrl_c_does_not_break_off_the_saving(config, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.run.save_curves", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    train(config(epochs=1, name="a"))
    assert (tmp_path / "gif" / "a.gif").exists()  # which is saved after the curves


def test_a_new_run_keeps_the_old_result_until_it_has_its_own(config, tmp_path, monkeypatch):
    train(config(name="a", epochs=1))
    old = weights(tmp_path, "a")

    def crash(*_):
        raise RuntimeError

    monkeypatch.setattr("gan_mnist.move_at_once", crash)
    with pytest.raises(RuntimeError):
        train(config(name="a", epochs=1, seed=1))
    assert same(weights(tmp_path, "a"), old)
    assert (tmp_path / "gif" / "a.gif").exists()


def test_the_papers_run_follows_its_schedule_from_the_pixels_means(config, digits, tmp_path):
    train(config(model="maxout", name="a", warm_up=2))
    parts = torch.load(tmp_path / "outputs" / "a" / "checkpoint.pt", weights_only=True)["parts"]
    for player, last in (("g", 0.4), ("d", 0.2)):
        (group,) = parts[f"optimizer_{player}"]["param_groups"]
        before, rate = ((0.1 + (last - 0.1) * risen / 6) / 1.000004**risen for risen in (4, 5))  # 2 epochs have 6 updates
        assert group["lr"] == pytest.approx(rate, rel=1e-12)  # the last of them had followed 5
        assert group["momentum"] == pytest.approx((0.5 + 0.2 / 249) * before / rate, rel=1e-12)
    train(config(model="maxout", name="still", learning_rate=1e-30))
    means = (digits.flatten(1).float().mean(0) / 255).clamp(1e-7, 1 - 1e-7)
    torch.testing.assert_close(weights(tmp_path, "still")["layers.4.bias"], means.logit())


def test_the_tutorials_run_has_the_tutorials_adam(config, tmp_path):
    train(config(model="leaky", epochs=1, name="a"))
    parts = torch.load(tmp_path / "outputs" / "a" / "checkpoint.pt", weights_only=True)["parts"]
    for player in ("g", "d"):
        (group,) = parts[f"optimizer_{player}"]["param_groups"]
        assert (group["lr"], *group["betas"]) == (0.0002, 0.5, 0.999)


def test_the_last_images_of_a_known_set_are_held_out(config, digits, monkeypatch):
    monkeypatch.setattr("utils.run.data.load", lambda *_: ImageSet(digits, None))
    run = Run(config(), "gan_mnist", "", {})
    images, held_out = run.load("mnist", 28, 1, held_out=100)
    assert torch.equal(images, digits[:200])
    assert torch.equal(held_out, digits[200:])
    images, held_out = run.load("a/folder", 28, 1, held_out=100)
    assert torch.equal(images, digits)
    assert len(held_out) == 0
    with pytest.raises(UserError, match="held_out is 300, but mnist has 300 images"):
        run.load("mnist", 28, 1, held_out=300)


@pytest.fixture
def estimates(config, digits, monkeypatch):
    """A run on digits of which 100 are held out, whose estimates of their likelihood are these numbers."""
    monkeypatch.setattr("utils.run.data.load", lambda *_: ImageSet(digits, None))

    def trained(numbers, **constants):
        numbers = iter(numbers)
        monkeypatch.setattr("gan_mnist.held_out_likelihood", lambda *_: next(numbers))
        constants = {"estimate_every": 1, "keep_every": 1, "batch_size": 20} | constants
        train(config(data="mnist", held_out=100, name="a", **constants))
        assert list(numbers) == []

    return trained


def kept(tmp_path, epoch):
    return weights(tmp_path, f"a/epoch_{epoch:04d}")


@pytest.mark.parametrize("model", ["maxout", "batchnorm", "leaky"])
def test_the_likeliest_generator_is_the_result(estimates, tmp_path, capsys, model):
    estimates([3.0, 9.0, 5.0], epochs=3, model=model)
    assert same(weights(tmp_path, "a"), kept(tmp_path, 2))
    assert not same(weights(tmp_path, "a"), kept(tmp_path, 3))
    with safe_open(tmp_path / "models" / "a.safetensors", "pt") as file:
        assert (file.metadata()["epoch"], file.metadata()["log_likelihood"]) == ("2", "9.0")
    assert "the result is the best generator: epoch 2, log likelihood 9" in capsys.readouterr().out
    assert [row["log_likelihood"] for row in rows(tmp_path, "a")] == ["3.0", "9.0", "5.0"]


def test_the_likeliest_generator_outlives_a_break(estimates, tmp_path, capsys):
    estimates([3.0, 9.0], epochs=2)
    estimates([5.0], epochs=3, resume=True)
    assert same(weights(tmp_path, "a"), kept(tmp_path, 2))
    estimates([10.0], epochs=4, resume=True)
    assert same(weights(tmp_path, "a"), kept(tmp_path, 4))
    assert "best generator: epoch 4" in capsys.readouterr().out


def test_the_likeliest_generator_outlives_ctrl_c(config, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.run.data.load", lambda *_: ImageSet(digits, None))

    def estimate(*_):
        if (tmp_path / "models" / "a" / "epoch_0001.safetensors").exists():
            os.kill(os.getpid(), signal.SIGINT)
            return 3.0
        return 9.0

    monkeypatch.setattr("gan_mnist.held_out_likelihood", estimate)
    constants = {"data": "mnist", "held_out": 100, "name": "a", "estimate_every": 1, "keep_every": 1, "batch_size": 20}
    with pytest.raises(SystemExit):
        train(config(epochs=9, **constants))
    assert len(rows(tmp_path, "a")) == 2
    assert same(weights(tmp_path, "a"), kept(tmp_path, 1))
    (tmp_path / "models" / "a.safetensors").unlink()  # the checkpoint has it, too
    monkeypatch.setattr("gan_mnist.held_out_likelihood", lambda *_: 5.0)
    train(config(epochs=3, resume=True, **constants))
    assert same(weights(tmp_path, "a"), kept(tmp_path, 1))


def test_likelihoods_are_estimated_every_few_epochs_and_after_the_last(estimates, tmp_path):
    estimates([3.0, 2.0, 1.0], epochs=5, estimate_every=2)
    assert [row["log_likelihood"] for row in rows(tmp_path, "a")] == ["", "3.0", "", "2.0", "1.0"]
    estimates([], epochs=2, estimate_every=0)
    assert same(weights(tmp_path, "a"), kept(tmp_path, 2))


def test_a_new_run_of_a_name_leaves_nothing_of_the_old_one(config, tmp_path):
    train(config(name="a", epochs=3, keep_every=1))
    train(config(name="a", epochs=1, keep_every=1))
    assert [path.name for path in (tmp_path / "models" / "a").iterdir()] == ["epoch_0001.safetensors"]
    assert [path.name for path in (tmp_path / "outputs" / "a").glob("epoch_*")] == ["epoch_0001.png"]
    assert len(rows(tmp_path, "a")) == 1
    assert len(list((tmp_path / "outputs" / "a" / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(("precision", "digits_kept"), [("bf16", 8), ("fp16", 11)])
def test_a_step_in_short_numbers_moves_the_weights_as_fp32_does(config, digits, precision, digits_kept):
    """Rounding to k binary digits is off by 2^-k at most. So about that share of the maxout units takes another piece, each of
    which turns its part of the gradient: about sqrt(2^-k) of the whole move's length, more than all other rounding."""
    moves = {}
    for name in ("fp32", precision):
        run = Run(config(precision=name), "gan_mnist", "", {})
        run.log = lambda **_: None
        generator, discriminator = make_generator(config()), DISCRIMINATORS["maxout"]().eval()
        for weight in discriminator.parameters():
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)  # larger than the paper's: both players have a way to go
        players = (generator, discriminator)
        optimizers = [torch.optim.SGD(network.parameters(), 0.01) for network in players]
        before = [torch.cat([weight.detach().flatten() for weight in network.parameters()]) for network in players]
        for real in (digits[:100] / 255, digits[100:200] / 255):
            move_at_once(run, *players, *optimizers, real)
        after = [torch.cat([weight.detach().flatten() for weight in network.parameters()]) for network in players]
        moves[name] = [new - old for new, old in zip(after, before, strict=True)]
        assert run.scaler.is_enabled() == (name == "fp16")
    for exact, short in zip(moves["fp32"], moves[precision], strict=True):
        assert exact.norm() > 0
        assert 0 < (short - exact).norm() / exact.norm() < 2 ** (-digits_kept / 2)


@pytest.mark.parametrize("model", ["maxout", "leaky"])
def test_a_run_in_fp16_leaves_finite_numbers(config, tmp_path, model):
    train(config(model=model, precision="fp16", epochs=1, name="a"))
    assert all(math.isfinite(float(value)) for value in rows(tmp_path, "a")[0].values())
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path, "a").values())


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": -3}, "epochs is -3"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"model": "batchnorm", "batch_size": 1}, "at least 2 to normalise over"),
        ({"batch_size": 301}, "300 images, fewer than a batch of 301"),
        ({"keep_every": -1}, "keep_every is -1"),
        ({"estimate_every": -1}, "estimate_every is -1"),
        ({"average": 1.5}, "average is 1.5"),
        ({"average": math.nan}, "average is nan"),
        ({"generator_rate": 0}, "generator_rate is 0"),
        ({"warm_up": -1}, "warm_up is -1"),
        ({"model": "leaky", "warm_up": 5}, "leaky's rates stay"),
        ({"held_out": -1}, "held_out is -1"),
        ({"data": "no/such/folder"}, "no data named"),
        ({"model": "dcgan"}, "no model named"),
        ({"device": "cuda:99"}, "no device"),
        ({"name": "a/b"}, "has a folder in it"),
        ({"name": ".."}, "has a folder in it"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
        ({"precision": "fp8"}, "no precision named"),
    ],
)
def test_constants_that_make_no_sense_are_refused_before_anything_is_written(config, tmp_path, constants, words):
    with pytest.raises(UserError, match=words):
        train(config(**constants))
    assert not list(tmp_path.iterdir())


def test_an_unwritable_root_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="can't write to .*no folder that can be written to"):
        train(config(root=str(tmp_path / "file"), data="a folder that is asked for later"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_root_in_a_closed_folder_is_refused(config, tmp_path, monkeypatch):
    stat = os.stat

    def closed(path, *arguments, **options):
        if str(path).startswith(str(tmp_path / "closed")):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", closed)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    with pytest.raises(UserError, match="can't write to"):
        train(config(root=str(tmp_path / "closed" / "x")))


def test_the_bar_fits_into_eighty_columns(config, capsys):
    train(config(epochs=2))
    assert_bar_fits(capsys.readouterr().err)


def test_a_mean_that_is_not_finite_ends_a_run_even_if_each_of_its_own_numbers_is(tmp_path):
    logbook = Logbook(tmp_path, {}, 1, writes=True)
    for iteration in range(2):
        logbook.add(iteration, 1, ("loss",), torch.tensor([3e38]))
    with pytest.raises(NotFinite, match="a mean of epoch 1 isn't finite"):
        logbook.read(1)
