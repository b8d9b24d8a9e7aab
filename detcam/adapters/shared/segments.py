"""Segments of a label map: connected or whole classes, their windows on the model's output, and their scores."""

from typing import Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from detcam.geometry import Geometry

Segments = Literal["class", "component"]
SEGMENTS: tuple[str, ...] = get_args(Segments)
TOGETHER = 8  # segments whose windows have one size


def segments_of(
    labels: Tensor,  # [H, W] int64, negative where there is no class
    probability: Tensor,  # [H, W]
    left_out: set[int],
    kind: str,
    conf: float,
    most: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The segments of a label map with mean probability above `conf`: the largest `most`, largest first.

    Args:
        labels: the class of each pixel.
        probability: the probability of the pixel's class.
        left_out: classes that are not objects.
        kind: "class": all pixels of a class are one segment; "component": pixels that touch, also at a corner.
        conf: threshold of the mean probability, in [0, 1].
        most: maximum number of segments.

    Returns:
        (masks [N, H, W] bool, classes [N] int64, scores [N] float32).
    """
    parts, classes = _parts(labels.cpu().numpy(), left_out, kind)
    inside = parts >= 0
    areas = np.bincount(parts[inside], minlength=len(classes))
    sums = np.bincount(parts[inside], weights=probability.cpu().numpy()[inside], minlength=len(classes))
    scores = sums / areas
    kept = np.flatnonzero(scores > conf)  # drops NaN
    kept = kept[np.argsort(-areas[kept], kind="stable")][:most]
    device = labels.device
    masks = torch.from_numpy(parts).to(device) == torch.from_numpy(kept).to(device)[:, None, None]
    chosen = np.asarray(classes, np.int64)[kept]
    return masks, torch.from_numpy(chosen).to(device), torch.from_numpy(scores[kept]).float().to(device)


def _parts(labels: np.ndarray, left_out: set[int], kind: str) -> tuple[np.ndarray, list[int]]:
    """The segment of each pixel [H, W], numbered from 0, or -1; and the class of each segment."""
    parts = np.full(labels.shape, -1, np.int64)
    classes: list[int] = []
    for number in np.unique(labels).tolist():
        if number < 0 or number in left_out:
            continue
        mask = labels == number
        count, components = 2, mask.astype(np.int32)  # part 0 is the background
        if kind == "component":
            count, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        parts[mask] = components[mask] - 1 + len(classes)
        classes += [number] * (count - 1)
    return parts, classes


def segment_at(labels: Tensor, row: int, column: int) -> Tensor:
    """[H, W] bool: the connected segment of a label map [H, W] around the pixel at (row, column)."""
    same = (labels == labels[row, column]).cpu().numpy().astype(np.uint8)
    parts = cv2.connectedComponents(same, connectivity=8)[1]
    return torch.from_numpy(parts == parts[row, column]).to(labels.device)


def wrong_segments(
    predicted: Tensor,  # [H, W] int64
    truth: Tensor,  # [H, W] int64
    most: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The connected segments of pixels with the same wrong class and the same true class, largest first.

    Negative pixels of either map are ignored. Pixels that touch at a corner are connected.

    Args:
        predicted: the predicted class of each pixel.
        truth: the true class of each pixel.
        most: maximum number of segments.

    Returns:
        (masks [N, H, W] bool, predicted classes [N] int64, true classes [N] int64).
    """
    count = int(torch.maximum(predicted.amax(), truth.amax())) + 1
    wrong = (predicted != truth) & (predicted >= 0) & (truth >= 0)
    pairs = torch.where(wrong, predicted * count + truth, -1)
    parts, kinds = _parts(pairs.cpu().numpy(), set(), "component")
    areas = np.bincount(parts[parts >= 0], minlength=len(kinds))
    kept = np.argsort(-areas, kind="stable")[:most]
    device = predicted.device
    masks = torch.from_numpy(parts).to(device) == torch.from_numpy(kept).to(device)[:, None, None]
    chosen = torch.from_numpy(np.asarray(kinds, np.int64)[kept]).to(device)
    return masks, chosen // count, chosen % count


def bounds(masks: Tensor) -> tuple[Tensor, Tensor]:
    """First [N, 2] and one past the last [N, 2] (row, column) of the cells that are not zero in masks [N, h, w]."""
    first, last = [], []
    for axis, length in ((2, masks.shape[1]), (1, masks.shape[2])):
        used = (masks != 0).any(dim=axis).int()  # [N, length]
        first.append(used.argmax(dim=1))
        last.append(length - used.flip(1).argmax(dim=1))
    return torch.stack(first, dim=1), torch.stack(last, dim=1)


def boxes_around(masks: Tensor) -> Tensor:
    """[N, 4] float32 (x1, y1, x2, y2) in pixels: the outer edges of masks [N, H, W]."""
    first, last = bounds(masks)
    return torch.cat([first.flip(1), last.flip(1)], dim=1).float()


def on_source(logits: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Logits [C, h, w] over the network's input as [C, H, W] over the source image, resized as in the libraries.

    Returns:
        The logits, and [H, W] bool: the pixels that the network saw (a processor may crop the image).
    """
    if geometry.resized == geometry.network:  # neither cropped nor padded
        full = interpolate(logits[None], geometry.source, mode="bilinear", align_corners=False)[0]
        return full, torch.ones(geometry.source, dtype=torch.bool, device=full.device)
    network = interpolate(logits[None], geometry.network, mode="bilinear", align_corners=False)
    (top, left), (height, width) = geometry.pad, geometry.resized
    back = (-left, left + width - network.shape[3], -top, top + height - network.shape[2])
    seen = pad(torch.ones_like(network[:, :1]), back)
    full = interpolate(pad(network, back), geometry.source, mode="bilinear", align_corners=False)[0]
    return full, interpolate(seen, geometry.source, mode="nearest")[0, 0] > 0


def covered(masks: Tensor, geometry: Geometry, cells: tuple[int, int]) -> Tensor:
    """[N, h, w] float32: the share that masks [N, H, W] cover of each of `cells` (h, w) over the network's input."""
    rows, columns = (_overlaps(geometry, axis, cells[axis]).to(masks.device) for axis in (0, 1))
    shares = [rows @ mask.float() @ columns.T for mask in masks]  # mask by mask: each is as large as the image
    return torch.stack(shares) if shares else torch.zeros((0, *cells), device=masks.device)


def _overlaps(geometry: Geometry, axis: int, cells: int) -> Tensor:
    """[cells, pixels]: the share of each cell that lies in each source pixel, along one axis."""
    pixels, network = geometry.source[axis], geometry.network[axis]
    edges = torch.arange(cells + 1, dtype=torch.float64) * network / cells
    edges = ((edges - geometry.pad[axis]) * pixels / geometry.resized[axis])[:, None]
    left = torch.arange(pixels, dtype=torch.float64)
    lengths = torch.minimum(edges[1:], left + 1) - torch.maximum(edges[:-1], left)
    return (lengths.clamp(min=0) / (edges[1] - edges[0])).float()


def segment_score(
    logits: Tensor, share: Tensor, label: int, target: str, left_out: set[int], multilabel: bool = False
) -> Tensor:
    """Mean over a segment of the class logit, its probability, or its margin over the best other class's: a scalar.

    Args:
        logits: [C, kh, kw] in a window around the segment.
        share: [kh, kw] the share of each cell that is in the segment.
        label: the class.
        target: "class", "prob" or "margin".
        left_out: classes that are not objects: no other classes for a margin, unless they are the only ones.
        multilabel: whether each class has a sigmoid.
    """
    if target == "prob":
        cells = logits[label].sigmoid() if multilabel else logits.softmax(dim=0)[label]
    elif target == "margin":
        others = [i for i in range(len(logits)) if i != label]
        rivals = [i for i in others if i not in left_out] or others
        cells = logits[label] - logits[rivals].amax(dim=0)
    else:
        cells = logits[label]
    return (cells * share).sum() / share.sum()


def windows(shares: Tensor) -> list[tuple[Tensor, Tensor, tuple[int, int]]]:
    """Segments [N, h, w] in groups of similar size: (members [n], start [n, 2] of their windows, (kh, kw))."""
    first, last = bounds(shares)
    lengths = last - first
    groups = []
    for members in lengths.amax(dim=1).argsort(stable=True).split(TOGETHER):
        height, width = lengths[members].amax(dim=0).tolist()
        room = torch.tensor([shares.shape[1] - height, shares.shape[2] - width], device=shares.device)
        groups.append((members, torch.minimum(first[members], room), (height, width)))
    return groups


def mask_iou(share: Tensor, masks: Tensor) -> Tensor:
    """[A] IoU of a segment, given as the share of each cell [h, w], with masks [A, h, w] bool."""
    shared = (share * masks).sum(dim=(1, 2))
    return shared / (share.sum() + masks.sum(dim=(1, 2)) - shared).clamp(min=torch.finfo(share.dtype).tiny)
