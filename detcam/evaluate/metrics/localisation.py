"""Localisation metrics: how a heatmap agrees with the labelled box and mask of its object.

All functions take a `Case` (the objects of an image, batched) and return [N] float32 on its device. NaN marks an
undefined value, which means leave out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detcam.errors import InputError

Better = Literal["higher", "lower"]
THRESHOLDS = 20  # of VEA: 0, .05, ... .95 of the maximum


@dataclass(frozen=True)
class Measure:
    """A column of the results."""

    name: str  # in rows and reports
    better: Better  # whether "higher" or "lower" values are better
    text: str  # definition, range, and the score of noise
    group: str = ""  # the table of the report that holds it


@dataclass(frozen=True)
class Case:
    """The explained objects of an image with their labels, in source pixels."""

    heatmaps: Tensor  # [N, H, W] float, non-negative, on any scale
    boxes: Tensor  # [N, 4] xyxy, the labelled boxes
    masks: Tensor | None = None  # [N, H, W] bool, the labelled masks; None without masks in the labels
    # [N, H, W] bool, the union of the masks of all other labelled objects, without the object's mask.
    others: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.heatmaps)
        if self.heatmaps.ndim != 3 or self.boxes.shape != (n, 4):
            raise InputError(
                f"Case: expected heatmaps [N, H, W] and boxes [N, 4], got {tuple(self.heatmaps.shape)} and "
                f"{tuple(self.boxes.shape)}"
            )
        for name, masks in (("masks", self.masks), ("others", self.others)):
            if masks is not None and masks.shape != self.heatmaps.shape:
                raise InputError(
                    f"Case.{name}: expected {tuple(self.heatmaps.shape)} as the heatmaps, got {tuple(masks.shape)}"
                )

    @property
    def undefined(self) -> Tensor:
        """[N] NaN."""
        return self.heatmaps.new_full((len(self.heatmaps),), torch.nan, dtype=torch.float32)

    @property
    def in_boxes(self) -> Tensor:
        """[N, H, W] bool: pixels with their centre in the box."""
        height, width = self.heatmaps.shape[1:]
        x1, y1, x2, y2 = (side[:, None] for side in self.boxes.unbind(1))
        x = torch.arange(width, device=self.boxes.device) + 0.5
        y = torch.arange(height, device=self.boxes.device) + 0.5
        rows, columns = (y >= y1) & (y < y2), (x >= x1) & (x < x2)
        return rows[:, :, None] & columns[:, None, :]


def energy(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """[N] share of each heatmap's sum that lies in its region: in [0, 1]; 0 for a blank map.

    Wang et al. 2020, "Score-CAM", section 4.2 (energy-based pointing game).
    """
    total = heatmaps.sum(dim=(1, 2))
    inside = (heatmaps * regions).sum(dim=(1, 2))
    return torch.where(total > 0, inside / total.clamp(min=torch.finfo(total.dtype).tiny), 0).float()


def pointing(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """[N] whether the hottest pixel lies in the region: 1 or 0; 0 for a blank map.

    Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", section 4.1, without its 15 pixels of
    tolerance. For tied maxima, the share of them in the region.
    """
    highest = heatmaps.amax(dim=(1, 2), keepdim=True)
    hottest = (heatmaps == highest) & (highest > 0)
    return ((hottest & regions).sum(dim=(1, 2)) / hottest.sum(dim=(1, 2)).clamp(min=1)).float()


def pointing_box(case: Case) -> Tensor:
    """`pointing` in the labelled box. Noise scores the box's share of the image."""
    return pointing(case.heatmaps, case.in_boxes)


def pointing_mask(case: Case) -> Tensor:
    """`pointing` in the labelled mask. Noise scores the mask's share of the image."""
    return case.undefined if case.masks is None else pointing(case.heatmaps, case.masks)


def energy_in_box(case: Case) -> Tensor:
    """`energy` in the labelled box. Noise scores the box's share of the image."""
    return energy(case.heatmaps, case.in_boxes)


def energy_in_mask(case: Case) -> Tensor:
    """`energy` in the labelled mask. Noise scores the mask's share of the image."""
    return case.undefined if case.masks is None else energy(case.heatmaps, case.masks)


def _per_area(share: Tensor, regions: Tensor) -> Tensor:
    area = regions.float().mean(dim=(1, 2))
    return torch.where(area > 0, share / area, torch.nan)


def energy_in_box_per_area(case: Case) -> Tensor:
    """Energy in the box over the box's share of the image: 0 or more, noise scores 1, whatever the box size."""
    return _per_area(energy_in_box(case), case.in_boxes)


def energy_in_mask_per_area(case: Case) -> Tensor:
    """Energy in the mask over the mask's share of the image: 0 or more, noise scores 1."""
    return case.undefined if case.masks is None else _per_area(energy_in_mask(case), case.masks)


def object_discrimination(case: Case) -> Tensor:
    """ODI: energy in the other labelled objects' masks over the energy in all masks: in [0, 1], lower is better.

    Zhao & Chan 2023, "ODAM", section 4.2 (object discrimination index). Pixels shared with the object itself count as
    the object's. 0 without other labelled objects; NaN where no mask has any energy. Noise scores the others' share of
    the area of all masks.
    """
    if case.masks is None or case.others is None:
        return case.undefined
    inside, others = ((case.heatmaps * m).sum(dim=(1, 2)) for m in (case.masks, case.others & ~case.masks))
    return torch.where(inside + others > 0, others / (inside + others), torch.nan).float()


def visual_explanation_accuracy(case: Case) -> Tensor:
    """VEA: mean IoU of the labelled mask with the heat above t times the maximum, over t = 0, .05, ... .95.

    In [0, 1], higher is better: 1 if the heatmap is the mask. Zhao & Chan 2023, "ODAM", appendix, as the area under
    IoU over thresholds. Noise scores about the mask's share of the image.
    """
    if case.masks is None:
        return case.undefined
    n = len(case.heatmaps)
    thresholds = torch.arange(THRESHOLDS, device=case.heatmaps.device) / THRESHOLDS
    highest = case.heatmaps.amax(dim=(1, 2), keepdim=True)
    relative = case.heatmaps / highest.clamp(min=torch.finfo(case.heatmaps.dtype).tiny)
    passed = torch.bucketize(relative, thresholds).flatten(1)  # number of thresholds below the value
    row = torch.arange(n, device=passed.device)[:, None] * (THRESHOLDS + 1)
    bins = n * (THRESHOLDS + 1)

    def above(weights: Tensor | None) -> Tensor:  # [N, THRESHOLDS] pixels above each threshold
        counts = torch.bincount((passed + row).flatten(), weights, minlength=bins).view(n, THRESHOLDS + 1).float()
        return counts.flip(1).cumsum(1).flip(1)[:, 1:]

    heat, both = above(None), above(case.masks.flatten().float())
    union = heat + case.masks.sum(dim=(1, 2))[:, None] - both
    return (both / union.clamp(min=1)).mean(dim=1)


def compactness(case: Case) -> Tensor:
    """Spread of the heat around the centre of the labelled box, in box sides: 0 or more, lower is better.

    The heat-weighted root mean square of ((x - cx) / w)^2 + ((y - cy) / h)^2: 0 for all heat at the centre, .41
    for a filled box, 1 for heat one side away. NaN for a blank map. Zhao & Chan 2023, "ODAM", section 4.2, define it
    as the heatmap's standard deviation around the box centre over the box size.
    """
    height, width = case.heatmaps.shape[1:]
    x1, y1, x2, y2 = (side[:, None] for side in case.boxes.unbind(1))
    x = ((torch.arange(width, device=x1.device) + 0.5 - (x1 + x2) / 2) / (x2 - x1)) ** 2  # [N, W]
    y = ((torch.arange(height, device=y1.device) + 0.5 - (y1 + y2) / 2) / (y2 - y1)) ** 2
    total = case.heatmaps.sum(dim=(1, 2))
    spread = (case.heatmaps.sum(dim=1) * x).sum(dim=1) + (case.heatmaps.sum(dim=2) * y).sum(dim=1)
    return torch.where(total > 0, spread / total, torch.nan).sqrt().float()


def complexity(case: Case) -> Tensor:
    """Entropy of the heatmap as a distribution over pixels, over that of a uniform map: in [0, 1].

    Bhatt et al. 2020, "Evaluating and Aggregating Feature-based Model Explanations", definition 5, divided by log(H W).
    0 for a single hot pixel, 1 for a uniform map; noise scores about .98. Lower is easier to read, not more faithful.
    NaN for a blank map.
    """
    flat = case.heatmaps.flatten(1)
    total = flat.sum(dim=1, keepdim=True)
    share = flat / total.clamp(min=torch.finfo(flat.dtype).tiny)
    bits = torch.special.entr(share).sum(dim=1) / torch.log(torch.tensor(float(flat.shape[1])))
    return torch.where(total[:, 0] > 0, bits, torch.nan).float()


_COLUMNS: tuple[tuple[str, Better, str, Callable[[Case], Tensor]], ...] = (
    ("pointing_box", "higher", "hottest pixel in the labelled box", pointing_box),
    ("pointing_mask", "higher", "hottest pixel in the labelled mask", pointing_mask),
    ("energy_in_box", "higher", "share of the heat in the labelled box", energy_in_box),
    ("energy_in_box_per_area", "higher", "the same over the box's share of the image; noise: 1",
     energy_in_box_per_area),
    ("energy_in_mask", "higher", "share of the heat in the labelled mask", energy_in_mask),
    ("energy_in_mask_per_area", "higher", "the same over the mask's share of the image; noise: 1",
     energy_in_mask_per_area),
    ("odi", "lower", "heat in other objects' masks over heat in all masks", object_discrimination),
    ("vea", "higher", "mean IoU of thresholded heat with the mask, 20 thresholds", visual_explanation_accuracy),
    ("compactness", "lower", "root mean square distance of the heat from the box centre, in box sides", compactness),
    ("complexity", "lower", "entropy of the heat over that of a uniform map; noise: .98", complexity),
)  # fmt: skip
NEED_MASKS = frozenset({"pointing_mask", "energy_in_mask", "energy_in_mask_per_area", "odi", "vea"})
LOCALISATION = tuple((Measure(name, better, text, "localisation"), f) for name, better, text, f in _COLUMNS)
