"""torchvision detectors with random weights that find objects, what torchvision says of a picture, and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detcam import Explainer
from detcam.adapters import adapter_for
from detcam.engine import Capture, Seed, Window, object_gradients, shadow, window_gradients
from detcam.types import Objects, image_index

TWO_STAGE = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
)
DENSE = (
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
CLASSES = 5
WIDTH = 64  # of the pyramid and the second stage of small models
SIZE = {"min_size": 160, "max_size": 320}
SMALL = {"min_size": 64, "max_size": 128}
FEW_PROPOSALS = {"rpn_pre_nms_top_n_test": 12, "box_detections_per_img": 16, "rpn_score_thresh": 0.0}  # of each level
FEW_CANDIDATES = {"topk_candidates": 5}  # of each level, so that all levels give objects


def architecture(name: str, seed: int, picture: np.ndarray) -> nn.Module:
    """A detector that torchvision's own builder makes, in eval mode, with random weights that find objects."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    if name in TWO_STAGE:
        given |= {**SIZE, **FEW_PROPOSALS, **pools(["0", "1", "2", "3"], "mask" in name)}
    elif name.startswith("ssd"):
        given |= {"detections_per_img": 12}
    else:
        given |= {**SIZE, **FEW_CANDIDATES}
    return drawn(getattr(detection, name)(**given), picture)


def small(kind: str, seed: int, picture: np.ndarray, **options: Any) -> nn.Module:
    """A "faster", "mask", "retinanet" or "fcos" detector on a ResNet of four blocks, in eval mode, that finds objects."""
    torch.manual_seed(seed)
    if kind in ("faster", "mask"):
        backbone = _pyramid([1, 2, 3, 4], LastLevelMaxPool())
        made = {**SMALL, **FEW_PROPOSALS, **pools(["0", "1", "2", "3"], kind == "mask"), **options}
        made |= {"box_head": TwoMLPHead(WIDTH * 7 * 7, WIDTH), "box_predictor": FastRCNNPredictor(WIDTH, CLASSES)}
        if kind == "faster":
            return drawn(detection.FasterRCNN(backbone, **made), picture)
        masks = {
            "mask_head": MaskRCNNHeads(WIDTH, (WIDTH,), 1),
            "mask_predictor": MaskRCNNPredictor(WIDTH, 32, CLASSES),
        }
        return drawn(detection.MaskRCNN(backbone, **masks, **made), picture)
    backbone = _pyramid([2, 3, 4], LastLevelP6P7(WIDTH, WIDTH))
    one_stage = FCOS if kind == "fcos" else detection.RetinaNet
    return drawn(one_stage(backbone, CLASSES, **{**SMALL, **FEW_CANDIDATES, **options}), picture)


def _pyramid(layers: list[int], extra: nn.Module) -> nn.Module:
    """Like torchvision's `resnet_fpn_backbone`, with one block in each layer and few channels in the pyramid."""
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=FrozenBatchNorm2d)
    for part in (body.conv1, body.layer1):
        part.requires_grad_(False)
    names = {f"layer{layer}": str(i) for i, layer in enumerate(layers)}
    return BackboneWithFPN(body, names, [32 * 2**layer for layer in layers], WIDTH, extra)


def pools(maps: list[str], mask: bool) -> dict[str, nn.Module]:
    """RoIAlign that spreads the boxes of a small picture over all levels of the pyramid."""
    made = {"box_roi_pool": MultiScaleRoIAlign(maps, 7, 2, canonical_scale=48)}
    return made | ({"mask_roi_pool": MultiScaleRoIAlign(maps, 14, 2, canonical_scale=48)} if mask else {})


@torch.no_grad()
def drawn(model: Any, picture: np.ndarray) -> nn.Module:
    """Draw all weights so that signals keep their size; the last layers' outputs on `picture` get a natural spread."""
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                nn.init.normal_(part.bias, 0, 0.02)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, 0.2, 0.2)
            part.momentum = 1.0  # takes the statistics of the next batch
    images, _ = model.transform([as_tensor(picture)])
    model.train()
    model.backbone(images.tensors.repeat(2, 1, 1, 1))
    model.eval()
    features = model.backbone(images.tensors)
    features = {"0": features} if isinstance(features, Tensor) else features
    if hasattr(model, "roi_heads"):
        _spread_two_stage(model, images, features)
    else:
        _spread_dense(model.head, list(features.values()))
    return model


def _spread_two_stage(model: Any, images: Any, features: dict[str, Tensor]) -> None:
    rpn, heads = model.rpn.head, model.roi_heads
    maps = list(features.values())
    _spread(rpn.cls_logits, lambda: rpn(maps)[0], 1.0)
    _spread(rpn.bbox_pred, lambda: rpn(maps)[1], 0.3)
    proposals, _ = model.rpn(images, features)
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    _spread(heads.box_predictor.cls_score, lambda: [heads.box_predictor(pooled)[0]], 2.0)
    heads.box_predictor.cls_score.bias -= heads.box_predictor(pooled)[0].mean(dim=0)  # or all may be background
    _spread(heads.box_predictor.bbox_pred, lambda: [heads.box_predictor(pooled)[1]], 1.0)
    if heads.has_mask():
        cells = heads.mask_head(heads.mask_roi_pool(features, proposals, images.image_sizes))
        _spread(heads.mask_predictor.mask_fcn_logits, lambda: [heads.mask_predictor(cells)], 1.0)


def _spread_dense(head: Any, maps: list[Tensor]) -> None:
    classes, boxes = head.classification_head, head.regression_head
    if hasattr(classes, "module_list"):  # SSD: one layer, or block, for each level
        for part, width in ((classes, 1.5), (boxes, 1.0)):
            for layer, level in zip(part.module_list, maps, strict=True):
                last = layer[-1] if isinstance(layer, nn.Sequential) else layer
                _spread(last, lambda layer=layer, level=level: [layer(level)], width)
        return
    _spread(classes.cls_logits, lambda: [classes(maps)], 1.0)
    _spread(boxes.bbox_reg, lambda: [boxes.bbox_reg(boxes.conv(level)) for level in maps], 0.2)
    if hasattr(boxes, "bbox_ctrness"):
        _spread(boxes.bbox_ctrness, lambda: [boxes(maps)[1]], 1.0)
        boxes.bbox_reg.bias += 1.5  # FCOS cuts negative sides at zero


def _spread(layer: Any, run: Callable[[], list[Tensor]], width: float) -> None:
    """Scale and shift a last layer so that what it puts out has mean 0 and this standard deviation."""
    values = torch.cat([v.flatten() for v in run()])
    gain = width / values.std()
    layer.weight *= gain
    layer.bias.copy_((layer.bias - values.mean()) * gain)


def as_tensor(picture: np.ndarray) -> Tensor:
    """[3, H, W] float32 in [0, 1], as torchvision's users make it."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


@torch.no_grad()
def predict(model: nn.Module, picture: np.ndarray) -> dict[str, Tensor]:
    """What torchvision itself returns for one picture."""
    parameter = next(model.parameters())
    pixels = torch.tensor(picture).permute(2, 0, 1).to(parameter.dtype) / 255
    result: dict[str, Tensor] = model([pixels])[0]
    return result


def conf_after(scores: Tensor, count: int) -> float:
    """A threshold that about `count` scores (in falling order) exceed, in the widest gap near there."""
    count = min(count, len(scores) - 1)
    near = scores[max(count - 3, 0) : count + 4]
    widest = int(near.diff().argmin())
    return float(near[widest : widest + 2].mean())


def assert_same_objects(explanation: Any, result: dict[str, Tensor], conf: float, max_det: int = 300) -> None:
    """Same objects in the same order as torchvision's result, cut at `conf`.

    Boxes to 1e-3 pixels; in float32 to 1e-2 and to 1e-3 of the coordinate, because convolutions round differently in
    channels-last order.
    """
    keep = (result["scores"] > conf).nonzero().flatten()[:max_det]
    assert len(explanation) == len(keep)
    exact = result["boxes"].dtype == torch.float64
    box, share, score = (1e-3, 0.0, 1e-6) if exact else (1e-2, 1e-3, 5e-4)
    torch.testing.assert_close(explanation.boxes, result["boxes"][keep].float(), rtol=share, atol=box)
    torch.testing.assert_close(explanation.scores, result["scores"][keep].float(), rtol=0, atol=score)
    assert explanation.class_ids.tolist() == result["labels"][keep].tolist()
    if "masks" in result:
        ours, theirs = explanation.masks, result["masks"][keep, 0] > 0.5
        overlap = (ours & theirs).sum(dim=(1, 2)) / (ours | theirs).sum(dim=(1, 2)).clamp(min=1)
        assert bool((overlap[theirs.any(dim=2).any(dim=1)] >= 0.98).all())
        assert bool((ours.any(dim=2).any(dim=1) == theirs.any(dim=2).any(dim=1)).all())


def assert_sound_maps(explanation: Any, reads: list[bool] | None = None) -> None:
    """One finite map per object at the picture's size, and a gradient for each: a map without heat says why.

    `reads` tells for which objects torchvision itself read anything from the maps; by default for all.
    """
    reads = reads or [True] * len(explanation)
    height, width = explanation.image.shape[:2]
    assert explanation.heatmaps.shape == (len(explanation), height, width)
    assert bool(explanation.heatmaps.isfinite().all())
    for raw, note, read in zip(explanation.maps, explanation.notes, reads, strict=True):
        assert bool(raw.isfinite().all())
        assert bool(raw.any()) == read, "the scalar has a gradient where the object read something, and only there"
        why = "no cell contributes positively" if read else "the score has no gradient"
        assert bool((raw > 0).any()) or (note is not None and why in note)


def slopes(score: Callable[[list[Tensor]], Tensor], at: list[Tensor], along: list[Tensor], step: float) -> Tensor:
    """(S(A + h d) - S(A - h d)) / 2h for every scalar, by running `score` at both places.

    Of the steps h, h / 10 and h / 100, each scalar has that at which both sides agree best: a kink between them, of a
    rectifier or of a pooled cell, bends the difference.
    """
    steps = [step, step / 10, step / 100]
    with torch.no_grad():
        here = score(at)
        ahead, behind = (
            torch.stack([score([a + sign * h * d for a, d in zip(at, along, strict=True)]) for h in steps])
            for sign in (1, -1)
        )
    width = here.new_tensor(steps).view(-1, *[1] * here.ndim)
    bends = ((ahead - 2 * here + behind) / width).abs()
    return ((ahead - behind) / (2 * width)).gather(0, bends.argmin(dim=0, keepdim=True))[0]


class Bright(nn.Module):
    """A backbone with one map of stride 8: how far each 8 x 8 patch is brighter than the mean, in both channels."""

    out_channels = 2

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels.mean(dim=1, keepdim=True), 8).relu().repeat(1, 2, 1, 1)


def square(size: tuple[int, int], seed: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A black picture of `size` with one white square, and its (top, left, bottom, right)."""
    generator = np.random.default_rng(seed)
    side = min(size) // 4
    top, left = (int(generator.integers(0, extent - side)) for extent in size)
    picture = np.zeros((*size, 3), np.uint8)
    picture[top : top + side, left : left + side] = 255
    return picture, (top, left, top + side, left + side)


def assert_hot_on_the_square(
    explanation: Any, planted: tuple[int, int, int, int], cell: int = 8, one_cell: bool = False
) -> None:
    """The first object's hot spot lies on the square, give or take one feature cell.

    With `one_cell` the score reads a single cell; else the heat's centre is also that of the square.
    """
    heat = explanation.heatmaps[0]
    spots = divmod(int(heat.argmax()), heat.shape[1])
    scales = [n / s for n, s in zip(explanation.geometry.resized, explanation.geometry.source, strict=True)]
    for axis, (spot, scale) in enumerate(zip(spots, scales, strict=True)):
        first, last = planted[axis], planted[axis + 2]
        assert first - cell / scale <= spot < last + cell / scale, (axis, spot, planted)
        if not one_cell:
            weights = heat.sum(dim=1 - axis)
            centre = float((weights * torch.arange(len(weights))).sum() / weights.sum())
            assert abs(centre - (first + last - 1) / 2) <= cell / scale, (axis, centre, planted)


def assert_a_list_gives_what_single_pictures_give(
    model: nn.Module, pictures: list[np.ndarray], conf: float, max_det: int
) -> None:
    """In float64: in random networks, rounding makes a few units near zero jump, and their gradients with them."""
    model = model.double()
    explainer = Explainer(model, conf=conf, max_det=max_det)
    together = explainer(pictures)
    assert sum(len(e) for e in together) > 4
    for picture, one in zip(pictures, together, strict=True):
        assert_same_objects(one, predict(model, picture), conf, max_det=max_det)
        alone = explainer(picture)
        for ours, theirs in zip(one.maps, alone.maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


class Setup:
    """A model's adapter, its outputs for pictures of one size, and the objects found above `conf`."""

    def __init__(self, model: nn.Module, pictures: list[np.ndarray], conf: float) -> None:
        self.model: Any = model
        self.pictures, self.conf = pictures, conf
        self.adapter: Any = adapter_for(model)(shadow(model), model)
        prepared = [self.adapter.prepare(picture) for picture in pictures]
        self.batch = torch.stack([pixels for pixels, _ in prepared])
        self.geometries = [geometry for _, geometry in prepared]

    def run(self, layers: tuple[str, ...] = (), max_det: int = 14) -> tuple[Any, list[Objects], list[Tensor]]:
        """The outputs, the objects of each picture, and what the layers put out."""
        with Capture({name: self.adapter.module.get_submodule(name) for name in layers}) as capture:
            outputs = self.adapter.forward(self.batch, 300)
        objects = self.adapter.detect(outputs, self.geometries, self.conf, 0.7, max_det)
        assert len(objects[0]) > 1
        by_name = {c.name: c.tensor for c in capture.captured}
        return outputs, objects, [by_name[name] for name in layers]

    def assert_the_gradient_lives_at_the_objects_own_level(self) -> None:
        outputs, objects, tensors = self.run(self.adapter.layers("level").names)
        levels = torch.cat([o.level for o in objects])
        image = image_index(objects, torch.device("cpu"))
        for turn, gradients in object_gradients(self.adapter.score(outputs, objects, "class"), image, tensors):
            for level, gradient in enumerate(gradients):
                assert gradient is not None
                assert gradient.flatten(1).any(dim=1).tolist() == (levels[turn] == level).tolist()
        assert len(levels.unique()) > 1


def assert_readouts_agree(
    adapter: Any, outputs: Any, objects: list[Objects], tensors: list[Tensor], target: str
) -> None:
    """Gradients in windows, from the adapter's readouts, equal those of a plain backward for each object."""
    images = image_index(objects, torch.device("cpu"))
    scalars = adapter.score(outputs, objects, target)
    scalars = scalars if scalars.ndim == 2 else scalars[:, None]
    readouts = adapter.readouts(outputs, objects, target)
    assert sorted(torch.cat([r.objects for r in readouts]).tolist()) == list(range(len(scalars)))
    for column in range(scalars.shape[1]):
        expected: dict[int, list[Tensor | None]] = {}
        for turn, gradients in object_gradients(scalars[:, column], images, tensors):
            for row, i in enumerate(turn.tolist()):
                expected[i] = [None if g is None else g[row] for g in gradients]
        for readout in readouts:
            seeds = [
                Seed(s.tensor, Window(s.gradients[:, column], s.start.numpy().astype(np.int64)))
                for s in readout.sources
            ]
            windows = window_gradients(seeds, tensors, images[readout.objects].numpy())
            for row, i in enumerate(readout.objects.tolist()):
                largest = max(float(g.abs().max()) for g in expected[i] if g is not None)
                for window, tensor, plain in zip(windows, tensors, expected[i], strict=True):
                    ours = torch.zeros_like(tensor[0])
                    if window is not None:
                        (y, x), (height, width) = window.start[row].tolist(), window.extent
                        ours[:, y : y + height, x : x + width] = window.values[row]
                    plain = torch.zeros_like(ours) if plain is None else plain
                    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5 * largest)
