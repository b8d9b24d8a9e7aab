"""The operator `elementwise_maps`: schema, shape inference, gradients, and the checked Python call."""

import torch
from torch import Tensor

from detcam.ops import reference
from detcam.ops.library import INPUT_DTYPES, check_choice, check_index, check_tensor, library, register_gradients

ELEMENTWISE_MODES: dict[str, str] = {
    "gradient-times-activation": "maps [N, h, w]: sum_c g A (HiResCAM, ODAM)",
    "layercam": "maps [N, h, w]: sum_c relu(g) A",
    "gradcam": "weights [N, C]: mean_ij g",
    "gradcam++": "weights [N, C]: sum_ij a relu(g), a = g^2 / (2 g^2 + (sum_ij A) g^3 + 1e-6)",
    "xgradcam": "weights [N, C]: sum_ij A g / (sum_ij A + 1e-7)",
}
ALIASES = {"hirescam": "gradient-times-activation"}

library.define("elementwise_maps(Tensor acts, Tensor grads, Tensor? index, str mode) -> Tensor")
library.impl("elementwise_maps", reference.elementwise_maps, "CompositeExplicitAutograd")


@torch.library.register_fake("detcam::elementwise_maps", lib=library)
def _elementwise_maps_fake(acts: Tensor, grads: Tensor, index: Tensor | None, mode: str) -> Tensor:
    objects, channels, height, width = grads.shape
    shape = (objects, height, width) if mode in reference.CELLWISE else (objects, channels)
    return grads.new_empty(shape, dtype=reference.accumulator(grads.dtype))


register_gradients("elementwise_maps", reference.elementwise_maps)


def elementwise_maps(
    acts: Tensor,  # [B, C, h, w]
    grads: Tensor,  # [N, C, h, w]
    mode: str,
    index: Tensor | None = None,  # [N] int64
) -> Tensor:  # [N, h, w] or [N, C]
    """Maps or channel weights of the gradient methods from activations A and gradients g, without temporaries.

    Sums run over channels for the cell-by-cell methods, and over cells for those that weight whole channels. They are
    taken in float32 (float64 for float64 input), in a fixed order: the result is the same bit for bit on every run.
    It is differentiable with respect to both. Values that are not finite pass through the formula.

    Args:
        acts: Activations [B, C, h, w] with B = N, one per object; or with any B and `index`; or B = 1, shared by all.
            float32, float16, bfloat16 or float64; any strides, contiguous is fastest.
        grads: Gradients [N, C, h, w] of each object's scalar; the same dtypes; N may be 0.
        mode: One of
            "gradient-times-activation" (or "hirescam"): maps `sum_c g A`;
            "layercam": maps `sum_c relu(g) A`;
            "gradcam": weights `mean_ij g`;
            "gradcam++": weights `sum_ij a relu(g)` with `a = g^2 / (2 g^2 + (sum_ij A) g^3 + 1e-6)`;
            "xgradcam": weights `sum_ij A g / (sum_ij A + 1e-7)`.
        index: Image of each object, [N] int64 in [0, B). On a GPU a value out of range fails a device-side
            assertion, because a check would stall the stream.

    Returns:
        Maps [N, h, w] or weights [N, C], float32 (float64 for float64 input), unbounded.

    Raises:
        TypeError: A dtype that is not supported, or a tensor expected and something else given.
        ValueError: Shapes, devices or a mode that do not fit together.
        IndexError: An index outside [0, B), when it lies on the CPU.
    """
    check_choice("mode", mode, (*ELEMENTWISE_MODES, *ALIASES))
    mode = ALIASES.get(mode, mode)
    for name, value in (("acts", acts), ("grads", grads)):
        check_tensor(name, value, INPUT_DTYPES)
    if acts.ndim != 4 or 0 in acts.shape[1:]:
        raise ValueError(f"acts: expected [B, C, h, w] with cells, got {list(acts.shape)}")
    if grads.ndim != 4 or grads.shape[1:] != acts.shape[1:]:
        raise ValueError(f"grads: expected [N, {', '.join(map(str, acts.shape[1:]))}], got {list(grads.shape)}")
    if grads.device != acts.device:
        raise ValueError(f"grads: expected device {acts.device} of acts, got {grads.device}")
    objects, images = grads.shape[0], acts.shape[0]
    if index is not None or images not in (1, objects):
        check_index(index, objects, images, acts.device)
    if mode == "gradcam":
        acts = acts.detach()  # it reads none
    common = torch.promote_types(acts.dtype, grads.dtype)
    return torch.ops.detcam.elementwise_maps.default(acts.to(common), grads.to(common), index, mode)
