import numpy as np
import pytest
import torch
from PIL import Image

from utils.film import GIF_BYTES, Film
from utils.images import captioned, grid, save_curves, save_gif, to_uint8
from utils.shell import UserError


def test_pixels_are_rounded_and_clipped():
    images = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(-1, 1, 1, 1)
    assert to_uint8(images, -1, 1).flatten().tolist() == [0, 0, 128, 191, 255, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_grid_goes_row_after_row(channels, mode):
    images = torch.arange(1, 7, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, channels, 4, 5)
    picture = grid(images, columns=4)
    assert picture.mode == mode
    assert picture.size == (4 * (5 + 2) + 2, 2 * (4 + 2) + 2)
    first = np.asarray(picture).reshape(picture.height, picture.width, channels)[:, :, 0]
    assert first[2:6, 2:7].tolist() == [[1] * 5] * 4
    assert first[8, 2 + 7] == 6
    assert first[:2].max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_keeps_its_frames_and_holds_the_last(tmp_path, channels):
    frames = [grid(torch.full((4, channels, 8, 8), value, dtype=torch.uint8)) for value in (50, 120, 250)]
    save_gif([captioned(frame, "epoch 1") for frame in frames], tmp_path / "a.gif", seconds=0.1, hold=1)
    gif = Image.open(tmp_path / "a.gif")
    durations, greys = [], []
    for number in range(gif.n_frames):
        gif.seek(number)
        durations.append(gif.info["duration"])
        greys.append(gif.convert("L").getpixel((5, 20)))
    assert durations == [100, 100, 1100]
    np.testing.assert_allclose(greys, [50, 120, 250], atol=9)  # half of the step between 16 shades


def test_a_gif_of_pictures_that_take_much_space_has_fewer_frames(tmp_path):
    film, rng = Film(tmp_path, tmp_path / "a.gif"), np.random.default_rng(0)
    for epoch in range(1, 46):
        film.add(Image.fromarray(rng.integers(0, 256, (274, 274, 3), np.uint8)), epoch)
    film.save(captions=True)
    gif = Image.open(tmp_path / "a.gif")
    assert (tmp_path / "a.gif").stat().st_size <= GIF_BYTES
    assert 10 <= gif.n_frames <= 30
    gif.seek(gif.n_frames - 1)
    last = captioned(Image.open(tmp_path / "epoch_0045.png"), "epoch 45")
    assert np.corrcoef(np.asarray(gif.convert("L")).ravel(), np.asarray(last.convert("L")).ravel())[0, 1] > 0.9  # 128 colours are few


def test_curves_are_drawn_without_a_display(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    (tmp_path / "metrics.csv").write_text("epoch,a,b\n1,0.5,2\n2,0.25,3\n")
    save_curves(tmp_path / "metrics.csv", {"one": {"a": "A"}, "two": {"b": "B"}}, {"a": ("log 2", 0.69)}, tmp_path / "curves.png")
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5


def test_a_column_with_gaps_is_drawn_and_an_empty_panel_is_not(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,a,b\n1,0.5,\n2,0.25,3\n3,0.25,\n4,0.2,2\n")
    panels = {"one": {"a": "A"}, "two": {"b": "B"}}
    save_curves(tmp_path / "metrics.csv", panels, {"b": ("real images", 2.5)}, tmp_path / "two.png")
    save_curves(tmp_path / "metrics.csv", panels | {"three": {"c": "C"}}, {}, tmp_path / "still_two.png")
    widths = [Image.open(tmp_path / name).width for name in ("two.png", "still_two.png")]
    assert widths == [2 * 5 * 120] * 2


def test_a_picture_too_wide_for_a_gif_is_refused(tmp_path):
    with pytest.raises(UserError, match="a.gif would be 65536 x 1 pixels, a GIF has at most 65,535"):
        save_gif([Image.new("L", (65_536, 1))], tmp_path / "a.gif")
