"""The benchmarks' arithmetic, on a few digits; their timings are for the machine that they run on."""

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import gan_mnist
from benchmarks import normal, precision, ring
from benchmarks.throughput import Stopwatch, flops_per_image, spread


@pytest.mark.parametrize("model", ["leaky", "maxout"])
def test_the_operations_needed_are_those_that_pytorch_counts(model, digit_folder, tmp_path, capsys):
    constants = {"model": model, "data": str(digit_folder), "root": str(tmp_path), "device": "cpu", "epochs": 1, "batch_size": 50}
    with FlopCounterMode(display=False) as counter:
        gan_mnist.train(gan_mnist.Config(**constants))
    trained = len(list(digit_folder.iterdir())) // 50 * 50
    picture = 100 * 2 * (100 * 1200 + 1200 * 1200 + 1200 * 784)
    counted = (counter.get_total_flops() - picture) / trained
    # The paper's one backward pass for G goes through D's real half too, where the gradient is 0: not needed, but counted.
    zeros = 2 * (784 * 1200 + 240 * 1200 + 240) if model == "maxout" else 0
    assert counted == flops_per_image(model) + zeros


def test_the_stopwatch_sees_backward_operations_too():
    weight = torch.ones(2, 2, requires_grad=True)
    with Stopwatch() as stopwatch:
        (weight @ weight).sum().backward()
    assert stopwatch.calls["mm"] == 3  # one forwards, two backwards
    assert stopwatch.seconds["mm"] > 0


def test_a_spread_is_a_median_and_a_range():
    assert spread([3.0, 1.0, 20.0], ".1f") == "3.0 (1.0-20.0)"


def test_the_comparison_of_precisions_pairs_each_column_with_its_own(digit_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "pick_precision", lambda *_: ("fp32", ""))
    with pytest.raises(precision.UserError, match="nothing to compare"):
        precision.main(precision.Comparison())
    monkeypatch.setattr(precision, "pick_precision", lambda *_: ("bf16", ""))
    with pytest.raises(precision.UserError, match="seeds is 1, expected at least 2"):
        precision.main(precision.Comparison(seeds=1))
    precision.main(precision.Comparison("leaky", epochs=1, seeds=2, data=str(digit_folder), out=tmp_path / "grids.png"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == ["seed", "---", "0", "1", "mean", "standard deviation"]
    for row in rows[2:4]:
        values = [float(value) for value in row[1:]]
        # One step apart by rounding alone: far closer than one column is to the next.
        assert values[:3] == pytest.approx(values[3:], abs=0.02)
        assert len(set(values[:3])) == 3
    first, second, mean = (float(rows[number][1]) for number in (2, 3, 4))
    assert mean == pytest.approx((first + second) / 2, abs=0.001)
    with Image.open(tmp_path / "grids.png") as page:
        assert min(page.size) > 2 * 280  # two precisions across, two seeds down


def cells(said):
    """The rows of a Markdown table, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()[2:]]


def test_the_table_of_the_cures_has_a_row_for_each(monkeypatch, capsys):
    monkeypatch.setattr(normal, "last_row", lambda _, seed, **c: {"w1": 0.01 * seed, "ks": 0.5, "std": 1.0 + seed, "seconds": 3.0, **c})
    normal.main(normal.Table(seeds=3))
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(normal.ROWS)
    assert rows[0][1:] == ["0.0100", "0.0200", "0.5000", "0.5000", "1.000-3.000", "3.0", "3.0"]
    with pytest.raises(normal.UserError, match="no row named luck"):
        normal.main(normal.Table(rows=("normal", "luck")))


def test_a_row_is_of_a_real_run():
    last = normal.last_row(normal.gan_normal, epochs=1, batch_size=32, target="uniform")
    assert last["epoch"] == 1
    assert 0 < last["ks"] < 1


def test_the_table_of_the_ring_names_each_seeds_modes(monkeypatch, capsys):
    monkeypatch.setattr(ring, "last_row", lambda _, seed, **__: {"modes": 8.0 - seed, "high_quality": 0.9 + seed / 100, "seconds": 20.0})
    ring.main(ring.Table(seeds=3))
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(ring.ROWS)
    assert rows[0][1:] == ["8 7 6", "91.0%", "90.0%", "20.0"]
    with pytest.raises(normal.UserError, match="no row named luck"):
        ring.main(ring.Table(rows=("luck",)))
