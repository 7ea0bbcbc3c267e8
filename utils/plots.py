"""Densities and points, drawn as pictures; no display is needed."""

from typing import Any

import numpy as np
from PIL import Image

DATA, FAKE, JUDGE = "black", "tab:green", "tab:blue"  # the colours of the paper's Figure 1


def axis(samples: np.ndarray, points: int = 200) -> np.ndarray:
    """Evenly spaced places to draw a density at, wide enough for these samples (N numbers) and some that err."""
    low, high = np.quantile(samples, [0.0005, 0.9995])
    return np.linspace(low - 0.25 * (high - low), high + 0.25 * (high - low), points)


def estimate(x: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """A kernel estimate, at evenly spaced places x, of the density that samples (N numbers) have: Gaussians two places wide."""
    from scipy.ndimage import gaussian_filter1d

    step = x[1] - x[0]
    counts = np.histogram(samples, np.append(x, x[-1] + step) - step / 2)[0]
    return gaussian_filter1d(counts / (len(samples) * step), 2, mode="constant")


def game(
    x: np.ndarray, data: np.ndarray, fakes: np.ndarray, d: np.ndarray, best_d: np.ndarray, z: np.ndarray, carried: np.ndarray, title: str
) -> Image.Image:
    """Goodfellow et al. 2014, Figure 1: at the places x, the densities of data and fakes, D and the best D (NaN: not drawn); below
    them lines from z, each to where the generator carries it.
    """
    figure, (above, below) = _figure(2, (5, 4.4), right=0.93, hspace=0.13, height_ratios=(3, 1))
    above.plot(x, data, color=DATA, linestyle=":", linewidth=2, label="data")
    above.plot(x, fakes, color=FAKE, label="generator")
    above.set(xlim=(x[0], x[-1]), ylim=(0, 1.5 * data.max()), yticks=[], title=title)
    judge = above.twinx()
    judge.plot(x, d, color=JUDGE, linestyle="--", label="D")
    judge.plot(x, best_d, color=JUDGE, alpha=0.35, linewidth=3, label="best D")
    judge.set(ylim=(0, 1.2), yticks=[0, 0.5, 1])  # the legend lies above
    judge.tick_params(colors=JUDGE)
    lines = [*above.get_lines(), *judge.get_lines()]
    above.legend(lines, [line.get_label() for line in lines], loc="upper center", ncols=4, frameon=False, fontsize=8)
    from_z = np.interp(z, (z.min(), z.max()), (x[0], x[-1]))
    below.plot([carried, from_z], [np.ones_like(z), np.zeros_like(z)], color="gray", linewidth=0.7)
    below.set(xlim=(x[0], x[-1]), ylim=(0, 1), yticks=[0, 1], yticklabels=["z", "x"], xticks=[])
    return _image(figure)


def histogram(x: np.ndarray, density: np.ndarray, samples: np.ndarray, title: str) -> Image.Image:
    """A histogram of samples (N numbers) over a density at the places x; the title says how many lie beyond these."""
    beyond = np.mean((samples < x[0]) | (samples > x[-1]))
    figure, (axes,) = _figure(1, (5, 3.2))
    bins = np.linspace(x[0], x[-1], 101)
    heights = np.histogram(samples, bins)[0] / (len(samples) * (bins[1] - bins[0]))
    axes.stairs(heights, bins, fill=True, color=FAKE, alpha=0.5)
    axes.plot(x, density, color=DATA, linestyle=":", linewidth=2)
    axes.set(yticks=[], xlim=(x[0], x[-1]))
    axes.set_title(title + (f" ({beyond:.1%} lie outside)" if beyond >= 0.0005 else ""), fontsize=10)
    return _image(figure)


def plane(points: np.ndarray, targets: np.ndarray, landscape: np.ndarray | None, reach: float, title: str) -> Image.Image:
    """Points (N x 2) over targets (M x 2) in the square of +-reach; behind them D's landscape, in [0, 1], its lowest row first."""
    figure, (axes,) = _figure(1, (4, 4.2), right=0.97, left=0.03, bottom=0.03)
    if landscape is not None:
        levels = np.linspace(0, 1, 11)  # few, because smooth shades would make a GIF large
        ticks = np.linspace(-reach, reach, len(landscape))
        axes.contourf(ticks, ticks, landscape, levels=levels, cmap="Blues")
    axes.plot(*targets.T, linestyle="", marker="o", markersize=14, markerfacecolor="none", color=DATA)
    axes.plot(*points.T, linestyle="", marker=".", markersize=2, color=FAKE)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    return _image(figure)


def _figure(rows: int, inches: tuple[float, float], **layout: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # here, because it takes half a second that no other run should start with

    figure = Figure(figsize=inches, dpi=100)
    axes = figure.subplots(rows, 1, squeeze=False, gridspec_kw={"left": 0.05, "right": 0.97, "top": 0.92, "bottom": 0.08} | layout)[:, 0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _image(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())
