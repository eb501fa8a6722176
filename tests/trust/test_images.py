"""Images as people hand them over: tensors of every shape, and files that are not what they say."""

import csv
import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hypernoise.hypernoise_core.rewards import Ensemble, load_rewards, score_in_batches
from hypernoise.tests.trust.generated import examples
from hypernoise.training.commands.score import score_folder
from hypernoise.training.image_files import find_images, read_image
from hypernoise.training.report.figures import side_by_side

NAMES = ("redness", "tiny-preference")


@pytest.fixture(scope="module")
def rewards() -> dict[str, Ensemble]:
    return {name: load_rewards({name: 1.0}) for name in NAMES}


def filled(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape or (1, 3, 64, 64), value)


GOOD: dict[str, Callable[[], torch.Tensor]] = {
    "float16": lambda: torch.rand(1, 3, 64, 64).half(),
    "bfloat16": lambda: torch.rand(1, 3, 64, 64).bfloat16(),
    "float64": lambda: torch.rand(1, 3, 64, 64).double(),
    "channels last": lambda: torch.rand(1, 64, 64, 3).movedim(-1, 1),
    "strided": lambda: torch.rand(1, 3, 128, 128)[..., ::2, ::2],
    "flipped": lambda: torch.rand(1, 3, 64, 64).flip(-1).mT,
    "expanded": lambda: torch.rand(1, 1, 1, 1).expand(4, 3, 64, 64),
    "with gradient": lambda: torch.rand(1, 3, 64, 64, requires_grad=True),
    "smallest": lambda: torch.rand(1, 3, 16, 16),
    "narrow": lambda: torch.rand(1, 3, 16, 1024),
    "odd": lambda: torch.rand(1, 3, 17, 331),
    "black": lambda: filled(0.0),
    "white": lambda: filled(1.0),
    "tiny numbers": lambda: filled(1e-42),
    "minus zero": lambda: filled(-0.0),
    "a hair above": lambda: filled(1.001),
    "4096 x 4096, expanded": lambda: torch.rand(1, 1, 1, 1).expand(1, 3, 4096, 4096),
}
BAD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "no image": (lambda: torch.rand(0, 3, 64, 64), "B >= 1"),
    "no pixel": (lambda: torch.rand(1, 3, 0, 0), "too small"),
    "no row": (lambda: torch.rand(1, 3, 0, 64), "too small"),
    "1 x 1": (lambda: torch.rand(1, 3, 1, 1), "1 x 1 pixels is too small"),
    "a line": (lambda: torch.rand(1, 3, 4096, 1), "too small"),
    "no channel": (lambda: torch.rand(1, 0, 64, 64), "(1, 0, 64, 64)"),
    "1 channel": (lambda: torch.rand(1, 1, 64, 64), "(1, 1, 64, 64)"),
    "4 channels": (lambda: torch.rand(1, 4, 64, 64), "(1, 4, 64, 64)"),
    "channels last": (lambda: torch.rand(1, 64, 64, 3), "(1, 64, 64, 3)"),
    "2 dimensions": (lambda: torch.rand(64, 64), "(64, 64)"),
    "3 dimensions": (lambda: torch.rand(3, 64, 64), "(3, 64, 64)"),
    "5 dimensions": (lambda: torch.rand(1, 1, 3, 64, 64), "(1, 1, 3, 64, 64)"),
    "a number": (lambda: torch.tensor(0.5), "()"),
    "uint8": (lambda: torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), "divide by 255"),
    "int64": (lambda: torch.zeros(1, 3, 64, 64, dtype=torch.int64), "divide by 255"),
    "bool": (lambda: torch.zeros(1, 3, 64, 64, dtype=torch.bool), "divide by 255"),
    "complex": (lambda: torch.zeros(1, 3, 64, 64, dtype=torch.complex64), "divide by 255"),
    "nan": (lambda: filled(float("nan")), "image 0 has values from nan"),
    "one nan": (lambda: filled(0.5).index_fill(3, torch.tensor([7]), float("nan")), "image 0 has"),
    "inf": (lambda: filled(float("inf")), "image 0 has values from inf"),
    "minus inf": (lambda: filled(float("-inf")), "image 0 has values from -inf"),
    "0 to 255": (lambda: torch.rand(1, 3, 64, 64) * 255, "image 0 has values"),
    "-1 to 1": (lambda: torch.rand(1, 3, 64, 64) * 2 - 1, "image 0 has values"),
    "20000 x 20000": (lambda: torch.rand(1, 1, 1, 1).expand(1, 3, 20_000, 20_000), "too large"),
    "1 x 3 x 20000 x 20000 of one channel": (
        lambda: torch.rand(1, 1, 1, 1).expand(1, 1, 20_000, 20_000), "(1, 1, 20000, 20000)",
    ),
    "16 x a million": (lambda: torch.rand(1, 1, 1, 1).expand(1, 3, 16, 1_000_000), "too long"),
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_images_of_every_layout_and_precision_are_scored(rewards, tally, kind):
    for name in NAMES:
        images = GOOD[kind]()
        found = rewards[name].score(images, ["a red circle"] * len(images))
        assert found.isfinite().all() and found.dtype in (torch.float32, torch.float64)
        same = images.detach().contiguous().float().clamp(0, 1)
        expected = rewards[name].score(same, ["a red circle"] * len(images))
        torch.testing.assert_close(found.detach().float(), expected, atol=0.05, rtol=0.01)
        tally("image tensors").count("worked")


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_is_refused_and_named(rewards, tally, kind):
    build, reason = BAD[kind]
    images = build()
    prompts = ["a"] * (len(images) if images.ndim else 1)
    for ensemble in rewards.values():
        for call in (ensemble.score, partial(score_in_batches, ensemble)):
            with pytest.raises(ValueError) as error:
                call(images, prompts)
            assert reason in str(error.value) and len(str(error.value)) < 300
            tally("image tensors").count("refused")


@pytest.mark.parametrize("counts", [(1, 0), (1, 2), (4, 3), (2, 0)])
def test_as_many_prompts_as_images_are_asked_for(rewards, tally, counts):
    images, prompts = torch.rand(counts[0], 3, 64, 64), ["a"] * counts[1]
    with pytest.raises(ValueError, match=f"{counts[1]} prompts for {counts[0]} images"):
        rewards["redness"].score(images, prompts)
    tally("image tensors").count("refused")


def test_shapes_and_values_from_a_generator_are_scored_or_refused(rewards, scale, tally):
    counted = tally("random image tensors")
    sides = st.sampled_from([16, 17, 31, 64, 16, 16, 0, 15])
    batches = st.tuples(
        st.sampled_from([1, 2, 3, 1, 0]), st.sampled_from([3, 3, 3, 3, 1, 4]), sides, sides
    )
    shapes = batches | batches | batches | st.lists(st.integers(0, 5), min_size=1, max_size=6)
    inside = st.sampled_from([0.0, 0.25, 1.0, 1.005, -1e-3]) | st.floats(0, 1, width=16)
    values = inside | st.sampled_from([1.02, -1.0, 255.0, 1e38]) | st.floats(width=16)
    floats = [torch.float16, torch.float32, torch.float64]
    kinds = st.sampled_from([*floats, *floats, torch.uint8])

    @examples(scale(400, 3_000, 30_000))
    @given(shapes, inside, inside | inside | values, kinds, st.integers(0, 3))
    def check(shape, low, high, dtype, more):
        prompts = shape[0] + more // 3  # one too many at times
        images = torch.full(shape, 0.0, dtype=torch.float64)
        if images.numel():
            images.view(-1)[::2].fill_(low)
            images.view(-1)[1::2].fill_(high)
        if dtype == torch.uint8:
            images = images.nan_to_num(0, 0, 0).clamp(0, 255)
        images = images.to(dtype)
        fits = (
            len(shape) == 4 and shape[0] == prompts > 0 and shape[1] == 3
            and min(shape[2:]) >= 16 and dtype.is_floating_point
            and bool(((images > -0.01) & (images < 1.01)).all())
        )  # fmt: skip
        try:
            found = rewards["redness"].score(images, ["a"] * prompts)
        except ValueError as error:
            assert not fits and str(error)
            counted.count("refused")
        else:
            assert fits and found.isfinite().all()
            counted.count("worked")

    check()


# Files


def png(width: int, height: int, data: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header says anything."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    image.save(content := io.BytesIO(), format=kind, **options)
    return content.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, "red").convert(mode)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return saved(red(), "JPEG", exif=exif)


def grey_16_bits() -> bytes:
    return saved(Image.fromarray(np.full((30, 40), 32768, np.uint16)), "PNG")


READ: dict[str, tuple[bytes, tuple[int, int], tuple[float, float, float]]] = {
    # name: (content, (height, width), mean colour)
    "jpeg.png": (saved(red(), "JPEG"), (30, 40), (1, 0, 0)),
    "png.jpg": (saved(red(), "PNG"), (30, 40), (1, 0, 0)),
    "webp.bmp": (saved(red(), "WEBP", lossless=True), (30, 40), (1, 0, 0)),
    "cmyk.jpg": (saved(red("CMYK"), "JPEG"), (30, 40), (1, 0, 0)),
    "grey.png": (saved(red("L"), "PNG"), (30, 40), (0.3, 0.3, 0.3)),
    "grey of 16 bits.png": (grey_16_bits(), (30, 40), (0.5, 0.5, 0.5)),
    "one bit.png": (saved(Image.new("1", (40, 30), 1), "PNG"), (30, 40), (1, 1, 1)),
    "palette.png": (saved(red("P"), "PNG"), (30, 40), (1, 0, 0)),
    "transparent.png": (saved(Image.new("RGBA", (40, 30)), "PNG"), (30, 40), (1, 1, 1)),
    "turned.jpg": (turned(), (40, 30), (1, 0, 0)),
    "broken exif.jpg": (
        saved(red(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40),
        (30, 40), (1, 0, 0),
    ),
    "moving.webp": (
        saved(red(), "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")]),
        (30, 40), (1, 0, 0),
    ),
    "more behind.png": (saved(red(), "PNG") + b"<script>" * 100, (30, 40), (1, 0, 0)),
}  # fmt: skip
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "cannot identify"),
    "cut short.png": (saved(Image.effect_noise((60, 60), 90), "PNG")[:-400], "truncated"),
    "cut short.jpg": (saved(Image.effect_noise((60, 60), 90), "JPEG")[:-900], "truncated"),
    "bomb.png": (png(100_000, 100_000), "decompression bomb"),
    "small bomb.png": (png(12_000, 12_000), "too large to be scored"),
    "line.png": (png(60_000, 20), "too long to be scored"),
    "one pixel.png": (saved(red(size=(1, 1)), "PNG"), "too small to be scored"),
    "no pixel.png": (png(0, 0), ""),
    "no data.png": (png(64, 64), ""),
    "wrong bits.png": (png(64, 64, b"\0" * 64 * 65, bits=7), ""),
    "moving.png": (
        saved(red("P"), "GIF", save_all=True, append_images=[Image.new("P", (40, 30))]),
        "cannot identify",
    ),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', "cannot identify"),
    "page.jpg": (b"<!doctype html><script>alert(1)</script>", "cannot identify"),
    "postscript.png": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n",
        "cannot identify",
    ),
    "tiff.png": (saved(red(), "TIFF"), "cannot identify"),
    "zip.png": (b"PK\x03\x04" + b"\0" * 60, "cannot identify"),
    "nothing.webp": (b"RIFF\x10\0\0\0WEBPVP8 ", "cannot"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_images_of_every_mode_are_read_as_they_look(name, tmp_path, tally):
    content, size, colour = READ[name]
    (tmp_path / name).write_bytes(content)
    image = read_image(tmp_path / name)
    assert image.shape == (3, *size)
    assert image.mean((1, 2)).tolist() == pytest.approx(colour, abs=0.02)
    tally("image files").count("worked")


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_image_is_refused_with_its_name(name, tmp_path, tally):
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_image(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name} cannot be read as an image: ")
    assert reason in str(error.value)
    tally("image files").count("refused")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, tally):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=path.name):
            read_image(path)
        tally("image files").count("refused")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damaged_image_files_are_read_or_refused(kind, tmp_path, scale, tally):
    counted = tally("damaged image files")
    good = saved(Image.effect_noise((24, 20), 60).convert("RGB"), kind)
    rng, path = random.Random(0), tmp_path / "bad.png"
    for _ in range(scale(150, 1_500, 15_000)):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        try:
            image = read_image(path)
        except ValueError as error:
            assert str(path) in str(error)
            counted.count("refused")
        else:
            assert image.isfinite().all() and image.amin() >= 0 and image.amax() <= 1
            counted.count("read")


def test_a_folder_of_hostile_files_is_scored_as_far_as_it_goes(rewards, tmp_path, tally):
    folder, table = tmp_path / "images", tmp_path / "scores.csv"
    folder.mkdir()
    for name, content in {**READ, **REFUSED}.items():
        (folder / name).write_bytes(content[0])
    (folder / "folder.png").mkdir()
    (folder / "circle").symlink_to(folder, True)
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "prompt.txt").write_text("a red circle\n")
    problems = score_folder(folder, tmp_path / "prompt.txt", rewards["redness"], table, 4, {})
    with table.open(newline="") as file:
        _, *rows = csv.reader(file)
    assert {row[0] for row in rows} == set(READ)
    assert len(problems) == len(REFUSED) + 2
    for name in (*REFUSED, "folder.png", "pipe.jpg"):
        assert sum(f"/{name} " in problem for problem in problems) == 1
    tally("image files").count("worked", len(READ))
    tally("image files").count("refused", len(problems))


def test_many_sizes_do_not_pile_up_in_memory(rewards, tmp_path, monkeypatch):
    from hypernoise.training.commands import score as scoring

    monkeypatch.setattr(scoring, "_MOST_WAITING", 40 * 40 * 3)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        red(size=(40, 40 + i)).save(folder / f"{i:02d}.png")
    (tmp_path / "prompt.txt").write_text("a\n")
    sizes = []

    def counting(rewards, images, prompts, **options):
        sizes.append(len(images))
        return score_in_batches(rewards, images, prompts, **options)

    monkeypatch.setattr(scoring, "score_in_batches", counting)
    table = tmp_path / "scores.csv"
    assert not score_folder(folder, tmp_path / "prompt.txt", rewards["redness"], table, 16, {})
    assert sum(sizes) == 20 and len(table.read_text().splitlines()) == 21


FORMULAS = ["=1+1", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "'=1", "''=1", "'quoted'", "a=1"]


def test_the_table_of_scores_holds_no_formula_and_is_read_again(rewards, tmp_path, tally):
    folder, table = tmp_path / "images", tmp_path / "scores.csv"
    folder.mkdir()
    names = [f"{formula.replace('/', '_')}.png" for formula in FORMULAS]
    for name in names:
        red().save(folder / name)
    with (tmp_path / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *zip(names, FORMULAS, strict=True)])
    calls = (folder, tmp_path / "prompts.csv", rewards["redness"], table, 4, {})
    assert not score_folder(*calls)
    before = table.read_bytes()
    with table.open(newline="") as file:
        _, *rows = csv.reader(file)
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row[:2])
        tally("cells of tables").count("no formula", 2)
    assert not score_folder(*calls)  # all is known, so that nothing is scored
    assert table.read_bytes() == before


def test_names_that_are_no_text_are_refused(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"), "wb"):
        pass
    with pytest.raises(ValueError, match="not UTF-8"):
        find_images(tmp_path)


def test_a_grid_of_very_many_prompts_is_written(tmp_path):
    count = 500
    images = torch.rand(1, 3, 8, 8).expand(count, -1, -1, -1)
    side_by_side(tmp_path / "grid.png", [f"prompt {i}" for i in range(count)], {"base": images})
    with Image.open(tmp_path / "grid.png") as grid:
        assert 1000 < grid.width < 20_000
