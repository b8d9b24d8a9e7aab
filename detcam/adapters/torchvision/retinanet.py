"""RetinaNet and FCOS of torchvision: a sigmoid for each class."""

from typing import Any

import torch
from torch import Tensor

from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS
from detcam.adapters.torchvision.one_stage import AnchorRows, OneStageAdapter, OneStageOutputs


class RetinaNetAdapter(OneStageAdapter):
    """RetinaNet, v1 and v2: a sigmoid for each class, independent of the other classes."""

    models = "RetinaNet v1 and v2, any backbone"
    origin = "torchvision.models.detection.retinanet"

    def _last_layers(self) -> dict[str, list[Any]]:
        head = self.network.head
        return {"logits": [head.classification_head.cls_logits], "deltas": [head.regression_head.bbox_reg]}

    def _scores(self, logits: Tensor, centreness: Tensor | None) -> Tensor:
        return logits.sigmoid()

    def _candidates(self, scores: Tensor, outputs: OneStageOutputs, least: float) -> tuple[Tensor, Tensor]:
        """The best candidates of each level, over all classes."""
        anchors, labels, start = [], [], 0
        for level in scores.split(self._per_level(outputs)):
            flat = level.flatten()
            places = (flat > least).nonzero().flatten()
            best = flat[places].topk(min(len(places), self.network.topk_candidates)).indices
            anchors.append(places[best] // level.shape[1] + start)
            labels.append(places[best] % level.shape[1])
            start += len(level)
        return torch.cat(anchors), torch.cat(labels)


class FcosAdapter(RetinaNetAdapter):
    """FCOS: one anchor point in each cell; the score is the root of class probability times centre-ness.

    The target "objectness" is the centre-ness logit.
    """

    models = "FCOS, any backbone"
    targets = (*CLASS_TARGETS, *BOX_TARGETS, "objectness")
    origin = "torchvision.models.detection.fcos"

    def _last_layers(self) -> dict[str, list[Any]]:
        return super()._last_layers() | {"centreness": [self.network.head.regression_head.bbox_ctrness]}

    def _rows(self, raw: dict[str, Tensor]) -> AnchorRows:
        return AnchorRows(raw["logits"], raw["deltas"].relu(), raw["centreness"])

    def _scores(self, logits: Tensor, centreness: Tensor | None) -> Tensor:
        assert centreness is not None
        return (logits.sigmoid() * centreness.sigmoid()).sqrt()

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return self.network.box_coder.decode(deltas, anchors)
