"""An explanation on disk: the files that are documented, all of them or none."""

import copy
import hashlib
import json
import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import explanation_of, random_picture
from torch import Tensor, nn

import detcam
from detcam import Explainer, Explanation
from detcam.adapters import CallableAdapter
from detcam.errors import OutputError
from detcam.models.versions import weights_digest
from detcam.saved import Saved

ODD = ("traffic light", "../../etc/passwd", "café ☕", "a/b\\c:d*e?", "", "日本語", "CON", "x" * 40, "-rf")


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    return random_picture(seed, 40, 60)


@pytest.fixture
def explanation(picture: np.ndarray) -> Explanation:
    maps = [torch.rand(4, 6) for _ in ODD]
    return explanation_of(picture, maps, labels=ODD)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_documented_files(explanation: Explanation, tmp_path: Path) -> None:
    folder = explanation.save(tmp_path / "deep" / "out")
    assert folder == tmp_path / "deep" / "out"
    names = sorted(path.name for path in folder.iterdir())
    overlays = [name for name in names if name.startswith("overlay_")]
    assert sorted({*names} - {*overlays}) == ["contact.png", "explanation.json", "heatmaps.npz", "picture.jpg"]
    assert [name[:12] for name in overlays] == [f"overlay_{i:03d}_" for i in range(len(ODD))]

    with np.load(folder / "heatmaps.npz") as archive:
        assert list(archive) == ["heatmaps", *(f"map_{i:03d}" for i in range(len(ODD)))]
        assert archive["heatmaps"].dtype == np.float32
        assert np.array_equal(archive["heatmaps"], explanation.heatmaps.numpy())
        for i, raw in enumerate(explanation.maps):
            assert np.array_equal(archive[f"map_{i:03d}"], raw.numpy())
    document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
    assert [o["label"] for o in document["objects"]] == list(ODD)
    assert [o["overlay"] for o in document["objects"]] == overlays
    assert [o["box"] for o in document["objects"]] == [pytest.approx(b) for b in explanation.boxes.tolist()]
    for i, name in enumerate(overlays):
        decoded = cv2.imread(str(folder / name))[:, :, ::-1]
        assert np.array_equal(decoded, explanation.overlay(i))
    assert cv2.imread(str(folder / "contact.png")).shape[1] == pytest.approx(1600, abs=10)


def test_the_saved_facts_place_the_maps_and_say_how_much_lies_in_the_box(picture: np.ndarray, tmp_path: Path) -> None:
    heat = torch.zeros(4, 6)
    heat[1, 2] = 3
    boxes = torch.tensor([[10.4, 0.0, 30.6, 40.0], [0.0, 0.0, 10.0, 40.0], [0.0, 0.0, 60.0, 40.0]])
    explanation = explanation_of(picture, [heat, heat, torch.zeros(4, 6)], boxes=boxes)
    document = json.loads((explanation.save(tmp_path, "x/<b>.png") / "explanation.json").read_text(encoding="utf-8"))
    assert document["source"] == "x/<b>.png"
    assert document["geometry"] == {"resized": [40, 60], "pad": [0, 0], "network": [40, 60]}
    shares = [found["energy_in_box"] for found in document["objects"]]
    tall = explanation.heatmaps[0].double()
    assert shares[0] == pytest.approx(float(tall[:, 10:31].sum() / tall.sum()), abs=1e-6)
    assert 0.5 < shares[0] < 1
    assert shares[1:] == [0, None]


@pytest.mark.parametrize("size", [(2000, 3200), (3200, 40)])
def test_the_picture_for_reports_is_shrunk(size: tuple[int, int], seed: int, tmp_path: Path) -> None:
    image = random_picture(seed, *size)
    explanation_of(image, []).save(tmp_path)
    preview = cv2.imread(str(tmp_path / "picture.jpg"))[:, :, ::-1]
    assert preview.shape == (size[0] // 2, size[1] // 2, 3)
    expected = cv2.resize(image, preview.shape[1::-1], interpolation=cv2.INTER_AREA)
    grey, expected_grey = (cv2.cvtColor(np.ascontiguousarray(p), cv2.COLOR_RGB2GRAY) for p in (preview, expected))
    assert np.abs(grey.astype(int) - expected_grey).mean() < 4  # JPEG keeps colours at half the resolution


def test_labels_are_safe_in_file_names(explanation: Explanation, tmp_path: Path) -> None:
    folder = explanation.save(tmp_path / "out")
    assert {path.parent for path in tmp_path.rglob("*.png")} == {folder}
    for path in folder.glob("overlay_*"):
        assert re.fullmatch(r"overlay_\d{3}_[\w-]+\.png", path.name), path.name
    assert (folder / "overlay_000_traffic-light.png").exists()


def test_a_second_run_replaces_the_first(explanation: Explanation, picture: np.ndarray, tmp_path: Path) -> None:
    explanation.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    fewer = explanation_of(picture, [torch.rand(4, 6)], labels=("dog",))
    fewer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "contact.png", "explanation.json", "heatmaps.npz", "notes.txt", "overlay_000_dog.png",
        "picture.jpg",
    ]  # fmt: skip


def test_files_of_others_stay(explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "overlay_of_mine.png").write_bytes(b"mine")
    explanation.save(tmp_path)
    assert (tmp_path / "overlay_of_mine.png").read_bytes() == b"mine"


WRITERS = {"png": (cv2, "imencode", 3), "npz": (np.lib.format, "write_array", 3), "json": (json, "dumps", 1)}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), MemoryError(), KeyboardInterrupt()], ids=repr
)
def test_a_failure_midway_leaves_nothing(
    writer: str, failure: BaseException, explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = explanation_of(explanation.image, [torch.rand(4, 6)], labels=("dog",))
    earlier.save(tmp_path / "out")
    before = contents(tmp_path)
    library, function, last = WRITERS[writer]  # the call that fails, after some files are written
    original, calls = getattr(library, function), 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            raise failure
        return original(*args, **kwargs)

    monkeypatch.setattr(library, function, fail)
    expected: type[BaseException] = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        explanation.save(tmp_path / "out")
    assert contents(tmp_path) == before
    assert not list((tmp_path / "out").glob(".*")), "no temporary folder is left"
    if expected is OutputError:
        assert str(tmp_path / "out") in str(caught.value)
        assert "No space left" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_where_the_folder_should_be(explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside", tmp_path / ("n" * 300)):
        with pytest.raises(OutputError, match="cannot be written"):
            explanation.save(folder)
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission(explanation: Explanation, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for folder in (closed, closed / "inside"):
        with pytest.raises(OutputError, match="Permission denied"):
            explanation.save(folder)
    assert not list(closed.iterdir())


def test_a_label_longer_than_a_file_name_may_be(picture: np.ndarray, tmp_path: Path) -> None:
    explanation_of(picture, [torch.rand(4, 6)], labels=("long " * 100,)).save(tmp_path)
    assert len(list(tmp_path.glob("overlay_000_long*.png"))) == 1


def test_it_says_what_made_it(seed: int, picture: np.ndarray, tmp_path: Path) -> None:
    """The weights' digest is that of the values: the same for a copy, another after a step of training."""
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)).eval()

    def explain(model: nn.Module) -> Explainer:
        return Explainer(model, adapter=one_object(), imgsz=64, conf=0)

    def made(explainer: Explainer) -> dict[str, Any]:
        document = json.loads((explainer(picture).save(tmp_path) / "explanation.json").read_text(encoding="utf-8"))
        return dict(document["made"])

    explainer = explain(network)
    first = made(explainer)
    assert set(first) == {"versions", "weights", "pixels", "date"}
    assert first["versions"] == {"detcam": detcam.__version__, "torch": str(torch.__version__)}
    assert first["pixels"] == hashlib.sha256(picture.tobytes()).hexdigest()
    age = datetime.now(timezone.utc) - datetime.fromisoformat(first["date"])
    assert 0 <= age.total_seconds() < 60
    assert first["date"].endswith("+00:00")
    by_hand = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        by_hand.update(f"{name} {values.dtype} {tuple(values.shape)}".encode() + values.numpy().tobytes())
    assert first["weights"] == by_hand.hexdigest()
    again = made(explain(copy.deepcopy(network)))
    assert {**again, "date": None} == {**first, "date": None}
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] += 1
    assert made(explainer)["weights"] != first["weights"]
    with torch.inference_mode():
        frozen = copy.deepcopy(network)
        assert made(explain(frozen))["weights"] == made(explainer)["weights"]
    sparse = nn.Module()
    sparse.register_buffer("values", torch.eye(3).to_sparse())
    assert weights_digest(sparse) is None, "only plain tensors have a digest"


def test_an_old_folder_without_it_is_read(explanation: Explanation, tmp_path: Path) -> None:
    folder = explanation.save(tmp_path)
    document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
    assert document.pop("made")["pixels"]
    (folder / "explanation.json").write_text(json.dumps(document), encoding="utf-8")
    assert len(Saved.read(folder).objects) == len(ODD)


def one_object() -> CallableAdapter:
    def detect(outputs: Tensor, conf: float) -> list[dict[str, Any]]:
        box = torch.tensor([[8.0, 8, 40, 40]])
        return [
            {"boxes": box, "scores": torch.ones(1), "class_ids": torch.zeros(1), "index": torch.zeros(1)}
            for _ in outputs
        ]

    def score(outputs: Tensor, objects: list[Any], target: str) -> Tensor:
        return torch.cat([outputs[i].flatten()[found.index] for i, found in enumerate(objects)])

    return CallableAdapter(lambda model, batch: model(batch), detect, score, layers=["0"])
