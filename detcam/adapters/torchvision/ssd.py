"""SSD and SSDlite of torchvision: a softmax over the classes and the background."""

from typing import Any

import torch
from torch import Tensor

from detcam.adapters.torchvision.one_stage import OneStageAdapter, OneStageOutputs


class SsdAdapter(OneStageAdapter):
    """SSD and SSDlite: a softmax over the classes and the background, so "prob" contrasts with the rest."""

    models = "SSD300 (VGG-16), SSDlite320 (MobileNetV3)"
    background = 0
    origin = "torchvision.models.detection.ssd"

    def _last_layers(self) -> dict[str, list[Any]]:
        head = self.network.head
        return {"logits": list(head.classification_head.module_list), "deltas": list(head.regression_head.module_list)}

    def _scores(self, logits: Tensor, centreness: Tensor | None) -> Tensor:
        return logits.softmax(dim=-1)

    @torch.no_grad()
    def candidates(self, outputs: OneStageOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """See `Adapter.candidates`: one candidate per anchor; the background's column is zero."""
        boxes, scores, _ = super().candidates(outputs)
        scores[..., 0] = 0
        return boxes, scores, scores.amax(dim=2)

    def _candidates(self, scores: Tensor, outputs: OneStageOutputs, least: float) -> tuple[Tensor, Tensor]:
        """The best candidates of each class, over all levels, without the background."""
        anchors, labels = [], []
        for label in range(1, scores.shape[1]):
            places = (scores[:, label] > least).nonzero().flatten()
            best = scores[places, label].topk(min(len(places), self.network.topk_candidates)).indices
            anchors.append(places[best])
            labels.append(torch.full_like(best, label))
        return torch.cat(anchors), torch.cat(labels)
