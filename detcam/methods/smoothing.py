"""Smoothing of other methods: mean maps over changed images, and the first principal component."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.errors import MethodError
from detcam.methods.activation import vectors_of
from detcam.methods.base import MOST, AnyMethod, Method, parameter
from detcam.methods.components import first_component
from detcam.methods.gradient import ODAM

if TYPE_CHECKING:
    from detcam.adapters import Adapter, Target

STEP = 32  # sides of a network's input are multiples of this


@dataclass(frozen=True)
class Version:
    """A changed version of a network's input."""

    pixels: Tensor  # [1, C, H', W']
    scale: tuple[float, float] = (1.0, 1.0)  # (across, down), by which it is larger
    flipped: bool = False  # whether left and right are exchanged
    moves: bool = False  # whether objects lie elsewhere in it

    def boxes(self, boxes: Tensor) -> Tensor:
        """Where boxes [N, 4] xyxy of the unchanged image lie in it."""
        across, down = self.scale
        moved = boxes * boxes.new_tensor([across, down, across, down])
        if self.flipped:  # the right side becomes the left side
            moved[:, 0::2] = self.pixels.shape[3] - moved[:, [2, 0]]
        return moved

    def back(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        """A map [h, w] of it as a map of the unchanged image, of `size`."""
        straight = raw.flip(1) if self.flipped else raw
        if straight.shape == size:
            return straight
        return interpolate(straight[None, None], size, mode="bilinear")[0, 0]


class Smoothing(AnyMethod):
    """The mean map of another method over changed versions of the image; each object is found again in each.

    Where an anchor or query stays the same, it is the object's own; else it is the candidate with the largest IoU
    times probability of the object's class, and versions where that overlaps by less than a half are left out.
    """

    method: AnyMethod
    equal: bool = False  # whether each version's map counts as its share of its largest value

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = self.method
        facts = {"object_specific": inner.object_specific, "caution": inner.caution, "layers": inner.layers}
        vars(self).update(facts, name=f"{self.name}:{inner.name}")  # as the fields of a frozen dataclass are set

    @abstractmethod
    def versions(self, pixels: Tensor, channels: int = 3) -> Iterator[Version]:
        """Changed versions of a network's input [1, C, H, W], of which the first `channels` are the image."""


@dataclass(frozen=True)
class NoiseTunnel(Smoothing):
    """Noise tunnel: the mean map over noisy versions of the image, of any method.

    Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", section 2, for any map. `deviation` is a share of
    the range of the input's values.

    Args:
        method: its maps are averaged.
        samples: number of versions.
        deviation: strength of the noise.
        seed: of the noise.
    """

    method: AnyMethod = field(default_factory=ODAM)
    samples: int = parameter(10, 1, MOST)
    deviation: float = parameter(0.1, 0.0, 100.0)
    seed: int = parameter(0, 0, MOST)

    name = "noisy"
    formula = "mean_i map(x + noise_i)"
    source = "Smilkov et al. 2017, arXiv:1706.03825, sec. 2"
    reads = "as its method"
    passes = "1 F + samples times those of its method"

    def versions(self, pixels: Tensor, channels: int = 3) -> Iterator[Version]:
        generator = torch.Generator().manual_seed(self.seed)
        colours = pixels[:, :channels]
        strength = self.deviation * float(colours.max() - colours.min())
        for _ in range(self.samples):
            noise = strength * torch.randn(colours.shape, generator=generator)
            yield Version(torch.cat([colours + noise.to(colours), pixels[:, channels:]], dim=1))


@dataclass(frozen=True)
class Augmented(Smoothing):
    """Augmentation smoothing: the mean map over the image and its mirror image at three scales, of any method.

    As pytorch-grad-cam's `aug_smooth`, which mirrors too but changes the brightness in place of the scale. Sides are
    rounded to multiples of 32. Each version's map counts as its share of its largest value, as there.

    Args:
        method: its maps are averaged.
        scale: factor by which the image is enlarged and reduced; 1: it is mirrored only.
    """

    method: AnyMethod = field(default_factory=ODAM)
    scale: float = parameter(1.25, 1.0, 4.0)

    name = "augmented"
    formula = "mean over {x, mirrored x} at scales {1, s, 1 / s} of map / max |map|, moved back"
    source = "this project, after pytorch-grad-cam's aug_smooth (Gildenblat 2021)"
    reads = "as its method"
    passes = "1 F + 6 times those of its method"
    equal = True

    def versions(self, pixels: Tensor, channels: int = 3) -> Iterator[Version]:
        if pixels.shape[1] > channels:
            raise MethodError("method augmented: this image was padded by its processor, which has no mirror image")
        height, width = pixels.shape[2:]
        sizes = [(height, width)]
        for factor in (self.scale, 1 / self.scale):
            rows, columns = (max(round(side * factor / STEP), 1) * STEP for side in (height, width))
            sizes.append((rows, columns))
        for size in dict.fromkeys(sizes):
            scaled = pixels
            if size != (height, width):
                scaled = interpolate(pixels, size, mode="bilinear", antialias=True)
            scale = size[1] / width, size[0] / height
            yield Version(scaled, scale, flipped=False, moves=size != (height, width))
            yield Version(scaled.flip(3), scale, flipped=True, moves=True)


class PrincipalComponent(Method):
    """Principal-component smoothing: a method's terms over channels, projected on their first principal component.

    As pytorch-grad-cam's `eigen_smooth`: Eigen-CAM (Muhammad & Yeasin 2020, equation 4) of the method's terms in place
    of the activations. The sign is chosen to make the projection grow with their sum.

    Args:
        method: its map is a sum over channels.

    Raises:
        MethodError: for any other method.
    """

    name = "eigen"
    formula = "ReLU(+-(T - mean_ij(T)) v), v = first principal component of T, the map being sum_k T_k"
    source = "Muhammad & Yeasin 2020, arXiv:2008.00299, eq. 4, on terms as in pytorch-grad-cam"

    def __init__(self, method: AnyMethod | None = None) -> None:
        method = method or ODAM()
        if not isinstance(method, Method) or type(method).terms is Method.terms:
            raise MethodError(
                f"method eigen: {method.name!r} is not a sum over channels: choose e.g. 'gradcam' or 'odam'"
            )
        self.method = method
        facts = {"name": f"eigen:{method.name}", "layers": method.layers, "second_order": method.second_order}
        vars(self).update(facts, reads=method.reads, passes=method.passes, object_specific=method.object_specific)

    def target(self, adapter: Adapter, target: Target) -> Target:
        return self.method.target(adapter, target)

    def gradients(
        self, scalars: Tensor, images: Tensor, tensors: list[Tensor]
    ) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
        return self.method.gradients(scalars, images, tensors)

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        cells = vectors_of(self.method.terms(acts, grads))
        return first_component(cells, cells.sum(dim=2)).to(acts.dtype).view(len(acts), *acts.shape[2:])


WRAPPERS: dict[str, type[NoiseTunnel | Augmented | PrincipalComponent]] = {
    "noisy": NoiseTunnel,
    "augmented": Augmented,
    "eigen": PrincipalComponent,
}
