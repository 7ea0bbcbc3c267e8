import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils import data
from utils.shell import UserError

# Pictures of one's own -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_takes_images_of_any_size_and_mode(tmp_path, channels):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    modes = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]
    for number, mode in enumerate(modes):
        picture = Image.new("I;16", (40 + number, 9)) if mode == "I;16" else Image.new("RGB", (9, 40 + number)).convert(mode)
        picture.save(tmp_path / "deep" / "er" / f"{number}.{'jpg' if mode in ('CMYK', 'YCbCr') else 'png'}")
    (tmp_path / "notes.txt").write_text("no picture")
    found = data.load(str(tmp_path), 28, channels)
    assert found.images.shape == (len(modes), channels, 28, 28)
    assert found.images.dtype == torch.uint8
    assert found.labels is None


def test_folder_is_read_in_the_order_of_its_paths(digit_folder, digits):
    assert torch.equal(data.load(str(digit_folder), 28, 1).images, digits)


def test_the_centre_is_kept_and_the_shorter_side_resized(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:40, 1] = pixels[:, 40:, 2] = 255  # red, green, blue
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = data.load(str(tmp_path), 10, 3).images[0]
    assert image[1].float().mean() > 250
    assert image[[0, 2]].float().mean() < 5


def test_a_photograph_is_turned_upright(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left goes to the top
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = data.load(str(tmp_path), 8, 1).images[0, 0]
    assert (image[:4] == 255).all()
    assert (image[4:] == 0).all()


def test_sixteen_bits_keep_their_range_and_transparency_becomes_white(tmp_path):
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "b.png")
    images = data.load(str(tmp_path), 8, 1).images
    assert (images[0] == 128).all()
    assert (images[1] == 255).all()


def test_broken_images_are_named_counted_and_skipped(tmp_path, capsys):
    for name in ("a", "c"):
        Image.new("L", (9, 9)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    (tmp_path / "d.jpg").write_bytes(b"")
    assert len(data.load(str(tmp_path), 28, 1).images) == 2
    said = capsys.readouterr().err
    assert "skipped 2 of 4" in said
    assert "b.png, d.jpg" in said


def test_small_pictures_are_enlarged_and_counted_and_greys_become_colours(tmp_path, capsys):
    for name, size in (("a", (9, 40)), ("b", (32, 32)), ("c", (31, 31))):
        Image.new("L", size, 77).save(tmp_path / f"{name}.png")
    images = data.load(str(tmp_path), 32, 3).images
    assert images.shape == (3, 3, 32, 32)
    assert (images == 77).all()
    assert "enlarged 2 of 3 images" in capsys.readouterr().err
    assert len(data.load(str(tmp_path), 9, 3).images) == 3
    assert not capsys.readouterr().err


def test_what_should_not_be_opened_is_skipped(tmp_path, capsys):
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
        Image.new("L", (9, 9)).save(place / "a.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")  # 50 KB that would be 400 MB
    (folder / "empty.png").touch()
    (folder / "link.png").symlink_to(elsewhere / "a.png")
    (folder / "links").symlink_to(elsewhere)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "long.png").symlink_to("a" * 300)
    os.mkfifo(folder / "pipe.png")  # reading it would wait for ever
    (folder / "to_pipe.png").symlink_to(folder / "pipe.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes((folder / "a.png").read_bytes())
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.png")).write_bytes(b"no picture")
    assert len(data.load(str(folder), 28, 1).images) == 2
    said = capsys.readouterr().err
    assert "skipped 7 of 9" in said
    assert "bomb.png, empty.png, link.png, long.png, loop.png, to_pipe.png" in said


def test_no_program_is_started_on_a_picture(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")  # which a decoder of PostScript would start
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    for name in ("a.png", "b.eps"):
        (tmp_path / name).write_bytes(postscript)
    with pytest.raises(UserError, match=r"none of the 1 images .*a\.png"):
        data.load(str(tmp_path), 28, 1)
    assert not (tmp_path / "started").exists()


def test_a_folder_without_a_usable_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no images"):
        data.load(str(tmp_path), 28, 1)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of the 1 images .*a\.png"):
        data.load(str(tmp_path), 28, 1)


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="no data named 'mnits'.*fashion-mnist"):
        data.load("mnits", 28, 1)


# Batches -------------------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_each_image_once_and_no_short_batch():
    images = torch.arange(103, dtype=torch.uint8).view(-1, 1, 1, 1)
    batches = list(data.batches(images, 10, torch.Generator().manual_seed(0), 0, 255))
    assert [tuple(batch.shape) for batch in batches] == [(10, 1, 1, 1)] * 10
    seen = torch.cat(batches).flatten().tolist()
    assert len(set(seen)) == 100
    assert seen != sorted(seen)


def test_what_is_known_of_an_image_stays_beside_it():
    images = torch.arange(103, dtype=torch.uint8).view(-1, 1, 1, 1)
    labels = torch.arange(103) * 2
    for shown, beside in data.batches(images, 10, torch.Generator().manual_seed(0), 0, 255, beside=labels):
        assert (beside == 2 * shown.flatten()).all()


def test_a_seed_fixes_the_batches_on_every_machine():
    images = torch.arange(8, dtype=torch.uint8).view(-1, 1, 1, 1)
    rng = torch.Generator().manual_seed(3)
    epochs = [[int(value) for batch in data.batches(images, 4, rng, 0, 255) for value in batch.flatten()] for _ in range(2)]
    assert epochs == [[2, 4, 3, 5, 1, 0, 6, 7], [5, 6, 3, 7, 2, 4, 0, 1]]


def test_batches_are_scaled_to_the_range_asked_for():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(-1, 1, 1, 1)
    (batch,) = data.batches(images, 3, torch.Generator().manual_seed(0), -1, 1)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch.flatten().sort().values, torch.tensor([-1.0, -0.6, 1.0]))
