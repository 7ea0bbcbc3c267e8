"""score.py on a few digits, and that what is committed agrees with what the README says."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, assert_one_sentence
from PIL import Image

import dcgan_cifar10
import gan_cifar10_conv
import gan_mnist
import infogan_mnist
import sampler
import score
from gan_mnist import Config
from utils.classifiers import SHAPES, load_classifier
from utils.known import ImageSet
from utils.models import save_generator
from utils.scores import SIGMAS
from utils.shell import UserError


@pytest.fixture
def few(digits, monkeypatch):
    """Of everything as much as 300 digits and their shifted copies give: 1,200 images, of which the last 500 are held out."""
    found = {
        True: torch.cat([digits.roll(by, dims) for by, dims in ((0, 2), (1, 2), (1, 3), (-1, 3))]),
        False: torch.cat([digits.roll(by, dims) for by, dims in ((2, 2), (-1, 2), (2, 3), (-2, 3))]),
    }
    monkeypatch.setattr("utils.data.load", lambda name, size, channels, train=True: ImageSet(found[train], None))
    monkeypatch.setattr(score, "SAMPLES", 1000)
    monkeypatch.setattr(score, "COPIES", 100)
    return found


@pytest.fixture
def trained(tmp_path):
    """The committed maxout generator, as if trained on the few."""
    _, _, generator = sampler.load(PROJECT / "models" / "gan_mnist_maxout.safetensors")
    return model_file(tmp_path, "trained", generator, model="maxout")


def model_file(tmp_path, name="a", weights_of=None, **constants):
    config = Config(**{"held_out": 500, **constants})
    path = tmp_path / "models" / f"{name}.safetensors"
    save_generator(path, weights_of or gan_mnist.make_generator(config), "gan_mnist", config, epoch=7)
    return path


def test_a_model_is_measured_beside_real_images(few, trained, tmp_path, capsys):
    score.main(score.Score(str(trained), root=str(tmp_path)))
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "outputs" / "trained" / "scores.json").read_text())
    model, real = found["samples"], found["real"]
    assert model.keys() == real.keys()
    assert real["frechet"] < model["frechet"]
    for column in (model, real):
        assert column["sigma"] in SIGMAS
        assert column["standard_error"] > 0
        assert sum(column["shares"]) == pytest.approx(1)
        assert 0 <= column["precision"] <= 1
        assert 0.5 < column["confidence"] <= 1
    assert found["parameters"] == 101 * 1200 + 1201 * 1200 + 1201 * 784
    assert 0 < found["milliseconds_per_image"] < 100
    assert "our classifier of mnist" in found["features"]
    for measure in ("log-likelihood", "Frechet", "recall", "copying", "class 9", "classes missing", "parameters", "our classifier"):
        assert measure in said
    assert f"{model['log_likelihood']:.1f}" in said
    with Image.open(tmp_path / "outputs" / "trained" / "copies.png") as pairs:
        assert pairs.size == (8 * 30 + 2, 4 * 30 + 2)


@pytest.mark.parametrize(
    ("experiment", "constants", "model", "command"),
    [
        (dcgan_cifar10, {"recipe": "paper", "base": 2}, "paper", "python dcgan_cifar10.py --recipe paper --base 2"),
        (gan_cifar10_conv, {"hidden": 4, "maps": 2}, "", "python gan_cifar10_conv.py --hidden 4 --maps 2"),
    ],
)
def test_a_model_of_photographs_is_measured_in_their_classifiers_features(
    experiment, constants, model, command, photos, few, tmp_path, capsys
):
    few[True] = torch.cat([photos.roll(by, 3) for by in range(12)])
    few[False] = torch.cat([photos.flip(3).roll(by, 3) for by in range(12)])
    config = experiment.Config(**constants, held_out=100)
    save_generator(tmp_path / "a.safetensors", experiment.make_generator(config), experiment.__name__, config)
    score.main(score.Score(str(tmp_path / "a.safetensors"), root=str(tmp_path)))
    found = json.loads((tmp_path / "outputs" / "a" / "scores.json").read_text())
    assert found["model"] == model
    assert "our classifier of cifar10" in found["features"]
    assert found["command"] == f"{command} --held-out 100"
    assert found["real"]["frechet"] < found["samples"]["frechet"]
    with Image.open(tmp_path / "outputs" / "a" / "copies.png") as pairs:
        assert (pairs.size, pairs.mode) == ((8 * 34 + 2, 4 * 34 + 2), "RGB")


def test_a_model_that_is_told_classes_is_held_to_them(photos, few, tmp_path, monkeypatch, capsys):
    labels = torch.arange(1200) % 10
    labelled = {train: ImageSet(torch.cat([photos.roll(by, 3) for by in range(12)]), labels) for train in few}
    monkeypatch.setattr("utils.data.load", lambda *_, train=True: labelled[train])
    generator = dcgan_cifar10.make_generator(config := dcgan_cifar10.Config(base=2))
    save_generator(tmp_path / "a.safetensors", generator, "dcgan_cifar10", config)
    score.main(score.Score(str(tmp_path / "a.safetensors"), root=str(tmp_path)))
    found = json.loads((tmp_path / "outputs" / "a" / "scores.json").read_text())
    z = sampler.latents(generator, score.SAMPLES, 0)
    asked = z[:, 100:].argmax(1)
    taken_for = score.logits("cifar10", sampler.images(generator.eval(), z)).argmax(1)
    assert found["samples"]["right"] == pytest.approx((taken_for == asked).double().mean().item(), abs=0.005)  # short numbers in the file
    taken_for = score.logits("cifar10", labelled[True].images[: score.SAMPLES]).argmax(1)
    assert found["real"]["right"] == pytest.approx((taken_for == labels[: score.SAMPLES]).double().mean().item())
    assert f"of the right class    {found['samples']['right']:.1%}" in capsys.readouterr().out


def test_the_unsupervised_error_is_that_of_the_discriminator_beside_it(few, tmp_path, monkeypatch, capsys):
    labelled = {train: ImageSet(images, torch.arange(len(images)) % 10) for train, images in few.items()}
    monkeypatch.setattr("utils.data.load", lambda *_, train=True: labelled[train])
    torch.manual_seed(0)
    config, discriminator = infogan_mnist.Config(hidden=8), infogan_mnist.Discriminator(8)
    generator = infogan_mnist.make_generator(config)
    for name, network in (("a", generator), ("a/discriminator", discriminator)):
        save_generator(tmp_path / f"{name}.safetensors", network, "infogan_mnist", config)
    expected, _ = infogan_mnist.unsupervised_error(discriminator, labelled[True], labelled[False])
    score.main(score.Score(str(tmp_path / "a.safetensors"), root=str(tmp_path)))
    found = json.loads((tmp_path / "outputs" / "a" / "scores.json").read_text())
    assert found["samples"]["unsupervised_error"] == pytest.approx(expected, abs=0.005)  # the file's numbers are shorter
    assert "unsupervised_error" not in found["real"]
    assert f"unsupervised error    {found['samples']['unsupervised_error']:.2%}" in capsys.readouterr().out
    older = dataclasses.make_dataclass("Config", ["hidden"])(8)  # from before there were more constants
    save_generator(tmp_path / "a" / "discriminator.safetensors", discriminator, "infogan_mnist", older)
    score.load_discriminator(tmp_path / "a" / "discriminator.safetensors", infogan_mnist, config)
    save_generator(tmp_path / "a" / "discriminator.safetensors", discriminator, "infogan_mnist", infogan_mnist.Config(hidden=8, seed=1))
    with pytest.raises(UserError, match="isn't of the same run as the generator"):
        score.load_discriminator(tmp_path / "a" / "discriminator.safetensors", infogan_mnist, config)


def test_a_generator_that_copies_is_found(few, tmp_path, monkeypatch):
    copies = few[True][:1000]
    monkeypatch.setattr("sampler.images", lambda *_: copies)
    found, pairs = score.measure(model_file(tmp_path, model="leaky", held_out=0), "auto", seed=0)
    assert found["samples"]["copying"] < 0.01 < 0.5 < found["real"]["copying"]
    assert torch.equal(pairs[0::2], pairs[1::2])  # each beside its original


def test_only_what_was_trained_on_counts_as_copied(few, tmp_path, monkeypatch):
    monkeypatch.setattr("sampler.images", lambda *_: few[True][-1000:])
    path = model_file(tmp_path, model="leaky", held_out=1000)
    assert score.measure(path, "auto", seed=0)[0]["samples"]["copying"] > 0.3


def test_the_same_seed_gives_the_same_scores(few, trained):
    one, again, other = (score.measure(trained, "auto", seed)[0]["samples"] for seed in (1, 1, 2))
    assert one == again
    assert one["log_likelihood"] != other["log_likelihood"]


@pytest.mark.parametrize(
    ("constants", "features", "words"),
    [
        ({"data": "my/pictures"}, "auto", ["trained on my/pictures", "no test images"]),
        ({}, "cifar10", ["no features 'cifar10' for images of 1 x 28 x 28", "give --features mnist or inception"]),
        ({}, "vgg", ["no features 'vgg'", "give --features mnist or inception"]),
    ],
)
def test_what_cannot_be_measured_is_refused(few, tmp_path, constants, features, words):
    path = model_file(tmp_path, model="leaky", **constants)
    with pytest.raises(UserError) as refused:
        score.main(score.Score(str(path), features, root=str(tmp_path)))
    assert_one_sentence(2, str(refused.value), *words)


def test_points_are_refused(shell):
    status, _, said = shell("score.py", PROJECT / "models" / "gan_normal.safetensors")
    assert_one_sentence(status, said, "makes points, not images")


def test_a_missing_file_is_refused(shell):
    status, _, said = shell("score.py", "models/none.safetensors")
    assert_one_sentence(status, said, "no file models/none.safetensors")


def test_inception_that_cannot_be_had_is_refused_in_a_sentence(few, tmp_path, monkeypatch):
    def closed(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", closed)
    with pytest.raises(UserError, match=r"can't get the weights of the features .* \(no route\): leave out --features"):
        score.measure(model_file(tmp_path, model="leaky"), "inception", seed=0)


def test_data_without_a_classifier_have_no_features_unless_told(few, tmp_path, capsys):
    path = model_file(tmp_path, model="leaky", data="fashion-mnist")
    score.main(score.Score(str(path), root=str(tmp_path)))
    said = capsys.readouterr().out
    assert "features: none" in said
    assert "give --features mnist or inception" in said
    assert "log-likelihood" in said
    assert "Frechet" not in said
    found, _ = score.measure(model_file(tmp_path, model="leaky", data="fashion-mnist"), "mnist", seed=0)
    assert found["samples"]["frechet"] > 0
    assert "shares" not in found["samples"]  # digits are no clothes


@pytest.mark.parametrize(
    ("constants", "line"),
    [
        ({}, "python gan_mnist.py"),
        ({"model": "leaky", "seed": 3, "name": "x", "batch_size": 256}, "python gan_mnist.py --model leaky"),
        ({"model": "maxout", "epochs": 100, "average": 0}, "python gan_mnist.py --model maxout --epochs 100 --average 0"),
    ],
)
def test_the_command_names_what_is_not_the_default(constants, line):
    assert score.command(gan_mnist, Config(**constants)) == line


def test_the_table_has_a_row_for_each_command(tmp_path, capsys):
    for seed in range(3):
        folder = tmp_path / f"a_{seed}"
        folder.mkdir()
        model, real = {"log_likelihood": 220.0 + seed, "frechet": 3.0}, {"log_likelihood": 241.0, "frechet": 0.5}
        found = {"command": "python a.py", "model": "big", "seed": seed, "data": "mnist", "samples": model, "real": real}
        (folder / "scores.json").write_text(json.dumps(found))
        (folder / "metrics.csv").write_text("epoch,seconds\n1,30\n2,30\n")
    score.print_table(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| real images: mnist |  |  |  |  | 241.0 | 0.50 |  |  |  |  |"
    assert lines[3] == "| a | big | 0, 1, 2 | 2 | 1 | 221.0 (220.0 to 222.0) | 3.00 |  |  |  | `python a.py` |"
    assert len(lines) == 4
    (tmp_path / "a_1" / "metrics.csv").unlink()  # as of an epoch's generator that was measured by itself
    score.print_table(tmp_path)
    assert "| a | big | 0, 2 |" in capsys.readouterr().out
    (tmp_path / "a_2" / "scores.json").write_text("{")
    with pytest.raises(UserError, match="a_2/scores.json or the metrics.csv beside it can't be used"):
        score.print_table(tmp_path)


def test_the_readme_shows_the_table_of_the_committed_scores(shell, tmp_path):
    listed = subprocess.run(["git", "ls-files", "outputs/*/scores.json"], cwd=PROJECT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        (tmp_path / name).parent.mkdir(parents=True)
        for file in (Path(name), Path(name).with_name("metrics.csv")):  # as committed: a training of one's own replaces them
            with open(tmp_path / file, "wb") as copy:
                subprocess.run(["git", "show", f":{file}"], cwd=PROJECT, stdout=copy, check=True)
    status, said, _ = shell("score.py", "table", "--root", tmp_path)
    assert status == 0
    assert len(said.splitlines()) > 3
    assert said in (PROJECT / "README.md").read_text()


def test_a_generator_of_nothing_is_refused(few, tmp_path):
    generator = gan_mnist.make_generator(Config(model="leaky"))
    generator.layers[-1].bias.data[5] = torch.nan
    with pytest.raises(UserError, match="numbers that are not finite"):
        score.measure(model_file(tmp_path, model="leaky", weights_of=generator), "auto", seed=0)


def test_a_missing_classifier_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("utils.classifiers.FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"can't read the classifier .* python benchmarks/classifiers.py --data mnist"):
        load_classifier("mnist")


def test_no_scores_no_table(shell, tmp_path):
    status, _, said = shell("score.py", "table", "--root", tmp_path)
    assert_one_sentence(status, said, "no run with a scores.json")


@pytest.mark.parametrize(("name", "least"), [("mnist", 0.995), ("cifar10", 0.90)])
def test_the_classifiers_are_small_and_good(name, least):
    classifier, accuracy = load_classifier(name)
    assert accuracy >= least
    assert (PROJECT / "models" / "classifiers" / f"{name}.safetensors").stat().st_size < 4e6
    images = torch.randint(256, (3, *SHAPES[name]), dtype=torch.uint8)
    assert classifier(images).shape == (3, 10)
    assert classifier.features(images).dtype == torch.float32


def test_the_classifier_reads_digits(digits):
    classifier, _ = load_classifier("mnist")
    assert classifier(digits[:20]).argmax(1).tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9]
