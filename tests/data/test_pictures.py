"""Image files to pixels."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onelayer.core.errors import InputError
from onelayer.data.read import shapes
from onelayer.data.read.images import find_images, read_image


def picture(x):
    """An image of a row of CIFAR-10."""
    return Image.fromarray(x.reshape(3, 32, 32).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif"])
def test_a_picture_of_32_pixels_keeps_its_bytes(tmp_path, suffix):
    for i, x in enumerate(shapes.make(3, 0).x):
        path = tmp_path / f"{i}{suffix}"
        picture(x).save(path)
        assert torch.equal(read_image(path), x)


def test_jpegs_lose_little(tmp_path):
    ramp = np.arange(32, dtype=np.uint8) * 8
    smooth = torch.from_numpy(np.stack([np.tile(ramp, 32), np.repeat(ramp, 32), [90] * 1024]))
    smooth = smooth.to(torch.uint8).flatten()
    picture(smooth).save(tmp_path / "a.JPEG", quality=95)
    assert (read_image(tmp_path / "a.JPEG").int() - smooth.int()).abs().max() < 16


def test_a_large_picture_is_averaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (320, 640, 3), dtype=np.uint8)
    noise[:, 320:] //= 2
    Image.fromarray(noise).save(tmp_path / "a.png")
    x = read_image(tmp_path / "a.png").reshape(3, 32, 32).double()
    left, right = x[:, :, :14], x[:, :, 18:]
    assert abs(left.mean() - 127.5) < 3
    assert abs(right.mean() - 63.5) < 3
    assert left.std() < 15  # of 74: a pixel picked out of each would keep all of it


def test_a_picture_of_one_pixel_is_spread(tmp_path):
    Image.new("RGB", (1, 1), (10, 200, 30)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").reshape(3, -1).unique(dim=1).tolist() == [
        [10],
        [200],
        [30],
    ]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 128), (10, 20, 30)),
        ("LA", (40, 0), (40, 40, 40)),
        ("P", 1, None),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_other_colour_formats(tmp_path, mode, colour, expected):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image = Image.new(mode, (40, 20), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 8, 7])
        image.info["transparency"] = b"\x00\x80"
        expected = (9, 8, 7)
    image.save(path)
    assert tuple(read_image(path).reshape(3, 1024).unique(dim=1).flatten().tolist()) == expected


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    image = Image.new("RGB", (32, 32))
    image.paste((255, 0, 0), (0, 0, 32, 16))  # red above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    red = read_image(tmp_path / "a.png").reshape(3, 32, 32)[0]
    assert (int(red[:16].sum()), int(red[16:].min())) == (0, 255)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_photo_with_a_damaged_exif_block_is_read_as_it_is(tmp_path, exif, suffix):
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / f"a{suffix}", exif=exif)
    red = read_image(tmp_path / f"a{suffix}").reshape(3, -1)[0]
    assert int(red.min()) > 250


# ---- finding


def test_files_and_folders_are_listed_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.txt", ".hidden.png", "z"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
    named = tmp_path / "folder" / "z"
    found = find_images([str(named), str(tmp_path / "folder")])
    assert [path.name for path in found] == ["z", "a.JPG", "b.png", "c.webp"]


def test_nothing_to_find_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"missing\.png does not exist"):
        find_images([str(tmp_path / "missing.png")])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=rf"{tmp_path} holds no image file .*\.png"):
        find_images([str(tmp_path)])
    with pytest.raises(InputError, match=r"--data\.images"):
        find_images([])


# ---- files that are none


@given(st.binary(max_size=100), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"]))
def test_random_bytes_are_refused_by_name(content, magic):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.png")
        path.write_bytes(magic + content)
        with pytest.raises(InputError, match=r"random\.png cannot be read as an image") as caught:
            read_image(path)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_pictures_are_refused_by_name(tmp_path):
    whole = tmp_path / "whole.png"
    picture(shapes.make(1, 0).x[0]).save(whole)
    path = tmp_path / "damaged.png"
    flipped = bytearray(whole.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    for content in (whole.read_bytes()[:-200], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged\.png cannot be read"):
            read_image(path)


@pytest.mark.filterwarnings("ignore")  # whatever the user's filters are
def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png .* exceeds limit"):
        read_image(tmp_path / "large.png")


def test_a_file_of_another_format_is_refused_unread_whatever_its_name(tmp_path):
    """Pillow would hand it to Ghostscript."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png cannot be read .*: cannot identify image file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_of_sixteen_bits_is_scaled_to_bytes(tmp_path, suffix):
    level = np.array([0, 257, 40000, 65407, 65535], np.uint16)
    Image.fromarray(np.repeat(level, 5).reshape(5, 5)).save(tmp_path / f"deep{suffix}")
    x = read_image(tmp_path / f"deep{suffix}", (1, 5, 5)).reshape(5, 5)
    assert x[:, 0].tolist() == [0, 1, 156, 255, 255]
    assert read_image(tmp_path / f"deep{suffix}").shape == (3072,)


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_of_32_bits_are_refused(tmp_path, dtype, mode):
    Image.fromarray(np.full((32, 32), 40000, dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match=rf"deep\.tif .* {mode}, numbers of 32 bits: 8 or 16"):
        read_image(tmp_path / "deep.tif")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    paths = find_images([str(tmp_path / "a.png")])
    with pytest.raises(InputError, match=r"a\.png cannot be read .* no regular file"):
        read_image(paths[0])
