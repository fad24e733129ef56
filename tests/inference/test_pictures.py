"""Pictures are what a viewer shows, or refused with their name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from vlmfix.inference.pictures import open_images

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def levels(image: Any) -> np.ndarray:
    """What is shown, `(height, width, 3)`."""
    [shown] = open_images(image)
    assert shown.mode == "RGB"
    return np.asarray(shown)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "png", "pgm", "tiff", "F", "float.tiff"])
def test_ramps_of_more_bits(kind: str, tmp_path: Path) -> None:
    wide = Image.fromarray(RAMP.astype(np.uint16) * 257)
    if kind.startswith("I;16"):
        dtype = ">u2" if kind.endswith("B") else "<u2"
        image: Any = Image.frombytes(kind, (16, 16), (RAMP.astype(np.uint16) * 257).astype(dtype).tobytes())
    elif kind in ("F", "float.tiff"):
        image = Image.fromarray(RAMP.astype(np.float32) / 255)
    else:
        image = wide
    if "." in kind or kind in ("png", "pgm", "tiff"):
        path = tmp_path / f"ramp.{kind}"
        image.save(path)
        image = path
    assert np.array_equal(levels(image), grey(RAMP))


def test_range_that_nobody_knows(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 80.5]], dtype=np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(ValueError, match=r"depth.tiff' holds floating-point numbers from 0 to 80.5"):
        open_images(tmp_path / "depth.tiff")
    with pytest.raises(ValueError, match="numbers from nan"):
        open_images(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)))
    with pytest.raises(ValueError, match=r"the picture \(I, 2 x 1 pixels\) holds .* from 0 to 300"):
        open_images(Image.fromarray(np.array([[0, 300]], dtype=np.int32)))


def test_white_that_is_zero(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP.astype(np.uint16) * 257)
    image.save(tmp_path / "inverted.tiff", tiffinfo={262: 0})
    assert np.array_equal(levels(tmp_path / "inverted.tiff"), grey(255 - RAMP))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    hidden = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    hidden.putpixel((0, 0), (200, 0, 0, 0))
    shown = [[[255, 255, 255], [10, 20, 30]]]
    assert levels(hidden).tolist() == shown
    assert levels(hidden.convert("RGBa")).tolist() == shown
    hidden.save(tmp_path / "hidden.png")
    hidden.convert("P").save(tmp_path / "palette.png", transparency=hidden.convert("P").getpixel((0, 0)))
    assert levels(tmp_path / "hidden.png").tolist() == shown
    assert levels(tmp_path / "palette.png")[0, 0].tolist() == [255] * 3
    for mode in ("L", "P", "La"):
        both = Image.new(mode[0], (2, 1), 1 if mode == "P" else 40)
        if mode == "P":
            both.putpalette([0, 0, 0, 40, 40, 40])
        both.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
        assert both.mode == f"{mode[0]}A"
        assert (
            levels(both.convert("La") if mode == "La" else both).tolist()
            == grey(np.array([[255, 40]])).tolist()
        )
    four = png(2, 1, 4, 0, b"\x00\x3a", chunk(b"tRNS", struct.pack(">H", 3)))
    (tmp_path / "four.png").write_bytes(four)
    assert levels(tmp_path / "four.png").tolist() == grey(np.array([[255, 170]])).tolist()
    sixteen = png(2, 1, 16, 0, b"\x00" + struct.pack(">HH", 770, 1285), chunk(b"tRNS", b"\x03\x02"))
    (tmp_path / "sixteen.png").write_bytes(sixteen)
    assert levels(tmp_path / "sixteen.png").tolist() == grey(np.array([[255, 5]])).tolist()
    colour = png(1, 1, 16, 2, b"\x00" + b"\x01\x02" * 3, chunk(b"tRNS", b"\x01\x02" * 3))
    (tmp_path / "colour.png").write_bytes(colour)
    with pytest.raises(ValueError, match=r"colour.png' has 16 bits a channel and a transparent colour"):
        open_images(tmp_path / "colour.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_of_colours(mode: str) -> None:
    colour = Image.new("RGB", (4, 3), (255, 255, 255) if mode == "1" else (200, 60, 30))
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(colour, srgb, lab, outputMode="LAB")
        assert image is not None
    else:
        image = colour.convert(mode)
    expected = np.asarray(colour.convert("L").convert("RGB") if mode in ("1", "L") else colour, np.int16)
    tolerance = 60 if mode == "P" else 4  # of the palette of the web
    assert np.abs(levels(image).astype(np.int16) - expected).max() <= tolerance


def profile(swapped: bool) -> bytes:
    """sRGB, or with the colours of red and green exchanged."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        content = content.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    return content


def test_a_profile_is_followed(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    image.save(tmp_path / "srgb.png", icc_profile=profile(False))
    image.save(tmp_path / "swapped.png", icc_profile=profile(True))
    image.save(tmp_path / "broken.png", icc_profile=b"no profile")
    assert levels(tmp_path / "srgb.png")[0, 0].tolist() == [255, 0, 0]
    assert levels(tmp_path / "broken.png")[0, 0].tolist() == [255, 0, 0]
    assert levels(tmp_path / "swapped.png")[0, 0].argmax() == 1
    with Image.open(tmp_path / "swapped.png") as opened:
        assert levels(opened)[0, 0].argmax() == 1


def test_objects_and_paths_are_turned_alike_and_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for suffix in ("png", "tiff"):
            path = tmp_path / f"{orientation}.{suffix}"
            Image.fromarray(RAMP[:4]).save(path, exif=exif)
            with Image.open(path) as opened:
                expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
            assert np.array_equal(levels(path), expected)
            with Image.open(path) as opened:
                assert np.array_equal(levels(opened), expected)
    (tmp_path / "broken.png").write_bytes(png(1, 1, 8, 0, b"\x00\x07", chunk(b"eXIf", b"nonsense")))
    assert levels(tmp_path / "broken.png").tolist() == [[[7, 7, 7]]]
    image = Image.fromarray(RAMP[:4])
    image.info["exif"] = exif.tobytes()
    before = image.tobytes(), image.size, image.mode, dict(image.info)
    assert open_images(image)[0].size == (4, 16)
    assert (image.tobytes(), image.size, image.mode, dict(image.info)) == before
    plain = Image.new("RGB", (2, 2))
    assert open_images(plain)[0] is not plain


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_several_frames_the_first_is_shown_and_of_an_object_its_own(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"moving\..* is animated or has several pages; the first is shown"):
        assert levels(path)[0, 0].argmax() == 0
    with Image.open(path) as opened:
        opened.seek(1)
        assert levels(opened)[0, 0].argmax() == 2
        assert opened.tell() == 1


def test_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(RGB, 0 x 5 pixels\) has no pixels"):
        open_images(Image.new("RGB", (0, 5)))
    assert levels(Image.new("RGB", (201, 1))).shape == (1, 201, 3)
    assert levels(Image.new("RGB", (1, 1))).shape == (1, 1, 3)
    Image.new("RGB", (11, 10)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for image in (tmp_path / "large.png", Image.new("RGB", (11, 10))):
        with pytest.raises(ValueError, match=r"too many pixels to be opened safely \(11 x 10, the limit"):
            open_images(image)


def test_files_that_are_cut_off_whatever_others_told_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "whole.jpg"
    )
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match=r"half.jpg' is not a readable image: image file is truncated"):
        open_images(tmp_path / "half.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    (tmp_path / "jpeg.png").write_bytes(content)
    assert levels(tmp_path / "jpeg.png").shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "is HEIC.* convert it to JPEG"),
        (b"<svg xmlns='x'></svg>", "is SVG"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_files_that_are_no_pictures(content: bytes, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=rf"photo.jpg' is not a readable image: .*{remedy}"):
        open_images(tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"\x89PNG", "images has a bytes, .*BytesIO"),
        (np.zeros((4, 4, 3), np.uint8), "images has a numpy.ndarray, .*fromarray"),
        ([np.zeros((4, 4, 3), np.uint8)], "images has a numpy.ndarray, .*fromarray"),
        (io.BytesIO(b""), "images has a _io.BytesIO"),
        (Path(), "no image file '.': it is a folder"),
        ({"path": "x"}, "images has a dict"),
        ([None], "images has a NoneType"),
        ("https://example.org/cat.jpg", "is a URL, and nothing is downloaded"),
        ("data:image/png;base64," + "A" * 9000, "is a URL"),
        ("A" * 9000, "no image file 'AAA"),
    ],
)
def test_what_is_neither_a_picture_nor_a_path(given: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_images(given)
    assert len(str(caught.value)) < 300


def test_pictures_of_a_closed_file(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "closed.png")
    image = Image.open(tmp_path / "closed.png")
    image.close()
    with pytest.raises(ValueError, match=r"closed.png' \(RGB, 4 x 4 pixels\) is not a readable image"):
        open_images(image)


def test_12_bits_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    """0, 1024, 2048 and 4095, three bytes a pair."""
    content = bytes((0x00, 0x04, 0x00, 0x80, 0x0F, 0xFF))
    values = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 200, 277: 1, 278: 1, 279: len(content)}
    tags = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in values.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(values)) + tags + bytes(4)
    (tmp_path / "twelve.tiff").write_bytes(head.ljust(200, b"\0") + content)
    assert levels(tmp_path / "twelve.tiff").tolist() == grey(np.array([[0, 64, 128, 255]])).tolist()


def test_what_was_opened_is_opened_again_as_it_is(tmp_path: Path) -> None:
    """Neither turned nor converted once more."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.fromarray(RAMP[:4]).convert("RGB").save(tmp_path / "phone.png", exif=exif)
    Image.new("RGB", (3, 2), "red").save(tmp_path / "profile.png", icc_profile=profile)
    for path in (tmp_path / "phone.png", tmp_path / "profile.png"):
        [once] = open_images(path)
        assert not once.info
        assert not once.getexif()
        assert np.array_equal(levels(once), np.asarray(once))
