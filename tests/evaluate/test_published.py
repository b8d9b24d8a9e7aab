"""Published protocols against plain loops over single images, in NumPy, and the command that names them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.training.yolo_dataset import write_dataset
from detcam import Explainer, cli, zoo
from detcam.engine.blur import blurred
from detcam.evaluate.judge import Protocol
from detcam.evaluate.published import PROTOCOLS, PublishedCurves, measures
from detcam.scenes import HELD_OUT_SEED, draw_scene

Row = tuple[float, float, float]  # s, IoU, class similarity


class Loop:
    """An object of a random detector, and what one masked image after another gives."""

    def __init__(self, detector: Any, picture: np.ndarray) -> None:
        self.explainer = Explainer(detector, "box", imgsz=128, max_det=2)
        self.adapter, self.picture = self.explainer.adapter, picture
        self.objects = self.explainer(picture).objects
        assert len(self.objects) == 2
        self.pixels, self.geometry = self.adapter.prepare(picture)
        self.labelled = self.objects.boxes + torch.tensor([3.0, -2.0, 5.0, 4.0])
        self.heat = torch.rand(len(self.objects), *self.pixels.shape[1:])

    def values(self, name: str) -> dict[str, Tensor]:
        made = PublishedCurves(PROTOCOLS[name], self.explainer, self.picture, self.objects, self.labelled, 2**24)
        return made.values(self.heat)

    @torch.no_grad()
    def candidates(self, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        boxes, probabilities, _ = self.adapter.candidates(self.adapter.forward(pixels[None], 300))
        return boxes[0].double().numpy(), probabilities[0].double().numpy()

    def curve(
        self, i: int, limits: list[int], other: Tensor, shown: bool, score: Callable[[Tensor], Row]
    ) -> np.ndarray:
        order = self.heat[i].flatten().argsort(descending=True)
        rows = []
        for limit in limits:
            hot = torch.zeros(len(order), dtype=torch.bool)
            hot[order[:limit]] = True
            visible = hot if shown else ~hot
            rows.append(score(torch.where(visible.view(self.heat[i].shape), self.pixels, other)))
        return np.array(rows)


def overlaps(box: Tensor, others: np.ndarray) -> np.ndarray:
    a = box.double().numpy()
    width = (np.minimum(a[2], others[:, 2]) - np.maximum(a[0], others[:, 0])).clip(0)
    height = (np.minimum(a[3], others[:, 3]) - np.maximum(a[1], others[:, 1])).clip(0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    return width * height / (area - width * height)


def cosines(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    return others @ own / np.linalg.norm(others, axis=1) / np.linalg.norm(own)


def areas(curve: np.ndarray, limits: list[int]) -> np.ndarray:
    x = np.array(limits) / limits[-1]
    return ((curve[1:] + curve[:-1]) / 2 * np.diff(x)[:, None]).sum(axis=0)


@pytest.mark.parametrize("name", ["vps", "vxcode"])
def test_areas_over_all_candidates(name: str, seed: int, detector: nn.Module, picture: np.ndarray) -> None:
    """VPS: IoU with the label times p; VX-CODE: IoU with the prediction times the cosine; black, even steps."""
    loop = Loop(detector, picture)
    made, i, black = loop.values(name), len(loop.objects) - 1, torch.zeros_like(loop.pixels)
    own = loop.objects.network_boxes[i]
    boxes, probabilities = loop.candidates(loop.pixels)
    class_id = int(loop.objects.class_ids[i])
    row = probabilities[(overlaps(own, boxes) * probabilities[:, class_id]).argmax()]
    box = loop.geometry.to_network(loop.labelled)[i] if name == "vps" else own

    def score(pixels: Tensor) -> Row:
        boxes, probabilities = loop.candidates(pixels)
        iou = overlaps(box, boxes)
        kind = probabilities[:, class_id] if name == "vps" else cosines(row, probabilities)
        best = (iou * kind).argmax()
        return iou[best] * kind[best], iou[best], kind[best]

    total, steps = loop.heat[i].numel(), 49 if name == "vps" else 50
    limits = [total * k // steps for k in range(steps + 1)]
    insertion, deletion = (loop.curve(i, limits, black, shown, score) for shown in (True, False))
    a, b = areas(insertion, limits), areas(deletion, limits)
    highest = [(insertion[:, 2] * (insertion[:, 1] > least)).max() for least in (0.5, 0.75)]
    expected = [a[0], b[0], a[1], b[1], a[2], b[2], a[0] - b[0], *highest]
    assert list(made) == [m.name for m in measures()]
    assert [float(made[m.name][i]) for m in measures()] == pytest.approx(expected, abs=2e-3)


def test_odexai_scores_the_detection_with_the_largest_overlap(seed: int) -> None:
    """2000 pixels a step, black for deletion, blur for insertion; confidence decides what is detected, nothing more."""
    loop = Loop(zoo.load("scenes-yolo"), draw_scene(HELD_OUT_SEED, (240, 320)).image)
    made, i = loop.values("odexai"), 0
    own, class_id = loop.objects.network_boxes[i], int(loop.objects.class_ids[i])
    boxes, probabilities = loop.candidates(loop.pixels)
    row = probabilities[(overlaps(own, boxes) * probabilities[:, class_id]).argmax()]

    def score(pixels: Tensor) -> Row:
        with torch.no_grad():
            outputs = loop.adapter.forward(pixels[None], 300)
            found = loop.adapter.detect(outputs, [loop.geometry], 0.25, 0.45, 300)[0]
        _, probabilities = loop.candidates(pixels)
        best: Row = (0.0, 0.0, 0.0)
        for box, kind, place in zip(found.network_boxes, found.class_ids.tolist(), found.index.tolist(), strict=True):
            iou = float(overlaps(own, box[None].double().numpy())[0]) * (kind == class_id)
            cosine = cosines(row, probabilities[place][None])[0]
            weight = np.sqrt(np.exp(-((1 - cosine) ** 2) / 0.25**2))
            if iou > best[1]:
                best = (iou * weight, iou, weight)
        return best

    total = loop.heat[i].numel()
    limits = [*range(0, total, 2000), total]
    black, blur = torch.zeros_like(loop.pixels), blurred(loop.pixels, 8.0, "replicate")
    insertion = areas(loop.curve(i, limits, blur, True, score), limits)
    deletion = areas(loop.curve(i, limits, black, False, score), limits)
    assert 0.02 < float(insertion[0]) < 0.98
    assert float(made["insertion_protocol"][i]) == pytest.approx(insertion[0], abs=2e-3)
    assert float(made["deletion_protocol"][i]) == pytest.approx(deletion[0], abs=2e-3)
    assert float(made["insertion_iou_protocol"][i]) == pytest.approx(insertion[1], abs=2e-3)


def test_the_command_names_the_protocol_and_its_corrections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detcam.evaluate.report.draw", lambda folder, document: [folder])  # plots take seconds
    write_dataset(tmp_path / "data", train=(), val=[HELD_OUT_SEED], size=(240, 320), workers=1)
    given = ["evaluate", "--images", str(tmp_path / "data/images/val"), "--labels", str(tmp_path / "data/labels/val")]
    given += ["--model", "scenes-yolo", "--imgsz", "160", "--methods", "odam", "--layers", "level", "--quick"]
    assert cli.run([*given, "--protocol", "odexai", "--out", str(tmp_path / "out")]) == 0
    document = json.loads((tmp_path / "out/report.json").read_text())
    assert document["published"]["name"] == document["settings"]["protocol"]["published"] == "odexai"
    assert document["settings"]["conf"] == 0.25
    names = [m["name"] for m in document["measures"]]
    assert {m.name for m in measures()} <= set(names)
    assert not any(name.endswith("_blur") for name in names)
    assert Protocol(published="odexai").curves() == measures()
    page = (tmp_path / "out/report.md").read_text()
    assert "## Protocol odexai" in page
    assert "Corrected: every step has its own score" in page
    for wrong, said in (
        (["--protocol", "rise"], "choose from vps"),
        (["--protocol", "vps", "--fills", "black"], "leave"),
    ):
        capsys.readouterr()
        assert cli.run([*given, *wrong, "--out", str(tmp_path / "other")]) == 2
        assert said in capsys.readouterr().err
