"""Densities and points as pictures: each curve is where it belongs, and nothing needs a display."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT
from matplotlib.colors import to_rgb
from scipy import stats

from utils import plots

X = np.linspace(-4, 4, 161)
NORMAL = stats.norm.pdf(X)


def places(picture, color):
    """The rows and columns of a picture's pixels that have this colour, or nearly."""
    return np.nonzero(np.abs(np.asarray(picture, float) - 255 * np.array(to_rgb(color))).max(axis=2) < 24)


def test_an_estimate_is_near_the_density_and_keeps_its_mass():
    found = plots.estimate(X, stats.norm.rvs(size=100_000, random_state=np.random.default_rng(0)))
    # A Gaussian two places wide (0.1) makes the deviation 1.005; the counts of a place err by 1% at the top.
    np.testing.assert_allclose(found, NORMAL, atol=0.012)
    assert found.sum() * (X[1] - X[0]) == pytest.approx(1, abs=0.001)


def test_an_estimate_of_one_repeated_number_is_one_bump():
    found = plots.estimate(X, np.full(1000, 1.0))
    assert X[found.argmax()] == pytest.approx(1)
    assert found[np.abs(X - 1) > 0.6].max() < 1e-6


def game(**changes):
    half = np.full_like(X, 0.5)
    z = np.linspace(-1, 1, 9)
    curves = {"x": X, "data": NORMAL, "fakes": NORMAL, "d": half, "best_d": half}
    return plots.game(**{**curves, "z": z, "carried": 3 * z, "title": "", **changes})


def test_the_game_shows_fakes_and_d():
    left, right = (game(fakes=stats.norm.pdf(X, mean, 0.5)) for mean in (-2, 2))
    assert places(left, plots.FAKE)[1].mean() < 250 < places(right, plots.FAKE)[1].mean()  # the legend is in both
    low, high = (game(d=np.full_like(X, level), best_d=np.full_like(X, np.nan)) for level in (0.1, 0.9))
    assert np.median(places(low, plots.JUDGE)[0]) > np.median(places(high, plots.JUDGE)[0]) + 100
    assert np.any(np.asarray(game(best_d=np.full_like(X, 0.1))) != np.asarray(game()))


def test_the_lines_lead_from_z_to_x():
    to_one_point = np.asarray(game(carried=np.full(9, 2.0)).convert("L"))
    near_x, near_z = (np.nonzero(to_one_point[row, 40:] < 200)[0] for row in (330, 390))
    assert np.ptp(near_x) < np.ptp(near_z) / 3  # x is above, where the lines meet


def test_a_histogram_stands_for_the_share_and_tells_what_lies_outside(monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "_image", lambda figure: titles.append(figure.axes[0]) or figure)
    samples = np.concatenate([stats.norm.rvs(size=9_900, random_state=np.random.default_rng(0)), np.full(100, 9.0)])
    plots.histogram(X, NORMAL, samples, "samples")
    axes = titles[0]
    assert axes.get_title() == "samples (1.0% lie outside)"
    heights, edges, _ = axes.patches[0].get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(0.99, abs=0.001)


def test_a_plane_has_its_points_and_its_landscape_the_right_way_up():
    rising = np.tile(np.linspace(0, 1, 21)[:, None], (1, 21))  # the lowest row first: it is dark, and so real, at the top
    picture = plots.plane(np.array([[-1.0, 0.0]]), np.array([[1.0, 1.0]]), rising, 3.0, "")
    grey = np.asarray(picture.convert("L"), float)
    height = len(grey)
    assert grey[height // 4 : height // 3].mean() < grey[-height // 3 : -height // 4].mean() - 20
    _, columns = places(plots.plane(np.array([[-1.0, 0.0]]), np.zeros((0, 2)), None, 3.0, ""), plots.FAKE)
    assert columns.mean() == pytest.approx(picture.width / 3, abs=8)  # at -1 of -3 to 3


def test_nothing_needs_a_display():
    """Every kind of plot in a new process that has no display and is told to use a window."""
    script = (
        "import sys, numpy as np; from utils import plots; x = np.linspace(0, 1, 20)\n"
        "plots.game(x, x, plots.estimate(x, x), x, x, x, x, ''); plots.histogram(x, x, x, '')\n"
        "plots.plane(np.eye(2), np.eye(2), None, 1, '')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, env={"MPLBACKEND": "TkAgg"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
