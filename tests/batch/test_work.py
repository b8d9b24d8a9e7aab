"""The work: rows say what an Explanation says, whatever the batch; a bad picture costs its own row only."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from photos import OPTIONS, assert_same_rows, items_of, joined, photo, write_photos
from PIL import Image

from detcam import Explainer, InputError
from detcam.batch.dataset.heatmap import Packed, pack, unpack
from detcam.batch.items import Item
from detcam.batch.worker import Options, Worker
from detcam.errors import LayerError
from detcam.evaluate.metrics.localisation import Case, compactness, pointing_box


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker(OPTIONS, name="tester")


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer("scenes-yolo", imgsz=160)


def test_a_sweep_takes_many_steps(seed: int, tmp_path: Path) -> None:
    """A method that takes hundreds of forwards for an image does not hang."""
    items = items_of(write_photos(tmp_path, seed, 1))
    steps: list[str] = []
    quick = Options(model="scenes-yolo", imgsz=64, conf=0.0, max_det=2)
    for method in ("odam", "occlusion"):

        def tick(together: int | None = None, method: str = method) -> None:
            steps.append(method)

        Worker(quick.model_copy(update={"method": method})).run(items, tick=tick)
    assert steps.count("occlusion") > steps.count("odam") > 0


def test_rows_say_what_the_explainer_says(worker: Worker, explainer: Explainer, seed: int, tmp_path: Path) -> None:
    items = items_of(write_photos(tmp_path, seed, 7))
    batch = worker.run(items, chunk=3)
    pictures, objects = batch.pictures.to_pylist(), batch.objects.to_pylist()
    assert batch.chunk == 3
    assert [row["key"] for row in pictures] == [item.key for item in items], "in the order of the source"
    assert objects == sorted(objects, key=lambda row: (row["key"], row["object"]))
    for item, picture in zip(items, pictures, strict=True):
        expected = explainer(item.uri)
        rows = [row for row in objects if row["key"] == item.key]
        assert picture["status"] == ("ok" if len(expected) else "empty")
        assert (picture["height"], picture["width"]) == expected.geometry.source
        assert len(rows) == picture["objects"] == len(expected)
        assert picture["worker"] == "tester"
        assert [row["object"] for row in rows] == list(range(len(rows)))
        assert [row["label"] for row in rows] == expected.labels
        assert [row["class_id"] for row in rows] == expected.class_ids.tolist()
        assert [row["note"] for row in rows] == expected.notes
        boxes = torch.tensor([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in rows]).view(-1, 4)
        torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(torch.tensor([row["score"] for row in rows]), expected.scores, rtol=0, atol=1e-4)
        for row, raw, energy in zip(rows, expected.maps, expected.energy_in_box, strict=True):
            assert (row["method"], row["target"]) == ("layerig", "margin")
            assert row["layers"] == ",".join(expected.settings["layers"])
            packed = Packed(*(row[f"heatmap{part}"] for part in ("", "_rows", "_columns", "_low", "_high")))
            peak = float(raw.max())
            assert np.abs(unpack(packed) - raw.clamp(min=0).numpy()).max() <= peak / 255
            assert row["energy_in_box"] == (None if energy is None else pytest.approx(energy, abs=2e-3))


def test_rows_do_not_depend_on_the_batch(worker: Worker, seed: int, tmp_path: Path) -> None:
    items = items_of(write_photos(tmp_path, seed, 6))
    together = worker.run(items)
    alone = [worker.run([item], chunk=i) for i, item in enumerate(items)]
    assert_same_rows((together.objects, together.pictures), joined(alone))


@pytest.mark.parametrize("kind", ["signed", "sparse", "constant", "negative", "infinite", "one cell"])
def test_packed_maps(kind: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    raw = generator.normal(0, 10 ** generator.uniform(-12, 12), (generator.integers(2, 40), generator.integers(2, 40)))
    raw = raw.astype(np.float32)
    if kind == "sparse":
        raw[generator.random(raw.shape) < 0.9] = 0
    elif kind == "constant":
        raw[:] = abs(raw[0, 0])
    elif kind == "negative":
        raw = -np.abs(raw)
    elif kind == "infinite":
        raw[0, 0], raw[0, 1], raw[1, 0] = np.inf, -np.inf, np.nan
    elif kind == "one cell":
        raw = raw[:1, :1]
    packed = pack(raw)
    shown = np.where(np.isfinite(raw), raw, 0).clip(min=0)  # what a heatmap is drawn from
    span, back = float(shown.max() - shown.min()), unpack(packed)
    assert back.shape == raw.shape
    assert back.dtype == np.float32
    assert len(packed.levels) == raw.size
    assert np.abs(back.astype(float) - shown).max() <= span / 510 * (1 + 1e-5) + 1e-6 * float(shown.max())
    assert back.max() == pytest.approx(shown.max(), rel=1e-6)
    assert (back[shown == shown.min()] == shown.min()).all(), "what was coldest is exactly that"


def encoded(image: np.ndarray, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    mode = options.pop("mode", "RGB")
    Image.fromarray(image).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def promising_png(side: int) -> bytes:
    """The header of a picture of side x side pixels, without any."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 99)]
    framed = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def rotated(image: np.ndarray) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by a quarter
    return encoded(image, "JPEG", exif=exif, quality=95)


def strange(name: str, image: np.ndarray) -> bytes:
    """A file of each kind that a large set has somewhere."""
    whole = encoded(image, "PNG")
    if name == "sixteen.png":
        return cv2.imencode(".png", image[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()
    if name == "animated.gif":
        frames = [Image.fromarray(image), Image.fromarray(255 - image)]
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
        return buffer.getvalue()
    return {
        "truncated.png": whole[: len(whole) // 2],
        "flipped.jpg": encoded(image, "JPEG")[:20] + b"\xff" * 60,
        "empty.jpg": b"",
        "text.jpg": b"not a picture at all\n" * 9,
        "huge.png": promising_png(30_000),
        "cmyk.jpg": encoded(image, "JPEG", mode="CMYK"),
        "grey.png": encoded(image, "PNG", mode="L"),
        "alpha.png": encoded(image, "PNG", mode="RGBA"),
        "rotated.jpg": rotated(image),
        "misnamed.jpg": whole,
    }[name]


BROKEN = {
    "truncated.png": "damaged",
    "flipped.jpg": "damaged|not an image",
    "empty.jpg": "is empty",
    "text.jpg": "not an image",
    "huge.png": "more pixels than the limit",
    "missing.jpg": "does not exist",
}
SOUND = ("sixteen.png", "animated.gif", "cmyk.jpg", "grey.png", "alpha.png", "rotated.jpg", "misnamed.jpg")


def test_strange_pictures(worker: Worker, explainer: Explainer, seed: int, tmp_path: Path) -> None:
    """Each of them as `Explainer(path)` has it: a row that says why not, or the same objects; its neighbours too."""
    image = photo(seed, 0)
    names = [*BROKEN, "good.png", *SOUND]
    for name in names:
        if name != "missing.jpg":
            data = encoded(image, "PNG") if name == "good.png" else strange(name, image)
            (tmp_path / name).write_bytes(data)
    batch = worker.run([Item(name, str(tmp_path / name)) for name in names])
    rows = {row["key"]: row for row in batch.pictures.to_pylist()}
    assert list(rows) == names
    for name, reason in BROKEN.items():
        assert rows[name]["status"] == "error", name
        assert re.search(reason, rows[name]["error"]), rows[name]["error"]
        assert name in rows[name]["error"], "the log names the picture"
        assert (rows[name]["width"], rows[name]["objects"]) == (None, 0)
    for name in ("good.png", *SOUND):
        expected = explainer(str(tmp_path / name))
        found = [row for row in batch.objects.to_pylist() if row["key"] == name]
        assert (rows[name]["height"], rows[name]["width"]) == expected.image.shape[:2], name
        assert [row["label"] for row in found] == expected.labels, name
        boxes = torch.tensor([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in found]).view(-1, 4)
        torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=1e-2)
    height, width = image.shape[:2]
    assert (rows["rotated.jpg"]["height"], rows["rotated.jpg"]["width"]) == (width, height), "upright as EXIF says"


def test_a_picture_that_fails_inside_costs_its_row_only(
    worker: Worker, explainer: Explainer, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_photos(tmp_path, seed, 5)
    cv2.imwrite(str(paths[2]), np.full((97, 61, 3), 7, np.uint8))
    adapter = type(explainer.adapter)
    prepare = adapter.prepare

    def fail(self: Any, image: np.ndarray) -> Any:
        if image.shape[:2] == (97, 61):
            raise MemoryError("no memory\nfor this one")
        return prepare(self, image)

    monkeypatch.setattr(adapter, "prepare", fail)
    rows = worker.run(items_of(paths)).pictures.to_pylist()
    assert [row["status"] == "error" for row in rows] == [False, False, True, False, False]
    assert rows[2]["error"] == "MemoryError: no memory for this one"


@pytest.mark.parametrize(
    "wrong", [{"model": "nope"}, {"method": "nope"}, {"layers": "nope"}, {"target": "nope"}, {"metrics": ("nope",)}]
)
def test_options_that_cannot_be_used(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="nope"):
        Worker(Options(**{"model": "scenes-yolo", **wrong}))


def test_options_that_fail_at_the_first_picture_end_the_job(seed: int, tmp_path: Path) -> None:
    worker = Worker(
        Options(model="scenes-yolo", imgsz=160, layers="model.22.cv2")
    )  # a module that never runs by itself
    with pytest.raises(LayerError, match=r"model\.22\.cv2"):
        worker.run(items_of(write_photos(tmp_path, seed, 1)))


def test_metrics_and_saved_explanations(explainer: Explainer, seed: int, tmp_path: Path) -> None:
    items = items_of(write_photos(tmp_path / "in", seed, 2))
    options = Options(
        model="scenes-yolo", imgsz=160, metrics=("compactness", "pointing_box"), save_to=str(tmp_path / "saved")
    )
    rows = Worker(options).run(items, places=(5, 9)).objects.to_pylist()
    for place, item in zip((5, 9), items, strict=True):
        expected = explainer(item.uri)
        case = Case(expected.heatmaps, expected.boxes)
        for name, values in (("compactness", compactness(case)), ("pointing_box", pointing_box(case))):
            found = [row[name] for row in rows if row["key"] == item.key]
            assert found == pytest.approx(values.tolist(), abs=2e-3)
        saved = tmp_path / "saved" / f"{place:08d}-{item.key}" / "explanation.json"
        assert saved.is_file()
