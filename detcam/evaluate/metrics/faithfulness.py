"""Deletion and insertion: does the score follow the pixels that the map marks as important?

All maps of an image share one stream of masked images: maps of several methods and objects go through the model in the
same batches, and the two ends of every curve (the image unmasked, and fully masked) run once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detcam.engine.masking import Fill
from detcam.evaluate.metrics.localisation import Better, Measure

STEPS = 10
ENOUGH = 0.5  # the share of the initial score at which a subset of pixels counts as sufficient
# From images [b, 3, h, w] and the index [b] of the object to score in each image, to [b].
Score = Callable[[Tensor, Tensor], Tensor]


def measures(fill: str) -> list[Measure]:
    """The measures of `Curves.values`, in that order, for a fill."""
    low = "noise scores about the same in deletion and insertion"
    columns: tuple[tuple[str, Better, str], ...] = (
        ("deletion", "lower", f"area under s / s0 while the hottest pixels are hidden; {low}"),
        ("insertion", "higher", f"area under s / s0 while the hottest pixels are shown; {low}"),
        ("deletion_raw", "lower", "area under s itself while they are hidden: favours objects with low scores"),
        ("insertion_raw", "higher", "area under s itself while they are shown: favours objects with high scores"),
        ("minimal_subset", "lower", f"least share of pixels, hottest first, that alone gives s / s0 >= {ENOUGH}"),
    )
    return [Measure(f"{name}_{fill}", better, text, f"faithfulness, {fill}") for name, better, text in columns]


def shares(steps: int = STEPS) -> Tensor:
    """[steps + 1] shares of the pixels at which a curve is sampled: (i / steps)^2.

    Dense at the start, where the heat is: the area needs fewer forwards than with even steps.
    """
    return (torch.arange(steps + 1) / steps) ** 2


@dataclass(frozen=True)
class Curves:
    """Scores s of n objects while pixels are hidden or shown, hottest first."""

    shares: Tensor  # [K + 1] from 0 to 1, of the image's pixels
    deletion: Tensor  # [n, K + 1] s with that share of the hottest pixels hidden
    insertion: Tensor  # [n, K + 1] s with that share of the hottest pixels shown and all others hidden

    @property
    def initial(self) -> Tensor:
        """[n] s0, the score of the unmasked image."""
        return self.deletion[:, 0]

    def values(self) -> tuple[Tensor, ...]:
        """[n] each, in the order of `measures`; values relative to s0 are NaN where s0 is 0."""
        initial = self.initial.where(self.initial > 0, torch.nan)
        deletion, insertion = (torch.trapezoid(c, self.shares.to(c), dim=1) for c in (self.deletion, self.insertion))
        return deletion / initial, insertion / initial, deletion, insertion, self.minimal_subset()

    def minimal_subset(self) -> Tensor:
        """[n] the least share of pixels, hottest first, that alone gives `ENOUGH` of s0; linear between steps.

        In [0, 1], lower is better; after Petsiuk et al. 2021 and Chen et al. 2025 ("Visual Precision Search"). 0 if the
        fully masked image reaches it.
        """
        relative = self.insertion / self.initial.where(self.initial > 0, torch.nan)[:, None]
        first = (relative >= ENOUGH).int().argmax(dim=1, keepdim=True)
        after, before = relative.gather(1, first), relative.gather(1, (first - 1).clamp(min=0))
        at = self.shares.to(relative)[first], self.shares.to(relative)[(first - 1).clamp(min=0)]
        part = torch.where(after > before, (ENOUGH - before) / (after - before), 0).clamp(0, 1)
        return torch.where(first > 0, at[1] + part * (at[0] - at[1]), after * 0)[:, 0]


def ends(score: Score, fill: Fill, inside: Tensor, objects: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """The two ends of every curve: [m] scores of `objects` [m] int64 in the unmasked and in the fully masked image.

    The pixels to hide are `inside` [h, w] bool; for the other arguments see `curves`.
    """
    nothing, everything = (inside & False).expand(len(objects), -1, -1), inside.expand(len(objects), -1, -1)
    whole = _batched(score, fill, lambda part: nothing[part], objects, batch)
    return whole, _batched(score, fill, lambda part: everything[part], objects, batch)


def curves(
    score: Score,
    fill: Fill,
    places: Tensor,
    owner: Tensor,
    whole: Tensor,
    hidden: Tensor,
    batch: int,
    steps: int = STEPS,
) -> Curves:
    """Deletion and insertion curves of n maps of an image, with `steps` points after the first.

    `places` [n, h, w] int32 are the pixel ranks of each map, see `masking.places`, and `fill` gives the content of
    hidden pixels, see `masking.fill`. `owner` [n] int64 is the object of each map, `whole` and `hidden` [n] are s of
    that object at the two ends, see `ends`. A forward has up to `batch` images.
    """
    inside, fractions = places[:1] >= 0, shares(steps)
    limits = (fractions[1:-1] * int(inside.sum())).round().to(places.device)
    hides, shows = (course(score, fill, places, owner, limits, shown, batch) for shown in (False, True))
    deletion = torch.cat([whole[:, None], hides, hidden[:, None]], dim=1)
    insertion = torch.cat([hidden[:, None], shows, whole[:, None]], dim=1)
    return Curves(fractions, deletion, insertion)


def course(score: Score, fill: Fill, places: Tensor, owner: Tensor, limits: Tensor, shown: bool, batch: int) -> Tensor:
    """[n, k] scores with the `limits` [k] hottest pixels of n maps hidden, or with only these shown; see `curves`."""
    inside, rows = places[:1] >= 0, len(limits)

    def masks(part: slice) -> Tensor:
        row = torch.arange(len(places) * rows, device=places.device)[part]
        hottest = places[row // rows] < limits[row % rows, None, None]
        return (hottest ^ shown) & inside

    scores = _batched(score, fill, masks, owner.repeat_interleave(rows), batch)
    return scores.unflatten(0, (len(places), rows))


def _batched(score: Score, fill: Fill, hidden: Callable[[slice], Tensor], objects: Tensor, batch: int) -> Tensor:
    """[len(objects)] scores, a batch at a time."""
    parts = [slice(i, min(i + batch, len(objects))) for i in range(0, len(objects), batch)]
    return torch.cat([score(fill(hidden(part)), objects[part]) for part in parts])
