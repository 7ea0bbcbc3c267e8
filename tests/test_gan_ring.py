"""The ring of eight Gaussians: how its modes are counted, and a short run."""

import csv

import numpy as np
import pytest
from conftest import assert_one_sentence
from PIL import Image

from gan_ring import MODES, Config, coverage, ring, train


def test_the_ring_itself_is_covered():
    found = coverage(ring(20_000, np.random.default_rng(0)))
    assert found["modes"] == 8
    # Of a Gaussian in the plane 1 - exp(-9/2) lies within 3 deviations.
    assert found["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=4 * (0.989 * 0.011 / 20_000) ** 0.5)


def test_a_mode_counts_from_a_quarter_of_its_share():
    far = np.full((1000, 2), 9.0)
    points = far.copy()
    points[:500] = MODES[0] + [0.059, 0]  # just within 3 deviations
    points[500:532] = MODES[1]  # a quarter of its share is 31.25
    points[532:563] = MODES[2]  # which 31 is not
    points[563:600] = MODES[3] + [0.061, 0]  # just outside
    assert coverage(points) == {"modes": 2, "high_quality": pytest.approx(0.563)}
    assert coverage(far) == {"modes": 0, "high_quality": 0}


def test_a_run_leaves_what_it_promises(tmp_path):
    train(Config(root=str(tmp_path), epochs=2, batch_size=64, device="cpu"))
    outputs = tmp_path / "outputs" / "gan_ring"
    with open(outputs / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["epoch", "loss_d", "loss_g", "modes", "high_quality", "seconds", "samples_per_second"]
    for picture in ("real.png", "curves.png", "epoch_0002.png"):
        assert np.asarray(Image.open(outputs / picture).convert("L")).std() > 5
    assert (tmp_path / "gif" / "gan_ring.gif").exists()
    assert (tmp_path / "models" / "gan_ring.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--noise", -1], "noise is -1"), (["--cooling", 0], "cooling is 0"), (["--epochs", -1], "epochs is -1")]
)
def test_bad_constants_are_refused_in_one_sentence(tmp_path, shell, arguments, words):
    status, _, said = shell("gan_ring.py", "--root", tmp_path, *arguments)
    assert_one_sentence(status, said, words)
    assert not list(tmp_path.iterdir())
