"""Tiles: a large image explained in overlapping crops, as one image."""

from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from detcam.boxes import box_iou
from detcam.errors import InputError
from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.images import displayable, read_image
from detcam.types import Objects

EDGE = 0.01  # of a tile: a box that ends so near to an inner edge of its tile counts as cut


def explain_tiles(explainer: Explainer, image: Any, tile: int = 640, overlap: float = 0.2) -> Explanation:
    """Explain a large image with small objects in overlapping tiles, each of which is an image to the model.

    An object's map is that of its tile, and zero elsewhere; duplicates are left out, see `distinct`. An image no larger
    than a tile gets what `explainer(image)` returns.

    Args:
        explainer: its `imgsz` and `max_det` are those of a tile.
        image: see `Explainer.__call__`.
        tile: side of the square tiles in pixels of the image.
        overlap: of neighbouring tiles, as a share of the side, at least: the last of a row or column is moved inwards.

    Returns:
        An Explanation of the image, with the objects of all tiles by decreasing score.

    Raises:
        ImageError: if the image cannot be read.
        InputError: for a tile below the network's stride, or an overlap outside [0, 1).
    """
    least = max(getattr(explainer.adapter, "stride", 0), 32)
    if not isinstance(tile, Integral) or tile < least:
        raise InputError(f"tile: expected pixels, at least {least} (the network's stride), got {tile!r}")
    if not isinstance(overlap, Real) or not 0 <= overlap < 1:
        raise InputError(f"overlap: expected a share of the tile, at least 0 and below 1, got {overlap!r}")
    picture = read_image(image, *explainer.adapter.reading)
    size = picture.shape[0], picture.shape[1]
    places = tiles_of(size, int(tile), overlap)
    parts = [explainer(picture[top : top + height, left : left + width]) for top, left, height, width in places]
    if len(parts) == 1:
        return parts[0]
    rows = [(n, i) for n, part in enumerate(parts) for i in range(len(part))]  # (tile, position in it)
    objects = Objects.joined([part.objects for part in parts])
    bounds = torch.tensor([(x, y, x + w, y + h) for y, x, h, w in (places[n] for n, _ in rows)]).view(-1, 4)
    objects = replace(objects, boxes=objects.boxes + bounds[:, [0, 1, 0, 1]].to(objects.boxes))
    kept = distinct(objects, bounds, size, explainer.iou)
    chosen = [rows[k] for k in kept.tolist()]
    shown, how = displayable(picture)
    return replace(
        parts[0],
        image=shown,
        objects=objects.select(kept),
        maps=[parts[n].maps[i] for n, i in chosen],
        notes=[parts[n].notes[i] for n, i in chosen],
        settings={**parts[0].settings, "tile": int(tile), "overlap": float(overlap)},
        geometry=replace(parts[0].geometry, source=size, crop=places[0]),
        checker=lambda _: [parts[n].checks[i] for n, i in chosen],
        picture=picture,
        shown=how,
        tiles=[places[n] for n, _ in chosen],
    )


def tiles_of(size: tuple[int, int], side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of the tiles of an image of `size` = (height, width), row by row."""
    step = max(int(side * (1 - overlap)), 1)
    rows, columns = ([*range(0, pixels - side, step), max(pixels - side, 0)] for pixels in size)
    return [(top, left, min(side, size[0]), min(side, size[1])) for top in rows for left in columns]


def distinct(objects: Objects, tiles: Tensor, size: tuple[int, int], iou: float) -> Tensor:
    """[K] positions of the objects without duplicates from other tiles, by decreasing score.

    Of two boxes of a class that overlap by more than `iou`, the better-scoring stays, and a whole box before one that
    is cut by an inner edge of its tile. The overlap with a cut box is the intersection over the smaller box, as a
    fragment lies in its object (SAHI, Akyon et al. 2022, arXiv:2202.06934); else the IoU.

    Args:
        objects: with boxes in pixels of the image.
        tiles: [N, 4] xyxy, the tile of each object.
        size: (height, width) of the image.
        iou: in [0, 1].
    """
    boxes, scores, kinds = (part.cpu() for part in (objects.boxes, objects.scores, objects.class_ids))
    near = (boxes - tiles).abs() <= EDGE * (tiles[:, 2:] - tiles[:, :2]).amax(dim=1, keepdim=True)
    cut = (near & (tiles != torch.tensor([0, 0, size[1], size[0]]))).any(dim=1)
    order = (scores - 2.0 * cut).argsort(descending=True, stable=True)
    boxes, kinds, tiles, cut = boxes[order], kinds[order], tiles[order], cut[order]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=torch.finfo(boxes.dtype).tiny)
    stays = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        over = box_iou(boxes[i : i + 1], boxes)[0]
        shared = over * (areas[i] + areas) / (1 + over)
        alike = torch.where(cut, shared / areas.minimum(areas[i]), over) > iou
        alike &= (kinds == kinds[i]) & (tiles != tiles[i]).any(dim=1)
        stays[i + 1 :] &= ~(alike & stays[i])[i + 1 :]
    kept = order[stays]
    return kept[scores[kept].argsort(descending=True, stable=True)]
