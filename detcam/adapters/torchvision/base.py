"""Base of torchvision's detectors: transform and its inverse, selection of objects, layers of the backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from detcam.adapters.base import Adapter, ImageSize, LayerPlan, sides_of
from detcam.errors import ImageError
from detcam.geometry import Geometry
from detcam.images import unit_tensor
from detcam.types import Objects

COCO_CLASSES = 91  # outputs of a model trained on COCO, with the background


@dataclass(frozen=True)
class Candidates:
    """n candidates or objects of one image, as in torchvision's post-processing."""

    boxes: Tensor  # [n, 4] xyxy in pixels of the resized image, clipped to the image
    scores: Tensor  # [n] in [0, 1]
    labels: Tensor  # [n] int64 class numbers; 0 is the background
    index: Tensor  # [n] int64, the anchor or proposal that each candidate was read from

    def select(self, keep: Tensor) -> Candidates:
        """The candidates at the positions `keep` ([k] int64), or where it is True ([n] bool)."""
        return Candidates(self.boxes[keep], self.scores[keep], self.labels[keep], self.index[keep])

    def best(self, overlap: float, count: int, conf: float, max_det: int) -> Candidates:
        """The objects that torchvision keeps, best first: non-maximum suppression by class, then the first `count`.

        Returns the first `max_det` of these with a score above `conf` and a finite box.
        """
        from torchvision.ops import batched_nms

        kept = self.select(batched_nms(self.boxes, self.scores, self.labels, overlap)[:count])
        finite = kept.boxes.isfinite().all(dim=1)  # the NaN of a broken model never leaves the package
        return kept.select(((kept.scores > conf) & finite).nonzero().flatten()[:max_det])


class TorchvisionAdapter(Adapter):
    """Detectors of torchvision, or derived from them.

    `conf` is the only score threshold: a higher threshold of the model does not apply, and objects between a lower
    threshold and `conf` are dropped. The overlap of non-maximum suppression and the maximum number of objects are the
    model's, so the option `iou` has no effect.

    `module` is a view of the detector; `imgsz` is the shorter side of the resized image, in pixels (the limit of the
    longer side scales with it), or (height, width) that it fits into; for SSD both sides.
    """

    family = "torchvision"
    install = "pip install torchvision"
    origin: ClassVar[str]  # the torchvision module of the detector's class or of a base class
    person = False  # whether the model detects key points of people

    def __init__(self, module: Any, model: Any, imgsz: ImageSize | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.backbone = module.backbone
        self.transform = module.transform
        if (means := len(self.transform.image_mean)) > 1:
            self.channels = means
        self.names = names if isinstance(names := getattr(module, "names", {}), dict) else {}
        facts = ("out_features", "num_classes", "num_columns")  # of a linear layer, of heads
        counts = {getattr(part, fact, 0) for part in module.modules() for fact in facts}
        if not self.names and COCO_CLASSES in counts:
            self.names = dict(enumerate(class_names(list(range(COCO_CLASSES)), COCO_CLASSES, {})))
        if imgsz is not None:
            self._resize_to(imgsz)
        fixed = self.transform.fixed_size  # (width, height), or None
        self.imgsz = self.transform.min_size[-1] if fixed is None else fixed[0] if fixed[0] == fixed[1] else fixed[::-1]
        self.task = "detect"

    def _resize_to(self, imgsz: ImageSize) -> None:
        transform = self.transform
        if transform.fixed_size is not None:
            transform.fixed_size = sides_of(imgsz)[::-1]
            return
        if not isinstance(imgsz, int):  # the image fits into it
            transform.min_size, transform.max_size = (min(imgsz),), max(imgsz)
            return
        transform.max_size = round(imgsz * transform.max_size / transform.min_size[-1])
        transform.min_size = (imgsz,)

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a detector of torchvision, or derived from one."""
        return any(base.__module__ == cls.origin for base in type(model).__mro__)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: as torchvision does; an ImageError if a side of a thin image would become 0 pixels."""
        pixels = unit_tensor(self.fit(image), self.device, self.dtype)
        source = (image.shape[0], image.shape[1])
        try:
            resized, _ = self.transform.resize(self.transform.normalize(pixels))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ImageError(
                f"image of {source[1]} x {source[0]} pixels cannot be resized ({reason}): crop it"
            ) from None
        padded = self.transform.batch_images([resized], self.transform.size_divisible)[0]
        sizes = [(int(t.shape[1]), int(t.shape[2])) for t in (resized, padded)]
        return padded, Geometry(source, sizes[0], (0, 0), sizes[1])

    def _features(self, batch: Tensor) -> dict[str, Tensor]:
        """The backbone's maps [B, C, h, w] by torchvision's names."""
        features = self.backbone(batch)
        return {"0": features} if isinstance(features, Tensor) else dict(features)

    def _objects(
        self,
        candidates: Candidates,
        geometry: Geometry,
        classes: int,
        level: Tensor,  # [N] int64
        cells: Tensor,  # [N, 2] int64
        **more: Any,  # further fields of `Objects`
    ) -> Objects:
        boxes = candidates.boxes.float()
        return Objects(
            boxes=geometry.to_source(boxes),
            scores=candidates.scores.float(),
            class_ids=candidates.labels,
            labels=class_names(candidates.labels.tolist(), classes, self.names, self.person),
            index=candidates.index,
            level=level,
            cells=cells,
            network_boxes=boxes,
            **more,
        )

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`; a backbone of unknown structure counts as a single layer with one or more maps."""
        if preset == "evidence":
            return LayerPlan(neck_inputs(self.backbone), cut_all=True, fuse="sum")
        names = tuple(map_names(self.backbone).values())
        return LayerPlan(names, True, "level") if names else LayerPlan(("backbone",), True, "sum")


def map_names(backbone: Any) -> dict[str, str]:
    """Name of each map of a torchvision backbone -> module that the map comes from; empty for unknown structures.

    Some maps are not the output of a module, and are given the module before: SSD normalises and scales the output of
    `backbone.features`, and `pool` is every second cell of the pyramid's last map.
    """
    if _is_pyramid(backbone):
        stages = list(backbone.body.return_layers.values())
        names = {stage: f"backbone.fpn.layer_blocks.{i}" for i, stage in enumerate(stages)}
        extra = backbone.fpn.extra_blocks
        if hasattr(extra, "p6"):
            names |= {p: f"backbone.fpn.extra_blocks.{p}" for p in ("p6", "p7")}
        elif extra is not None:
            names["pool"] = names[stages[-1]]
        return names
    if any(base.__module__.startswith("torchvision.models.detection.ssd") for base in type(backbone).__mro__):
        maps = [*_ssd_stages(backbone), *(f"backbone.extra.{i}" for i in range(len(backbone.extra)))]
        return {str(i): name for i, name in enumerate(maps)}
    return {}


def _is_pyramid(backbone: Any) -> bool:
    """Whether a backbone has the parts of torchvision's with a pyramid; others may use the same names."""
    fpn, stages = getattr(backbone, "fpn", None), getattr(getattr(backbone, "body", None), "return_layers", None)
    blocks: Any = getattr(fpn, "layer_blocks", ())
    return hasattr(fpn, "extra_blocks") and isinstance(stages, dict) and len(blocks) == len(stages)


def neck_inputs(backbone: Any) -> tuple[str, ...]:
    """The backbone's stages that the pyramid reads; for SSD, which has no pyramid, the two maps of its classifier."""
    if _is_pyramid(backbone):
        return tuple(f"backbone.body.{name}" for name in backbone.body.return_layers)
    return tuple(map_names(backbone).values())[:2] or ("backbone",)


def _ssd_stages(backbone: Any) -> list[str]:
    """The stages before `extra`: one map of VGG for SSD300, two of MobileNet for SSDlite."""
    if hasattr(backbone, "scale_weight"):
        return ["backbone.features"]
    return [f"backbone.features.{i}" for i in range(len(backbone.features))]


def image_list(batch: Tensor, sizes: list[tuple[int, int]]) -> Any:
    """torchvision's ImageList: a padded batch [B, 3, h, w], and the (height, width) of each image without padding."""
    from torchvision.models.detection.image_list import ImageList

    return ImageList(batch, sizes)


def class_names(labels: list[int], classes: int, names: dict[int, str], person: bool = False) -> tuple[str, ...]:
    """Names of class numbers. Without `names`, torchvision's weights are recognised by their number of classes.

    Args:
        labels: class numbers, below `classes`.
        classes: number of classes of the model, with the background.
        names: the model's attribute, by class number; may be empty.
        person: whether the model detects key points of people.
    """
    if not names and classes == COCO_CLASSES:
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        names = dict(enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]))
    elif not names and person and classes == 2:
        names = {0: "no person", 1: "person"}
    return tuple(names.get(label, f"class {label}") for label in labels)
