"""Similarity of an object to the predictions for a changed image: the scalar of D-RISE."""

from torch import Tensor
from torch.nn.functional import normalize

from detcam.boxes import box_iou

LEAST = 1e-3  # predictions with less confidence, which are most of them, are skipped: they change s by less than this


def class_distributions(
    boxes: Tensor,  # [N, 4] xyxy of the objects, in network pixels
    class_ids: Tensor,  # [N] int64
    candidates: Tensor,  # [A, 4] xyxy of all predictions for the unchanged image
    probabilities: Tensor,  # [A, K]
) -> Tensor:
    """[N, K] class probabilities of each object's prediction: the one with the largest IoU * p_class."""
    fit = box_iou(boxes, candidates) * probabilities[:, class_ids].T  # [N, A]
    return probabilities[fit.argmax(dim=1)]


def similarity(
    boxes: Tensor,  # [N, 4] xyxy of the objects, in network pixels
    distributions: Tensor,  # [N, K] their class probabilities
    candidates: Tensor,  # [A, 4] xyxy of all predictions for a changed image
    probabilities: Tensor,  # [A, K]
    confidence: Tensor,  # [A] in [0, 1]
) -> Tensor:
    """[N] s = max over predictions of IoU * cosine of the class probabilities * confidence, in [0, 1].

    Petsiuk et al. 2021, "Black-box Explanation of Object Detectors via Saliency Maps", equations 4 to 7.
    """
    kept = confidence > LEAST
    if not bool(kept.any()):
        return boxes.new_zeros(len(boxes))
    cosine = normalize(distributions, dim=1) @ normalize(probabilities[kept], dim=1).T
    return (box_iou(boxes, candidates[kept]) * cosine * confidence[kept]).amax(dim=1)
