"""Published protocols: deletion and insertion with the settings of papers and their code, so that figures compare.

Where the code of a paper has a slip, the protocol corrects it and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn.functional import cosine_similarity

from detcam.boxes import box_iou
from detcam.engine.masking import batch_size, fill, places, seen
from detcam.evaluate.metrics.faithfulness import course, ends
from detcam.evaluate.metrics.localisation import Better, Measure
from detcam.explainer import Explainer
from detcam.methods.similarity import class_distributions
from detcam.types import Objects

KERNEL = 0.25  # width of ODExAI's kernel over cosine distances
BLUR = 8.0  # pixels: the deviation of ODExAI's blur, OpenCV's Gaussian of 51 pixels
CONF, NMS = 0.25, 0.45  # thresholds of ODExAI's predictions for a masked image
MOST = 300  # predictions for a masked image, however few objects are explained


@dataclass(frozen=True)
class Published:
    """A paper's deletion and insertion."""

    source: str  # the paper
    conf: float  # lowest score of an object, unless the user gives another
    # S of a masked image: the largest IoU * p(class) over predictions ("probability"), the largest IoU * cosine of the
    # class probabilities ("cosine"), or IoU * kernel(cosine) of the detection of the object's class with the largest
    # IoU ("kernel").
    likeness: Literal["probability", "cosine", "kernel"]
    steps: int = 0  # of equal shares of the pixels; with `pixels`, that many pixels in each step instead
    pixels: int = 0
    labelled: bool = False  # whether IoU is with the labelled box rather than the predicted box
    blurs: bool = False  # whether insertion starts from the blurred image rather than a black one
    settings: Sequence[str] = ()  # what else the protocol says
    corrections: Sequence[str] = ()  # slips in the public code that are not repeated

    def limits(self, pixels: int) -> Tensor:
        """[K + 1] numbers of hidden or shown pixels, from 0 to all `pixels`."""
        if self.pixels:
            return torch.arange(-(-pixels // self.pixels) + 1).mul(self.pixels).clamp(max=pixels)
        return torch.arange(self.steps + 1) * pixels // self.steps


_READ = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PROTOCOLS = {name: Published(**facts) for name, facts in _READ.items()}


def measures() -> list[Measure]:
    """The columns of a protocol, see `PublishedCurves.columns`."""
    columns: tuple[tuple[str, Better, str], ...] = (
        ("insertion", "higher", "area under s while the hottest pixels are shown"),
        ("deletion", "lower", "area under s while the hottest pixels are hidden"),
        ("insertion_iou", "higher", "area under the IoU of the prediction that s is of"),
        ("deletion_iou", "lower", "area under the IoU of the prediction that s is of"),
        ("insertion_class", "higher", "area under the class similarity of the prediction that s is of"),
        ("deletion_class", "lower", "area under the class similarity of the prediction that s is of"),
        ("overall", "higher", "insertion - deletion"),
        ("highest_50", "higher", "largest class similarity at IoU > .5 while pixels are shown"),
        ("highest_75", "higher", "largest class similarity at IoU > .75 while pixels are shown"),
    )
    return [Measure(f"{name}_protocol", better, text, "protocol") for name, better, text in columns]


class PublishedCurves:
    """Deletion and insertion of the maps of an image's N objects, as a protocol defines them.

    `image` is [H, W, 3] uint8 RGB, `labelled` [N, 4] xyxy are the labelled boxes in source pixels, and `memory` is
    about the bytes for a batch of masked forwards. Raises a MethodError for a family without candidates.
    """

    @torch.no_grad()
    def __init__(
        self,
        protocol: Published,
        explainer: Explainer,
        image: np.ndarray,
        objects: Objects,
        labelled: Tensor,
        memory: int,
    ) -> None:
        self._protocol, self._adapter, self._max_det = protocol, explainer.adapter, max(explainer.max_det, MOST)
        picture, self._geometry = self._adapter.prepare(image)
        self._inside, self._batch = seen(self._geometry, picture.device), batch_size(picture, memory)
        self._limits = protocol.limits(int(self._inside.sum()))
        self.shares = self._limits / self._limits[-1]  # [K + 1] of the pixels, at which the curves are sampled
        black = fill("black", picture, self._adapter.prepare(np.zeros_like(image))[0])
        self._fills = (fill("blur", picture, picture, BLUR) if protocol.blurs else black, black)
        boxes, probabilities, _ = self._adapter.candidates(self._adapter.forward(picture[None], self._max_det))
        self._classes, own = objects.class_ids, objects.network_boxes
        self._distributions = class_distributions(own, self._classes, boxes[0], probabilities[0])
        self._boxes = self._geometry.to_network(labelled) if protocol.labelled else own

    def values(self, heat: Tensor) -> dict[str, Tensor]:
        """The columns of `measures`, [N] each, from one map per object at the size of the network's input [N, h, w]."""
        return self.columns(*self.curves(heat))

    def curves(self, heat: Tensor) -> tuple[Tensor, Tensor]:
        """Insertion and deletion, [N, K + 1, 3] each: s, IoU and class similarity at `shares`."""
        ranks, objects = places(heat, self._inside), torch.arange(len(heat), device=heat.device)
        limits, curves = self._limits[1:-1].to(heat.device), []
        for shown, hides in zip((True, False), self._fills, strict=True):
            whole, hidden = ends(self, hides, self._inside, objects, self._batch)
            middle = course(self, hides, ranks, objects, limits, shown, self._batch)
            first, last = (hidden, whole) if shown else (whole, hidden)
            curves.append(torch.cat([first[:, None], middle, last[:, None]], dim=1))
        return curves[0], curves[1]

    def columns(self, insertion: Tensor, deletion: Tensor) -> dict[str, Tensor]:
        """The columns of `measures`, [N] each, from the curves."""
        shares = self.shares.to(insertion)[:, None]
        areas = torch.cat([torch.trapezoid(curve, shares, dim=1) for curve in (insertion, deletion)], dim=1)
        lines = list(areas[:, [0, 3, 1, 4, 2, 5]].T)
        lines += [lines[0] - lines[1]]
        lines += [(insertion[:, :, 2] * (insertion[:, :, 1] > least)).amax(dim=1) for least in (0.5, 0.75)]
        return {measure.name: line for measure, line in zip(measures(), lines, strict=True)}

    @torch.no_grad()
    def __call__(self, images: Tensor, asked: Tensor) -> Tensor:
        """[b, 3] float32 in [0, 1]: s, IoU and class similarity of the objects `asked` [b] in images [b, 3, h, w]."""
        images = images.contiguous(memory_format=torch.channels_last)
        if self._protocol.likeness == "kernel":
            return torch.stack([self._detected(i, image) for i, image in zip(asked.tolist(), images, strict=True)])
        boxes, probabilities, _ = self._adapter.candidates(self._adapter.forward(images, self._max_det))
        rows = []
        for i, of_image, p in zip(asked.tolist(), boxes, probabilities, strict=True):
            iou = box_iou(self._boxes[i : i + 1], of_image)[0]
            own = self._distributions[i : i + 1]
            kind = cosine_similarity(p, own) if self._protocol.likeness == "cosine" else p[:, self._classes[i]]
            best = (iou * kind).argmax()
            rows.append(torch.stack([iou[best] * kind[best], iou[best], kind[best]]))
        return torch.stack(rows).float()

    def _detected(self, i: int, image: Tensor) -> Tensor:
        """[3]: the same for one image, of the detection of the object's class with the largest IoU."""
        outputs: Any = self._adapter.forward(image[None], self._max_det)
        found = self._adapter.detect(outputs, [self._geometry], CONF, NMS, self._max_det)[0]
        if not len(found):
            return image.new_zeros(3, dtype=torch.float32)
        iou = box_iou(self._boxes[i : i + 1], found.network_boxes)[0] * (found.class_ids == self._classes[i])
        best = iou.argmax()
        distribution = self._adapter.image_candidates(outputs, self._geometry)[1][found.index[best]]
        distance = 1 - cosine_similarity(distribution, self._distributions[i], dim=0)
        kind = torch.exp(-((distance / KERNEL) ** 2)).sqrt()
        return torch.stack([iou[best] * kind, iou[best], kind]).float()
