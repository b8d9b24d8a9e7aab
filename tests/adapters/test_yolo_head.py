"""Each scalar has the value that the model's raw outputs give it, and the slope that finite differences find."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support import few, few_rows, random_picture, random_yolo, seed_of
from torch import Tensor

from detcam.adapters import YoloAdapter
from detcam.engine import Capture, object_gradients, shadow
from detcam.types import Objects, image_index

TARGETS = ("class", "prob", "margin", "left", "top", "right", "bottom", "box", "mask")
HEADS = ["yolov8n-seg.yaml", "yolo26n-seg.yaml"]  # distances as distributions; distances as plain numbers


class Setup:
    """A float64 segmenter, its adapter, and the objects of two pictures of one network size."""

    def __init__(self, config: str, seed: int) -> None:
        self.pictures = [random_picture(seed + i, 120, 200) for i in range(2)]
        self.model = random_yolo(config, seed, self.pictures[0], 160, found=3).double()
        self.adapter = YoloAdapter(shadow(self.model), self.model, 160)
        prepared = [self.adapter.prepare(picture) for picture in self.pictures]
        self.batch = torch.stack([pixels for pixels, _ in prepared])
        self.geometries = [geometry for _, geometry in prepared]

    def run(self, layers: tuple[str, ...] = ()) -> tuple[Any, list[Objects], list[Tensor]]:
        named = dict(self.adapter.module.named_modules())
        with Capture({name: named[name] for name in layers}, cut_all=True) as capture:
            outputs = self.adapter.forward(self.batch, 300)
        objects = self.adapter.detect(outputs, self.geometries, 0.25, 0.7, 6)
        return outputs, objects, [c.tensor for c in capture.captured]


@cache
def built(config: str) -> Setup:
    setup = Setup(config, seed_of(config))
    assert len(setup.run()[1][0]) >= 2
    return setup


@pytest.fixture(params=HEADS)
def setup(request: pytest.FixtureRequest) -> Setup:
    return built(request.param)


def raw(setup: Setup) -> Any:
    """What Ultralytics' own head computes, with no code of ours in between."""
    with torch.no_grad():
        (decoded, prototypes), predictions = setup.model.eval()(setup.batch)
    predictions = predictions.get("one2many", predictions)
    return decoded, prototypes, predictions


def flat(objects: list[Objects]) -> tuple[Tensor, Tensor, Tensor]:
    device = torch.device("cpu")
    return (
        image_index(objects, device),
        torch.cat([o.index for o in objects]),
        torch.cat([o.class_ids for o in objects]),
    )


def test_class_scores_are_those_of_the_kept_anchor(setup: Setup) -> None:
    outputs, objects, _ = setup.run()
    decoded, _, predictions = raw(setup)
    image, anchor, classes = flat(objects)
    logits = predictions["scores"][image, :, anchor]  # [N, 7]
    own = logits[torch.arange(len(classes)), classes]
    score = {target: setup.adapter.score(outputs, objects, target) for target in TARGETS[:3]}
    torch.testing.assert_close(score["class"], own)
    torch.testing.assert_close(score["prob"], decoded[image, 4 + classes, anchor])
    torch.testing.assert_close(score["prob"].float(), torch.cat([o.scores for o in objects]))
    rest = [max(row[c] for c in range(7) if c != k).item() for row, k in zip(logits, classes.tolist(), strict=True)]
    torch.testing.assert_close(score["margin"], own - torch.tensor(rest, dtype=torch.float64))


def test_sides_rebuild_the_box_from_its_anchor_point(setup: Setup) -> None:
    """Distances are measured from the centre of the object's cell, in network pixels."""
    outputs, objects, _ = setup.run()
    left, top, right, bottom = (setup.adapter.score(outputs, objects, side) for side in TARGETS[3:7])
    _, anchor, _ = flat(objects)
    centres = []
    for stride, (height, width) in zip((8, 16, 32), outputs.cells, strict=True):
        assert (height * stride, width * stride) == tuple(setup.batch.shape[2:])
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres.append((torch.stack([x, y], dim=-1).view(-1, 2) + 0.5) * stride)
    x, y = torch.cat(centres)[anchor].double().unbind(1)
    boxes = torch.stack([x - left, y - top, x + right, y + bottom], dim=1)
    torch.testing.assert_close(boxes.float(), torch.cat([o.network_boxes for o in objects]), rtol=0, atol=1e-3)
    stacked = setup.adapter.score(outputs, objects, "box")
    assert torch.equal(stacked, torch.stack([left, top, right, bottom], dim=1))


def test_level_and_cell_follow_from_the_anchor(setup: Setup) -> None:
    outputs, objects, _ = setup.run()
    for found in objects:
        for index, level, cell in zip(found.index.tolist(), found.level.tolist(), found.cells.tolist(), strict=True):
            before = sum(h * w for h, w in outputs.cells[:level])
            height, width = outputs.cells[level]
            assert cell == [(index - before) // width, (index - before) % width]
            assert 0 <= cell[0] < height


def test_mask_score_is_the_mean_logit_over_the_fixed_mask(setup: Setup) -> None:
    outputs, objects, _ = setup.run()
    _, prototypes, predictions = raw(setup)
    scores = iter(setup.adapter.score(outputs, objects, "mask"))
    for image, found in enumerate(objects):
        for i in range(len(found)):
            coefficients = predictions["mask_coefficient"][image, :, found.index[i]]
            logits = sum(c * p for c, p in zip(coefficients, prototypes[image], strict=True))
            assert found.mask_logits is not None
            torch.testing.assert_close(found.mask_logits[i], logits.float())
            x1, y1, x2, y2 = (found.network_boxes[i] / 4).tolist()  # prototypes have a quarter of the input's size
            inside = torch.zeros_like(logits, dtype=torch.bool)
            for row in range(logits.shape[0]):
                for column in range(logits.shape[1]):
                    inside[row, column] = y1 <= row < y2 and x1 <= column < x2
            region = inside & (logits > 0)
            if region.any():
                torch.testing.assert_close(next(scores), logits[region].mean(), rtol=1e-5, atol=1e-6)
            else:
                assert bool(next(scores).isfinite())


@pytest.mark.parametrize(
    ("config", "layers"),
    few_rows(
        [("yolov8n-seg.yaml", ("model.15",)), ("yolo26n-seg.yaml", ("model.4", "model.9"))],
        ("yolov8n-seg.yaml", ("model.15",)),
    ),
)
def test_gradients_agree_with_finite_differences(config: str, layers: tuple[str, ...], seed: int) -> None:
    setup = built(config)
    outputs, objects, tensors = setup.run(layers)
    image, _, _ = flat(objects)
    directions = [[torch.randn_like(t) for t in tensors] for _ in range(3)]
    slopes = [_slopes(setup, layers, tensors, objects, direction) for direction in directions]
    for target in TARGETS:
        scalars = _columns(setup.adapter.score(outputs, objects, target))
        for column in range(scalars.shape[1]):
            checked = 0
            for turn, gradients in object_gradients(scalars[:, column], image, tensors):
                for row, i in enumerate(turn.tolist()):
                    for direction, slope in zip(directions, slopes, strict=True):
                        ours = sum(
                            (gradient[row] * along[image[i]]).sum().item()
                            for gradient, along in zip(gradients, direction, strict=True)
                            if gradient is not None
                        )
                        assert ours == pytest.approx(slope[target][i, column].item(), rel=1e-4, abs=1e-7), target
                        checked += ours != 0
            assert checked, f"no {target} score depends on {layers}"


def _columns(scalars: Tensor) -> Tensor:
    return scalars if scalars.ndim == 2 else scalars[:, None]


def _slopes(
    setup: Setup, layers: tuple[str, ...], at: list[Tensor], objects: list[Objects], along: list[Tensor]
) -> dict[str, Tensor]:
    """(S(A + h d) - S(A - h d)) / 2h of every object and target, by replacing what the layers put out."""
    values = []
    step = 1e-6
    for sign in (step, -step):
        replaced = iter([(a + sign * d).detach() for a, d in zip(at, along, strict=True)])
        handles = [
            setup.adapter.module.get_submodule(name).register_forward_hook(lambda m, a, o, r=replaced: next(r))
            for name in layers
        ]
        with torch.no_grad():
            outputs = setup.adapter.forward(setup.batch, 300)
            values.append({target: _columns(setup.adapter.score(outputs, objects, target)) for target in TARGETS})
        for handle in handles:
            handle.remove()
    return {target: (values[0][target] - values[1][target]) / (2 * step) for target in TARGETS}


def test_no_objects_give_no_scores(setup: Setup) -> None:
    outputs, objects, _ = setup.run()
    none = [found.select(torch.zeros(0, dtype=torch.int64)) for found in objects]
    for target in TARGETS:
        assert len(setup.adapter.score(outputs, none, target)) == 0


@pytest.mark.parametrize(
    "config", few(["yolov8n.yaml", "yolov8n-p2.yaml", "yolov9c.yaml", "yolov10n.yaml"], "yolov8n.yaml", "yolov10n.yaml")
)
def test_presets_name_the_right_layers(config: str, seed: int) -> None:
    """ "level": what the head reads, finest first; "evidence": what the neck reads of the backbone."""
    model = random_yolo(config, seed, np.zeros((64, 64, 3), np.uint8), 64)
    adapter = YoloAdapter(shadow(model), model, 64)
    shapes: dict[str, Any] = {}
    for name, module in adapter.module.named_modules():
        if name.count(".") == 1:
            module.register_forward_hook(lambda m, a, out, n=name: shapes.update({n: out}))
    adapter.forward(torch.zeros(1, 3, 64, 64), 300)
    level = adapter.layers("level")
    assert [shapes[name].shape[2] * int(s) for name, s in zip(level.names, adapter.head.stride, strict=True)] == [
        64
    ] * len(level.names)
    doors = {
        "yolov8n.yaml": ("model.4", "model.6", "model.9"),
        "yolov8n-p2.yaml": ("model.2", "model.4", "model.6", "model.9"),
        "yolov9c.yaml": ("model.4", "model.6", "model.9"),
        "yolov10n.yaml": ("model.4", "model.6", "model.10"),
    }
    assert adapter.layers("evidence").names == doors[config]
