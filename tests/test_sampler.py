import numpy as np
import pytest
import torch
from conftest import assert_one_sentence
from PIL import Image

import dcgan_cifar10
import gan_cifar10_conv
import gan_normal
import gan_ring
import sampler
from gan_mnist import Config, make_generator
from utils.models import save_generator


@pytest.fixture(params=["batchnorm", "leaky"])
def weights(request, tmp_path):
    torch.manual_seed(0)
    config = Config(model=request.param)
    save_generator(tmp_path / "a.safetensors", make_generator(config), "gan_mnist", config)
    return tmp_path / "a.safetensors"


def test_grid_writes_a_png_that_the_seed_decides(weights, tmp_path, shell):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / f"{name}.png"
        status, said, _ = shell("sampler.py", "grid", weights, "--seed", seed, "--rows", 2, "--columns", 5, "--out", out)
        assert (status, said.strip()) == (0, str(out))
    assert Image.open(tmp_path / "a.png").size == (5 * 30 + 2, 2 * 30 + 2)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("experiment", "constants"),
    [(dcgan_cifar10, {"base": 2}), (dcgan_cifar10, {"recipe": "paper", "base": 2}), (gan_cifar10_conv, {"hidden": 4, "maps": 2})],
)
def test_colour_photographs_are_sampled_too(experiment, constants, tmp_path, shell):
    config = experiment.Config(**constants)
    save_generator(tmp_path / "a.safetensors", experiment.make_generator(config), experiment.__name__, config)
    outs = {name: tmp_path / name for name in ("grid.png", "walk.gif", "samples.npz")}
    assert shell("sampler.py", "grid", tmp_path / "a.safetensors", "--out", outs["grid.png"])[0] == 0
    assert shell("sampler.py", "interpolate", tmp_path / "a.safetensors", "--points", 2, "--steps", 2, "--out", outs["walk.gif"])[0] == 0
    assert shell("sampler.py", "export", tmp_path / "a.safetensors", "--count", 7, "--out", outs["samples.npz"])[0] == 0
    assert Image.open(outs["grid.png"]).size == (10 * 34 + 2, 10 * 34 + 2)
    assert Image.open(outs["grid.png"]).mode == "RGB"
    assert Image.open(outs["walk.gif"]).n_frames == 4
    found = np.load(outs["samples.npz"])
    assert (found["images"].shape, found["images"].dtype) == ((7, 32, 32, 3), np.uint8)
    assert ("labels" in found) == (constants == {"base": 2})  # which is told classes


def test_a_row_shows_a_class_and_a_column_one_noise(tmp_path, shell):
    config, out = dcgan_cifar10.Config(base=2), tmp_path / "classes.png"
    generator = dcgan_cifar10.make_generator(config)
    for layer in generator.layers:
        if isinstance(layer, dcgan_cifar10.ClassNorm):
            torch.nn.init.normal_(layer.of_class)
    save_generator(tmp_path / "a.safetensors", generator, "dcgan_cifar10", config)
    assert shell("sampler.py", "classes", tmp_path / "a.safetensors", "--columns", 3, "--out", out)[0] == 0
    picture = np.asarray(Image.open(out))
    assert picture.shape == (10 * 34 + 2, 3 * 34 + 2, 3)
    noise = sampler.latents(generator, 3, 0)[:, :100]
    (third,) = sampler.images(generator.eval(), dcgan_cifar10.with_class(noise[1:2], torch.tensor([2]), 10))
    assert (picture[2 * 34 + 2 :, 34 + 2 :][:32, :32] == third.permute(1, 2, 0).numpy()).all()
    config = dcgan_cifar10.Config(base=2, labels=False)
    save_generator(tmp_path / "b.safetensors", dcgan_cifar10.make_generator(config), "dcgan_cifar10", config)
    assert_one_sentence(*shell("sampler.py", "classes", tmp_path / "b.safetensors")[::2], "isn't told classes")


def test_without_out_the_results_lie_with_the_runs(weights, tmp_path, shell, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shell("sampler.py", "grid", weights)[0] == 0
    assert shell("sampler.py", "interpolate", weights, "--points", 2, "--steps", 2)[0] == 0
    assert (tmp_path / "outputs" / "a" / "grid.png").exists()
    assert (tmp_path / "gif" / "a_interpolation.gif").exists()


def test_the_walk_closes_without_a_jump(weights, tmp_path, shell):
    out = tmp_path / "walk.gif"
    assert shell("sampler.py", "interpolate", weights, "--rows", 1, "--columns", 2, "--points", 3, "--steps", 5, "--out", out)[0] == 0
    gif = Image.open(out)
    assert gif.n_frames == 15
    assert gif.info["loop"] == 0
    frames = []
    for number in range(gif.n_frames):
        gif.seek(number)
        frames.append(np.asarray(gif.convert("L"), dtype=float))
    moves = [np.abs(b - a).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert moves[-1] <= 1.5 * max(moves[:-1])
    assert max(moves) > 0


def test_the_way_between_points_stays_where_the_noise_lives():
    torch.manual_seed(0)
    a, b = torch.randn(2, 50, 100)
    for share in (0.0, 0.3, 0.5, 0.9):
        lengths = sampler.between(a, b, share, "normal").norm(dim=1)
        assert (lengths > 0.9 * torch.minimum(a.norm(dim=1), b.norm(dim=1))).all()
    torch.testing.assert_close(sampler.between(a, b, 0.0, "normal"), a)
    torch.testing.assert_close(sampler.between(a, b, 0.25, "uniform"), 0.75 * a + 0.25 * b)


def test_export_gives_the_same_bytes_whatever_the_batch_size(weights, tmp_path, shell, monkeypatch):
    for name, count in (("a.npz", 130), ("b.NPZ", 130), ("few.npz", 7)):
        assert shell("sampler.py", "export", weights, "--count", count, "--seed", 3, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.NPZ").read_bytes()
    everything = np.load(tmp_path / "a.npz")["images"]
    assert everything.shape == (130, 28, 28, 1)
    assert everything.dtype == np.uint8
    assert np.array_equal(np.load(tmp_path / "few.npz")["images"], everything[:7])
    generator = sampler.load(weights)[2]
    z = sampler.latents(generator, 130, 3)
    for batch_size in (1, 33, 130):
        assert np.array_equal(sampler.images(generator, z, batch_size).permute(0, 2, 3, 1).numpy(), everything)


def test_export_writes_pngs_into_a_folder(weights, tmp_path, shell):
    assert shell("sampler.py", "export", weights, "--count", 3, "--out", f"{tmp_path}/pngs/")[0] == 0
    assert shell("sampler.py", "export", weights, "--count", 3, "--out", tmp_path / "a.npz")[0] == 0
    names = sorted(path.name for path in (tmp_path / "pngs").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]
    assert_one_sentence(*shell("sampler.py", "export", weights, "--count", 2, "--out", tmp_path / "pngs")[::2], "has pictures in it")
    pictures = np.stack([np.asarray(Image.open(tmp_path / "pngs" / name)) for name in names])
    assert np.array_equal(pictures[..., None], np.load(tmp_path / "a.npz")["images"])


@pytest.fixture(params=[(gan_normal, 1), (gan_ring, 2)], ids=["gan_normal", "gan_ring"])
def points(request, tmp_path):
    """An untrained generator of points, and how many dimensions they have."""
    module, dimensions = request.param
    torch.manual_seed(0)
    generator = module.make_generator(module.Config())
    save_generator(tmp_path / "a.safetensors", generator, module.__name__, module.Config())
    return tmp_path / "a.safetensors", dimensions


def test_a_generator_of_points_is_drawn_over_its_target(points, tmp_path, shell):
    assert shell("sampler.py", "grid", points[0], "--out", tmp_path / "a.png")[0] == 0
    assert np.asarray(Image.open(tmp_path / "a.png").convert("L")).std() > 5


def test_export_of_points(points, tmp_path, shell):
    weights, dimensions = points
    for name, count in (("a.npz", 200), ("b.npz", 200), ("few.npz", 7)):
        assert shell("sampler.py", "export", weights, "--count", count, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    samples = np.load(tmp_path / "a.npz")["samples"]
    assert samples.shape == (200, dimensions)
    assert samples.dtype == np.float32
    assert samples.std(axis=0).min() > 0
    assert np.array_equal(np.load(tmp_path / "few.npz")["samples"], samples[:7])


def test_points_are_neither_walked_through_nor_written_as_pngs(points, tmp_path, shell):
    assert_one_sentence(*shell("sampler.py", "interpolate", points[0], "--out", tmp_path / "a.gif")[::2], "makes points, not images")
    assert_one_sentence(*shell("sampler.py", "export", points[0], "--out", f"{tmp_path}/pngs/")[::2], "makes points, not images")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grid", "{weights}", "--rows", 0], "rows is 0"),
        (["interpolate", "{weights}", "--steps", -1], "steps is -1"),
        (["export", "{weights}", "--count", 0, "--out", "{folder}/a.npz"], "count is 0"),
        (["export", "{weights}", "--out", "{folder}/a.jpg"], "ends in .npz"),
        (["grid", "{weights}", "--out", "{folder}/a"], "ends in .png"),
        (["interpolate", "{weights}", "--out", "{folder}/a.png"], "ends in .gif"),
        (["grid", "{weights}", "--seed", -1], "seed is -1"),
        (["grid", "{folder}/none.safetensors"], "no file"),
        (["grid", "{weights}", "--out", "/dev/null/a.png"], "can't write"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(weights, tmp_path, shell, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    status, _, said = shell("sampler.py", *(str(a).format(weights=weights, folder=tmp_path) for a in arguments))
    assert_one_sentence(status, said, words)
    assert set(tmp_path.iterdir()) == before
