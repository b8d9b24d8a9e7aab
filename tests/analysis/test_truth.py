"""Right, wrong and missed: against labels made by hand, and on the demo model's scenes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from saved_sets import made, save_light, save_many
from support import random_picture

from detcam import Explainer, Explanation, cli
from detcam.analysis.box_frame import align
from detcam.analysis.heat_summary import summarise
from detcam.questions.answer import Answer, AskedExplanation
from detcam.scenes import CLASSES, HELD_OUT_SEED, draw_scene

BOXES = torch.tensor([[10.0, 10, 60, 60], [100, 20, 150, 90], [20, 70, 90, 115]])  # in a picture of 160 x 120
UNASKED, ASKED = [70.0, 20, 98, 50], [95.0, 92, 155, 118]


def yolo(box: list[float], kind: int) -> str:
    x1, y1, x2, y2 = box
    return f"{kind} {(x1 + x2) / 320} {(y1 + y2) / 240} {(x2 - x1) / 160} {(y2 - y1) / 120}\n"


def coco(boxes: list[list[float]], kinds: list[int], name: str) -> str:
    annotations = [
        {"image_id": 1, "category_id": kind + 10, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        for box, kind in zip(boxes, kinds, strict=True)
    ]
    categories = [{"id": kind + 10, "name": f"thing {kind}"} for kind in range(5)]
    images = [{"id": 1, "file_name": name}]
    return json.dumps({"images": images, "categories": categories, "annotations": annotations})


def answer(box: list[float], class_id: int) -> Answer:
    """The candidate is the explanation's only object."""
    return Answer(
        box=tuple(box), label=f"thing {class_id}", class_id=class_id, candidate=3, candidate_box=tuple(box), iou=1.0,
        score=0.1, rank=1, candidates=50, reason="confidence", rival=None, objects=(0,),
    )  # fmt: skip


@pytest.fixture
def judged(seed: int, tmp_path: Path) -> tuple[Path, Explanation]:
    """Things 0, 1, 2 were found; 0 is right, 1 misplaced, 2 is none; thing 4 was missed and asked for, 1 and 3 not."""
    image = random_picture(seed, 120, 160)
    save_light(tmp_path / "set" / "a", made(image, 3, ("thing 0", "thing 1", "thing 2"), BOXES, conf=0.25), "x/a.jpg")
    candidate = made(image, 1, ("thing 4",), torch.tensor([ASKED]) + 3, conf=0.25)
    asked = AskedExplanation.of(candidate, [answer([side + 1 for side in ASKED], 4)])
    save_light(tmp_path / "set" / "asked", asked, "x/a.jpg")
    return tmp_path / "set", asked


@pytest.mark.parametrize("kind", ["yolo", "coco"])
def test_right_wrong_and_missed(kind: str, judged: tuple[Path, Explanation], tmp_path: Path) -> None:
    root, asked = judged
    boxes = [[12.0, 8, 58, 62], [60.0, 20, 110, 90], UNASKED, ASKED]
    kinds = [0, 1, 3, 4]
    if kind == "yolo":
        labels = tmp_path / "labels"
        labels.mkdir()
        (labels / "a.txt").write_text("".join(map(yolo, boxes, kinds)))
    else:
        labels = tmp_path / "labels.json"
        labels.write_text(coco(boxes, kinds, "a.jpg"))
    (summary,) = summarise(root, labels)
    assert summary.pictures == 1
    names = {"yolo": "class 3", "coco": "thing 3"}  # nothing that was explained says what class 3 is called
    assert [(item.kind, item.label, item.number) for item in summary.objects] == [
        ("right", "thing 0", 0), ("wrong", "thing 1", 1), ("wrong", "thing 2", 2),
        ("missed", "thing 1", None), ("missed", names[kind], None), ("missed", "thing 4", 0),
    ]  # fmt: skip
    assert {kind: summary.statistics(kind).objects for kind in summary.kinds} == {
        "found": 3, "right": 1, "wrong": 2, "missed": 3,
    }  # fmt: skip
    missed, last = summary.statistics("missed"), summary.objects[-1]
    assert (missed.unexplained, missed.measured) == (2, 1)
    assert last.saved.folder == root / "asked"
    assert last.box == pytest.approx(ASKED)
    assert last.note is not None
    assert "dropped" in last.note
    expected = align(asked.maps[0].numpy(), asked.geometry, ASKED, BOXES.tolist())
    assert expected is not None
    assert last.spread is not None
    assert last.spread.outside == pytest.approx(expected[1].outside, abs=1e-4)
    assert last.spread.others == pytest.approx(expected[1].others, abs=1e-4)


def test_without_labels_nothing_is_right_or_wrong(judged: tuple[Path, Explanation]) -> None:
    (summary,) = summarise(judged[0])
    assert summary.kinds == ("found",)
    assert [item.kind for item in summary.objects] == ["found"] * 3, "answers to questions are no detections"


def test_scenes_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo model, made strict so that it misses something, and asked for one miss."""
    labels, pictures = tmp_path / "labels", tmp_path / "pictures"
    labels.mkdir()
    pictures.mkdir()
    explainer = Explainer("scenes-yolo", conf=0.8)
    wanted: list[tuple[Path, list[float], str]] = []
    for i in range(3):
        scene = draw_scene(HELD_OUT_SEED + i)
        height, width = scene.image.shape[:2]
        path = pictures / f"scene {i}.png"
        cv2.imwrite(str(path), scene.image[:, :, ::-1])
        lines = []
        for (x1, y1, x2, y2), kind in zip(scene.boxes.tolist(), scene.class_ids.tolist(), strict=True):
            sides = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(" ".join(map(str, (kind, *sides))))
            wanted.append((path, [x1, y1, x2, y2], CLASSES[kind]))
        (labels / f"scene {i}.txt").write_text("\n".join(lines))
        explainer(path).save(tmp_path / "out" / f"{i}", path)
    (summary,) = summarise(tmp_path / "out", labels)
    missed = summary.of("missed")
    assert missed, "nothing was missed: choose a higher conf"
    assert summary.of("right"), "nothing was found: choose a lower conf"
    assert len(summary.of("right")) + len(missed) == len(wanted)
    miss = missed[0]
    path = pictures / miss.saved.name
    (name,) = [name for picture, box, name in wanted if picture == path and np.allclose(box, miss.box, atol=0.01)]
    explainer(path, ask=[(miss.box, name)]).save(tmp_path / "out" / "asked", path)

    assert cli.run(["report", str(tmp_path / "out"), "--labels", str(labels)]) == 0
    said = capsys.readouterr().out
    assert f"Right, wrong and missed: {tmp_path / 'out' / 'looks.html'}" in said
    document = json.loads((tmp_path / "out" / "looks.json").read_text())
    (way,) = document["ways"]
    assert way["pictures"] == 3
    assert way["groups"]["missed"]["all"]["unexplained"] == len(missed) - 1
    assert way["groups"]["right"]["all"]["objects"] == len(summary.of("right"))
    (explained,) = [row for row in way["objects"] if row["kind"] == "missed" and row["object"] is not None]
    assert (explained["folder"], explained["label"]) == ("asked", name)
    assert "asked for" in explained["note"]
    mean = way["groups"]["found"]["all"]["mean"]
    side = 3 * document["cells_along_the_box"]
    assert np.shape(mean) == (side, side)
    first = way["objects"][0]
    saved = json.loads((tmp_path / "out" / first["folder"] / "explanation.json").read_text())
    assert first["spread"]["outside"] == pytest.approx(1 - saved["objects"][0]["energy_in_box"], abs=0.05)


def test_labels_of_one_picture(judged: tuple[Path, Explanation], capsys: pytest.CaptureFixture[str]) -> None:
    """One picture has no index, but with labels there is something to say about it."""
    root = judged[0] / "a"
    (root / "a.txt").write_text(yolo(BOXES[0].tolist(), 0))
    assert cli.run(["report", str(root), "--labels", str(root)]) == 0
    assert {path.name for path in root.glob("*.html")} == {"report.html", "looks.html"}
    assert "looks.html" in capsys.readouterr().out


@pytest.mark.parametrize("labels", ["nowhere", "others", "broken"])
def test_labels_that_cannot_be_used_are_one_line(
    labels: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_many(tmp_path / "set", 2, 2, seed)
    folder = tmp_path / "labels"
    if labels != "nowhere":
        folder.mkdir()
        name = "other.txt" if labels == "others" else "photo 0000.txt"
        (folder / name).write_text("0 .5 .5 .2 .2" if labels == "others" else "0 .5 .5")
    assert cli.run(["report", str(tmp_path / "set"), "--labels", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "labels" in error
    assert not list(tmp_path.rglob("*.html"))


def test_answers_alone_are_no_set(judged: tuple[Path, Explanation], capsys: pytest.CaptureFixture[str]) -> None:
    asked = judged[0] / "asked"
    assert summarise(asked) == []
    (asked / "a.txt").write_text("0 .5 .5 .2 .2")
    assert cli.run(["report", str(asked), "--labels", str(asked)]) == 2
    assert "without --ask" in capsys.readouterr().err
    shutil.copytree(asked, asked.parent / "again")
    shutil.rmtree(asked.parent / "a")
    assert cli.run(["report", str(asked.parent)]) == 0
    assert not (asked.parent / "looks.html").exists()
    assert '"summary":null' in (asked.parent / "index.html").read_text()
