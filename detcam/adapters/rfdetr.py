"""RF-DETR of the rfdetr package: detection, and segmentation with a mask for each query."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import LayerPlan
from detcam.adapters.shared.channels import cycled, input_channels
from detcam.adapters.shared.mask_scores import MASK_TARGETS
from detcam.adapters.shared.queries import QueryAdapter, QueryOutputs, query_objects, whole_inputs, with_mask_logits
from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS
from detcam.errors import InputError, ModelError
from detcam.geometry import Geometry
from detcam.images import unit_tensor
from detcam.types import Objects

MODULE = "LWDETR"
MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in `rfdetr.RFDETR`


class RfdetrAdapter(QueryAdapter):
    """RF-DETR, as an `rfdetr.RFDETRNano` or another size, or as its nn.Module.

    The scalar is the class logit of the kept query, or for the target "mask" the mean mask logit over the query's
    binary mask. Each class has a sigmoid, so two objects may share a query. There is no non-maximum suppression: `iou`
    has no effect. The encoder selects the initial positions of the queries.

    `module` is a view of the package's LWDETR; `imgsz` is the side of the square that images are stretched to, in
    pixels, rounded up to a multiple of what the backbone's windows need.
    """

    family = "rfdetr"
    library = "rfdetr"
    models = "RF-DETR Nano to Large, and RF-DETR Seg Nano to 2XLarge"
    install = 'pip install "detcam[rfdetr]"'
    targets = (*CLASS_TARGETS, *BOX_TARGETS, *MASK_TARGETS)
    stable = False
    clipped = True

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        from rfdetr.models import PostProcess

        super().__init__(module, model, imgsz, processor)
        encoder = module.backbone[0].encoder
        self.windows = int(encoder.num_windows)
        self.block = int(encoder.patch_size) * self.windows
        context = None if isinstance(model, nn.Module) else model.model
        side = imgsz or (encoder.shape[0] if context is None else context.resolution)
        if not isinstance(side, int):
            raise InputError(f"imgsz: RF-DETR takes squares only, got {imgsz}: give one side")
        self.imgsz = -(-int(side) // self.block) * self.block
        self.channels = input_channels(module.backbone)
        scales = getattr(model, "means", MEANS), getattr(model, "stds", DEVIATIONS)
        self.mean, self.std = (cycled(values, self.channels) for values in scales)
        self.post_process = PostProcess() if context is None else context.postprocess
        self.names = {} if context is None else _names(model.class_names, context.args.num_classes)
        self.task = "detect" if module.segmentation_head is None else "segment"
        missing = MASK_TARGETS if self.task == "detect" else ()
        self.available = self._available(module.class_embed.out_features, *missing)

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error if `inference(inplace=True)` removed the weights, and for keypoint models."""
        module = model if isinstance(model, nn.Module) else model.model.model
        if type(module).__name__ != MODULE:
            raise ModelError(
                f"{type(model).__name__} has no {MODULE}, as after inference(inplace=True): give a new RFDETR"
            )
        if module.use_grouppose_keypoints:
            raise ModelError(f"{type(model).__name__} detects keypoints: give an RF-DETR for detection or segmentation")
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: stretched to a square without antialiasing, as RF-DETR's predict call does."""
        from torchvision.transforms import functional

        size = [self.imgsz, self.imgsz]
        pixels = unit_tensor(self.fit(image), self.device).contiguous()
        pixels = functional.resize(pixels, size, antialias=False)
        pixels = functional.normalize(pixels, self.mean, self.std)
        geometry = Geometry((image.shape[0], image.shape[1]), (self.imgsz,) * 2, (0, 0), (self.imgsz,) * 2)
        return pixels.to(self.dtype), geometry

    def forward(self, batch: Tensor, max_det: int) -> QueryOutputs:
        outputs = self.module(batch)
        masks = outputs.get("pred_masks")
        return QueryOutputs(outputs["pred_logits"], outputs["pred_boxes"], whole_inputs(batch), masks)

    @torch.no_grad()
    def detect(
        self, outputs: QueryOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: the package's post-processing, run a second time to get the query of each object."""
        raw = {"pred_logits": outputs.logits.float(), "pred_boxes": outputs.boxes.float()}
        if outputs.masks is not None:
            raw["pred_masks"] = outputs.masks.float()
        sources = torch.tensor([geometry.source for geometry in geometries], device=outputs.logits.device)
        results = self.post_process(raw, target_sizes=sources, score_threshold=conf)
        # The selection depends on logits only: boxes of size 0 at x = query on an image of Q columns are kept alike.
        count = outputs.logits.shape[1]
        points = torch.zeros_like(raw["pred_boxes"])
        points[..., 0] = (torch.arange(count, device=points.device) + 0.5) / count
        tagged = self.post_process(
            {"pred_logits": raw["pred_logits"], "pred_boxes": points},
            target_sizes=sources.new_tensor([[1, count]] * len(sources)),
        )
        detected = []
        for i, (result, tag, geometry) in enumerate(zip(results, tagged, geometries, strict=True)):
            # A result with masks lacks the rows below the threshold, which are the last.
            keep = (result["scores"] > conf).nonzero().flatten()[:max_det]
            boxes, scores, labels = (result[name][keep] for name in ("boxes", "scores", "labels"))
            masks = result["masks"][keep, 0] if "masks" in result else None
            queries = tag["boxes"][keep, 0].long()
            objects = query_objects(boxes, scores, labels, queries, self.names, geometry, masks)
            detected.append(with_mask_logits(objects, outputs.masks, i))
        return detected

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: the projector's maps, which queries and masks read, or the outputs of its entries.

        An entry is a 1x1 convolution with a norm. It mixes channels, not cells; before the norm, gradient times
        activation, summed over the channels of all blocks that enter, is zero at every cell.
        """
        projector: Any = self.module.get_submodule("backbone.0.projector")
        names = ["backbone.0.projector"]
        if preset == "evidence":
            names = [f"backbone.0.projector.stages.{i}.0.cv1" for i in range(len(projector.stages))]
        return LayerPlan(tuple(names), cut_all=True, fuse="sum")

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the backbone's patches after a class token, if the backbone has no windows."""
        if self.windows > 1:
            return []
        rows, columns = (side // self.block for side in size)
        start = tokens - rows * columns
        return [(start, rows, columns)] if start in (0, 1) else []


def _names(names: list[str], slots: int) -> dict[int, str]:
    """The class names of the predict call: COCO's numbers have gaps, those of other models run from 0."""
    from rfdetr.assets.coco_classes import COCO_CLASS_NAMES, COCO_CLASSES

    if slots > len(names) and names == list(COCO_CLASS_NAMES):
        return {int(i): name for i, name in COCO_CLASSES.items()}
    return {**dict(enumerate(names)), slots: "__background__"}
