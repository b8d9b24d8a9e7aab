"""Check by intervention: does the score fall when the hottest pixels of an object's map are hidden?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from detcam.engine.masking import batch_size, fill, network_heat, places, random_blocks, seen
from detcam.geometry import Geometry
from detcam.runners.base import ModelRun
from detcam.runners.likeness import Likeness
from detcam.types import Check, Objects

AREA = 0.25  # hidden pixels, as a share of the object's box
DRAWS = 3  # random orders of the pixels


class Checker:
    """Hides parts of an image from a model, and reads the scores of its objects.

    Hidden pixels show the image under a strong Gaussian blur. Of each object as many pixels are hidden as a quarter of
    its box has: a map that knows no more than the box could not choose among them.

    Args:
        model_run: the model.
        objects: the N objects of the image.
        image: [3, h, w], the network's input.
        geometry: how the image lies in it.
        memory: approximate bytes for a batch of forwards.
    """

    def __init__(self, model_run: ModelRun, objects: Objects, image: Tensor, geometry: Geometry, memory: int) -> None:
        self._score = Likeness(model_run.adapter, objects, model_run.max_det)
        self._boxes, self._size, self._batch = objects.network_boxes, geometry.network, batch_size(image, memory)
        self._inside, self._fill = seen(geometry, image.device), fill("blur", image, image)

    def checks(self, maps: Sequence[Tensor], twin: Sequence[Tensor]) -> list[Check]:
        """The check of each object's map.

        Args:
            maps: N raw coarse maps [h, w].
            twin: N maps of the same objects, by the same method, from a model with shuffled weights.
        """
        if not len(maps):
            return []
        total = int(self._inside.sum())
        sides = self._boxes[:, 2:] - self._boxes[:, :2]
        hidden = (AREA * sides.prod(dim=1)).round().clamp(1, total // 2).long()  # [N] pixels
        unchanged = self._score.of_all(self._fill(self._inside[None] & False))[0]
        falls = [self._fall(unchanged, self._hottest(m, hidden)) for m in (maps, twin)]
        rows = zip((hidden / total).tolist(), unchanged.tolist(), *falls, self._random(unchanged, hidden), strict=True)
        return [Check(share, score, hottest, random, shuffled) for share, score, hottest, shuffled, random in rows]

    def _hottest(self, maps: Sequence[Tensor], hidden: Tensor) -> Tensor:
        """[N] scores without the hottest pixels of each map; a blank map has none, and hides nothing in particular."""
        scores = []
        for part in torch.arange(len(hidden), device=hidden.device).split(self._batch):
            ranks = places(network_heat([maps[i] for i in part.tolist()], self._size), self._inside)
            masks = (ranks >= 0) & (ranks < hidden[part, None, None])
            scores.append(self._score(self._fill(masks), part))
        return torch.cat(scores)

    def _random(self, unchanged: Tensor, hidden: Tensor) -> list[float | None]:
        """The mean fall without as many pixels in random blocks.

        Objects share the forwards: these hide powers of 2, between which the scores are interpolated.
        """
        orders = random_blocks(DRAWS, self._inside)
        power = hidden.double().log2()
        below, above = power.floor().long(), power.ceil().long()
        scores = {}
        for rung in torch.cat([below, above]).unique().tolist():
            masks = (orders >= 0) & (orders < 2**rung)
            drawn = [self._score.of_all(self._fill(part)) for part in masks.split(self._batch)]
            scores[rung] = torch.cat(drawn).mean(dim=0).double()
        low, high = (torch.stack([scores[r][i] for i, r in enumerate(rungs.tolist())]) for rungs in (below, above))
        return self._fall(unchanged, low + (high - low) * (power - below))

    @staticmethod
    def _fall(before: Tensor, after: Tensor) -> list[float | None]:
        """[N] (before - after) / before; None where there was no score."""
        return [(b - a) / b if b > 0 else None for b, a in zip(before.tolist(), after.tolist(), strict=True)]
