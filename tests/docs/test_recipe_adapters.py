"""The recipes of docs/recipes.md find the objects of the libraries' own post-processing, and their maps are of the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe_models
import torch
from pages import ROOT, blocks, furnish
from torch import Tensor

from detcam.boxes import box_iou

PAGE = ROOT / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's code has made, by section."""
    folder = furnish(tmp_path_factory.mktemp("recipes"))
    names: dict[str, Any] = {}
    made: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe_models.install(patch)
        for section, block in zip(("yolo", "effdet", "monai"), blocks(PAGE), strict=True):
            exec(compile(block.text, str(PAGE), "exec"), names)
            made[section] = dict(names)
    return made


def greedy(boxes: Tensor, scores: Tensor, kinds: Tensor, iou: float) -> list[int]:
    """Non-maximum suppression by its definition."""
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        rivals = [k for k in kept if kinds[k] == kinds[i]]
        if not rivals or float(box_iou(boxes[i : i + 1], boxes[rivals]).amax()) <= iou:
            kept.append(i)
    return kept


def test_yolo_of_the_repositories(page: dict[str, Any]) -> None:
    names = page["yolo"]
    e, model = names["yolo"], names["model"]
    pixels, geometry = names["prepare"](e.image)
    with torch.no_grad():
        decoded = model(pixels[None])[0][0]
    scores, kinds = (decoded[:, 5:] * decoded[:, 4:5]).max(dim=1)
    boxes = torch.cat([decoded[:, :2] - decoded[:, 2:4] / 2, decoded[:, :2] + decoded[:, 2:4] / 2], dim=1)
    chosen = (scores > 0.25).nonzero().flatten()
    kept = chosen[greedy(boxes[chosen], scores[chosen], kinds[chosen], 0.45)][:20]
    assert len(e) == len(kept) > 1
    torch.testing.assert_close(e.scores, scores[kept])
    torch.testing.assert_close(e.boxes, geometry.to_source(boxes[kept]), rtol=1e-4, atol=1e-2)
    assert e.labels == [model.names[int(k)] for k in kinds[kept]]
    outputs = names["forward"](model, pixels[None])
    product = names["score"](outputs, [e.objects], "prob")
    torch.testing.assert_close(product.detach(), e.scores)
    for target in ("class", "objectness"):
        assert names["score"](outputs, [e.objects], target).requires_grad


def test_effdet(page: dict[str, Any]) -> None:
    names = page["effdet"]
    e, model = names["efficientdet"], names["model"]
    pixels, geometry = names["adapter"](model, model, model.config.image_size[0]).prepare(e.image)
    batch = (pixels[None] - names["mean"]) / names["std"]
    if isinstance(model, recipe_models.EfficientDet):
        logits, codes = names["forward"](model, pixels[None])
        scores, kinds = logits[0].sigmoid().flatten(), torch.arange(logits[0].numel()) % recipe_models.CLASSES
        boxes = recipe_models.decode(codes[0], recipe_models.anchor_boxes(), output_xyxy=True)
        boxes = boxes.repeat_interleave(recipe_models.CLASSES, dim=0)
        kept = greedy(boxes.detach(), scores.detach(), kinds, 0.5)[:100]
        expected = torch.cat([boxes[kept], scores[kept, None], kinds[kept, None] + 1], dim=1).detach()
    else:
        from effdet import DetBenchPredict

        with torch.no_grad():
            expected = DetBenchPredict(model)(batch)[0]  # x1, y1, x2, y2, score, class from 1
    (found,) = names["detect"](names["forward"](model, pixels[None]), 0.0)
    n = int((expected[:, 4] > 0).sum())
    assert len(found["scores"]) == n > 3
    torch.testing.assert_close(found["scores"].detach(), expected[:n, 4])
    torch.testing.assert_close(found["boxes"].detach(), expected[:n, :4], rtol=1e-4, atol=1e-2)
    assert (found["class_ids"] + 1).tolist() == expected[:n, 5].long().tolist()
    torch.testing.assert_close(e.scores, expected[: len(e), 4])
    torch.testing.assert_close(e.boxes, geometry.to_source(expected[: len(e), :4]), rtol=1e-4, atol=1e-2)


def test_monai(page: dict[str, Any]) -> None:
    names = page["monai"]
    e, scan = names["segments"], torch.from_numpy(np.asarray(names["scan"]))
    with torch.no_grad():
        labels = names["network"](scan[None, None])[0].argmax(dim=0)  # AsDiscrete(argmax=True)
    assert sorted(e.labels) == [n for i, n in ((1, "liver"), (2, "tumour")) if bool((labels == i).any())]
    for label, mask in zip(e.labels, e.masks, strict=True):
        assert torch.equal(mask, labels == {"liver": 1, "tumour": 2}[label])


def test_real_packages_are_used_where_they_are_installed(page: dict[str, Any]) -> None:
    for package, section, name in (("effdet", "effdet", "model"), ("monai", "monai", "network")):
        pytest.importorskip(package, reason=f"{package} is not installed: the stand-in proves the recipe")
        assert type(page[section][name]).__module__.startswith(package)


def test_the_page_names_the_stand_ins() -> None:
    assert "a stand-in only" in Path(PAGE).read_text()
