"""The scripts as people start them."""

import os
import subprocess
import sys

import pytest
from conftest import PROJECT, assert_one_sentence


def test_train_then_sample(process, digit_folder, tmp_path):
    trained = process("gan_mnist.py", "--data", digit_folder, "--epochs", 1, "--root", tmp_path, cwd=tmp_path)
    _, err = trained.communicate(timeout=120)
    assert trained.returncode == 0, err
    sampled = process("sampler.py", "grid", tmp_path / "models/gan_mnist_batchnorm.safetensors", cwd=tmp_path)
    assert sampled.communicate(timeout=120)[0].strip() == "outputs/gan_mnist_batchnorm/grid.png"
    assert (tmp_path / "outputs/gan_mnist_batchnorm/grid.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "dcgan"], ["no model named 'dcgan'", "maxout, batchnorm, leaky"]),
        (["--data", "mnits"], ["no data named 'mnits'", "fashion-mnist"]),
        (["--data", ""], ["no data named ''"]),
        (["--epochs", "0"], ["epochs is 0"]),
        (["--learning-rate", "-1"], ["learning_rate is -1"]),
        (["--batch-size", "-5"], ["batch_size is -5"]),
        (["--device", "cuda:77"], ["no device cuda:77", "--device auto"]),
        (["--precision", "fp8"], ["no precision named 'fp8'"]),
        (["--root", "/dev/null/x"], ["can't write to", "/dev/null/x"]),
    ],
)
def test_bad_constants_end_with_one_sentence(shell, digit_folder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, _, said = shell("gan_mnist.py", "--data", digit_folder, *arguments)
    assert_one_sentence(status, said, *words)
    assert not list(tmp_path.iterdir())


def test_bad_files_end_with_one_sentence_too(process, tmp_path):
    (tmp_path / "data/MNIST/raw").mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / "data/MNIST/raw" / name).write_bytes(b"truncated")
    (tmp_path / "a.safetensors").write_bytes(b"truncated")
    environment = {key: value for key, value in os.environ.items() if key != "GAN_DATA"}
    trained = process("gan_mnist.py", cwd=tmp_path, env=environment)
    assert_one_sentence(trained.wait(60), trained.stderr.read(), "train-images-idx3-ubyte is damaged", "delete it")
    sampled = process("sampler.py", "grid", "a.safetensors", cwd=tmp_path)
    assert_one_sentence(sampled.wait(60), sampled.stderr.read(), "a.safetensors is no whole file of weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "data"]


def test_what_is_no_number_is_refused_too(shell):
    status, _, said = shell("gan_mnist.py", "--epochs", "many")
    assert status == 2
    assert "--epochs" in said
    assert "Traceback" not in said


def test_help_explains_every_constant(shell):
    status, said, _ = shell("gan_mnist.py", "--help")
    assert status == 0
    for word in ("--model", "--epochs", "--data", "--learning-rate", "Passes over the training images", "--keep-every", "--resume"):
        assert word in said


def test_importing_does_nothing(tmp_path):
    code = "import gan_mnist, sampler; from pathlib import Path; print(len(list(Path('.').iterdir())))"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    assert done.stderr == ""
