"""Explanations with hand-made maps that are awkward to hand over: odd labels, a blank map, boxes with fractions."""

import numpy as np
import torch
from support import explanation_of, random_picture

from detcam import Explanation

ODD = ('<b title="x">&amp;', "$\\frac{1}{", "سيارة 🚗", "two\nlines, \\ and '")
HEIGHT, WIDTH = 60, 90


def odd_explanation(seed: int, masks: bool = True) -> Explanation:
    """Four objects in a picture of 60 x 90 pixels; the map of the third is blank; the last box touches two edges."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(
        [[3.25, 4.5, 30.75, 40.0], [20.0, 10.0, 80.5, 50.25], [40.0, 5.0, 60.0, 25.0], [50, 30, 90, 60]]
    )
    maps = [torch.rand(shape, generator=generator) + 0.01 for shape in ((6, 9), (12, 18), (6, 9), (5, 4))]
    maps[2] = -maps[2]
    logits = torch.randn((4, 4, 6), generator=generator) if masks else None
    return explanation_of(random_picture(seed, HEIGHT, WIDTH), maps, labels=ODD, boxes=boxes, mask_logits=logits)


def empty_explanation(seed: int) -> Explanation:
    """A picture in which nothing was found."""
    return explanation_of(random_picture(seed, HEIGHT, WIDTH), [], labels=(), boxes=torch.empty(0, 4))


def above_threshold(explanation: Explanation, threshold: float) -> np.ndarray:
    """[N, H, W] bool: where the heat reaches the threshold."""
    return explanation.heatmaps.numpy() >= threshold
