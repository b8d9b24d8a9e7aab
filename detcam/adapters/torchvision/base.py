"""What torchvision's detectors share: their transform and its inverse, their backbones' layers, and their scalars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, LayerPlan
from detcam.errors import ImageError
from detcam.geometry import Geometry
from detcam.types import Objects

CLASS_TARGETS = ("class", "prob", "margin")
SIDES = ("left", "top", "right", "bottom")
BOX_TARGETS = ("box", *SIDES)
COCO_CLASSES = 91  # outputs of a model trained on COCO, the background among them


@dataclass(frozen=True)
class Found:
    """n candidates or objects of one picture, as torchvision's post-processing has them.

    Attributes:
        boxes: [n, 4] xyxy in pixels of the resized picture, clipped to it.
        scores: [n] in [0, 1].
        labels: [n] int64 class numbers; 0 is the background.
        index: [n] int64, the anchor or proposal that each was read from.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    index: Tensor

    def select(self, keep: Tensor) -> Found:
        """Those at the positions `keep` ([k] int64), or where it is True ([n] bool)."""
        return Found(self.boxes[keep], self.scores[keep], self.labels[keep], self.index[keep])

    def best(self, overlap: float, count: int, conf: float, max_det: int) -> Found:
        """What torchvision keeps, best first: by class, none that overlaps a better one, the first `count`.

        Of these come back the first `max_det` that score above `conf` and whose box is finite.
        """
        from torchvision.ops import batched_nms

        kept = self.select(batched_nms(self.boxes, self.scores, self.labels, overlap)[:count])
        sound = kept.boxes.isfinite().all(dim=1)  # a broken model's NaN stays inside
        return kept.select(((kept.scores > conf) & sound).nonzero().flatten()[:max_det])


class TorchvisionAdapter(Adapter):
    """A detector of torchvision, or one derived from it.

    `conf` rules alone: where the model's own score threshold is higher, it does not apply; where it is lower, objects
    between the two are dropped. The overlap of non-maximum suppression and the largest number of objects stay the
    model's own, as in its own call, so the option `iou` has no effect.

    `module` is a view of the detector; `imgsz` is the shorter side of the resized picture, in pixels (the limit of the
    longer side scales with it), or both sides for SSD, which resizes to a fixed square.
    """

    family = "torchvision"
    install = "pip install torchvision"
    origin: ClassVar[str]  # the torchvision module that the detector's class, or one that it derives from, lives in
    person = False  # whether it finds key points of people

    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        self.module = module
        network: Any = module
        self.backbone: Any = network.backbone
        self.transform: Any = network.transform
        if imgsz is not None:
            self._resize_to(imgsz)
        fixed = self.transform.fixed_size  # (width, height), or None
        self.imgsz = self.transform.min_size[-1] if fixed is None else fixed[0] if fixed[0] == fixed[1] else fixed[::-1]
        self.task = "detect"
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def _resize_to(self, imgsz: int) -> None:
        transform = self.transform
        if transform.fixed_size is not None:
            transform.fixed_size = (imgsz, imgsz)
            return
        transform.max_size = round(imgsz * transform.max_size / transform.min_size[-1])
        transform.min_size = (imgsz,)

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a detector of torchvision, or derived from one."""
        return any(base.__module__ == cls.origin for base in type(model).__mro__)

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: torchvision has no wrappers."""
        module: nn.Module = model
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: torchvision's own normalisation, resize and padding.

        Raises:
            ImageError: for a picture so thin that torchvision would resize it to nothing.
        """
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1).to(self.dtype) / 255
        source = (image.shape[0], image.shape[1])
        try:
            resized, _ = self.transform.resize(self.transform.normalize(pixels))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ImageError(
                f"picture of {source[1]} x {source[0]} pixels cannot be resized ({reason}): crop it"
            ) from None
        padded = self.transform.batch_images([resized], self.transform.size_divisible)[0]
        sizes = [(int(t.shape[1]), int(t.shape[2])) for t in (resized, padded)]
        return padded, Geometry(source, sizes[0], (0, 0), sizes[1])

    def _features(self, batch: Tensor) -> dict[str, Tensor]:
        """The backbone's maps [B, C, h, w] by torchvision's names for them."""
        features = self.backbone(batch)
        return {"0": features} if isinstance(features, Tensor) else dict(features)

    def _objects(
        self,
        found: Found,
        geometry: Geometry,
        classes: int,
        level: Tensor,  # [N] int64
        cells: Tensor,  # [N, 2] int64
        **more: Any,  # further fields of `Objects`
    ) -> Objects:
        boxes = found.boxes.float()
        return Objects(
            boxes=geometry.to_source(boxes),
            scores=found.scores.float(),
            class_ids=found.labels,
            labels=class_names(found.labels.tolist(), classes, self.person),
            index=found.index,
            level=level,
            cells=cells,
            network_boxes=boxes,
            **more,
        )

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`; a backbone of unknown structure is one layer, which may put out several maps."""
        if preset == "evidence":
            return LayerPlan(neck_inputs(self.backbone), cut_all=True, fuse="sum")
        names = tuple(map_names(self.backbone).values())
        return LayerPlan(names, True, "level") if names else LayerPlan(("backbone",), True, "sum")


def map_names(backbone: Any) -> dict[str, str]:
    """For each map of a backbone that torchvision builds: its name there, and the module that it comes from.

    A map that no module puts out stands for the module before it: SSD normalises and scales the output of
    `backbone.features`, `pool` is every second cell of the pyramid's last map. Empty for an unknown structure.
    """
    if hasattr(backbone, "fpn"):
        stages = list(backbone.body.return_layers.values())
        names = {stage: f"backbone.fpn.layer_blocks.{i}" for i, stage in enumerate(stages)}
        extra = backbone.fpn.extra_blocks
        if hasattr(extra, "p6"):
            names |= {p: f"backbone.fpn.extra_blocks.{p}" for p in ("p6", "p7")}
        elif extra is not None:
            names["pool"] = names[stages[-1]]
        return names
    if hasattr(backbone, "features") and hasattr(backbone, "extra"):
        maps = [*_ssd_stages(backbone), *(f"backbone.extra.{i}" for i in range(len(backbone.extra)))]
        return {str(i): name for i, name in enumerate(maps)}
    return {}


def neck_inputs(backbone: Any) -> tuple[str, ...]:
    """The backbone's stages that the pyramid reads; for SSD, which has none, the two maps of its classifier."""
    if hasattr(backbone, "fpn"):
        return tuple(f"backbone.body.{name}" for name in backbone.body.return_layers)
    return tuple(map_names(backbone).values())[:2] or ("backbone",)


def _ssd_stages(backbone: Any) -> list[str]:
    """SSD300 reads one map of VGG, SSDlite two of MobileNet; what follows is `extra`."""
    if hasattr(backbone, "scale_weight"):
        return ["backbone.features"]
    return [f"backbone.features.{i}" for i in range(len(backbone.features))]


def image_list(batch: Tensor, sizes: list[tuple[int, int]]) -> Any:
    """torchvision's ImageList: a padded batch [B, 3, h, w], and the (height, width) of each picture before."""
    from torchvision.models.detection.image_list import ImageList

    return ImageList(batch, sizes)


def columns(scalars: Tensor) -> Tensor:
    """[n, M] from M scalars per object, or [n, 1] from one [n]."""
    return scalars if scalars.ndim == 2 else scalars[:, None]


def class_names(labels: list[int], classes: int, person: bool = False) -> tuple[str, ...]:
    """Names of class numbers. A model keeps none, but those of torchvision's own weights are told by their number.

    Args:
        labels: class numbers, below `classes`.
        classes: how many the model tells apart, the background among them.
        person: whether it finds key points of people.
    """
    names: list[str] = []
    if classes == COCO_CLASSES:
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    elif person and classes == 2:
        names = ["no person", "person"]
    return tuple(names[label] if names else f"class {label}" for label in labels)


def own_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] the logits of the classes `labels` [N] in `logits` [N, K]."""
    return logits.gather(1, labels[:, None]).squeeze(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] how far the logits of `labels` [N] lie above the best other one in `logits` [N, K]."""
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return own_logit(logits, labels) - others.amax(dim=1)


def side_score(boxes: Tensor, origins: Tensor, target: str) -> Tensor:
    """Distances from the centres of `origins` [N, 4] to the sides of `boxes` [N, 4]: all four [N, 4], or one [N]."""
    centre = (origins[:, :2] + origins[:, 2:]) / 2
    sides = torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], dim=1)
    return sides if target == "box" else sides[:, SIDES.index(target)]
