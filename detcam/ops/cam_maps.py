"""The operator `cam_maps`: schema, shape inference, gradients, and the checked Python call."""

from typing import Any

import torch
from torch import Tensor

from detcam.ops import library as common
from detcam.ops import reference
from detcam.ops.library import library

NORMALIZATIONS: dict[str, str] = {
    "object": "min-max over the cells of each map, before the resize; a constant map becomes 0",
    "image": "min-max over the cells of all maps of the same image, before the resize: maps can be compared",
    "object-after": "min-max over the pixels of each map, after the resize (ODAM)",
    "max": "division by the largest pixel of each map, after the resize (Ultralytics); none above 0 gives 0",
    "none": "raw values, kept inside the range of the output type",
}
OUTPUT_DTYPES = (*common.INPUT_DTYPES, torch.uint8)

library.define(
    "cam_maps(Tensor acts, Tensor weights, Tensor? index, Tensor? window, SymInt height, SymInt width, "
    "str normalize, bool relu, ScalarType dtype) -> Tensor"
)
library.define(
    "cam_maps.out(Tensor acts, Tensor weights, Tensor? index, Tensor? window, str normalize, bool relu, *, "
    "Tensor(a!) out) -> ()"
)
library.impl("cam_maps", reference.cam_maps, "CompositeExplicitAutograd")
library.impl("cam_maps.out", reference.cam_maps_out, "CompositeExplicitAutograd")


@torch.library.register_fake("detcam::cam_maps", lib=library)
def _cam_maps_fake(acts: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    _index, _window, height, width, _normalize, _relu, dtype = rest
    return acts.new_empty((weights.shape[0], height, width), dtype=dtype)


common.register_gradients("cam_maps", reference.cam_maps)


@torch.library.register_fake("detcam::cam_maps.out", lib=library)
def _cam_maps_out_fake(*arguments: Any, out: Tensor) -> None:
    """There is no result to infer."""


def _cam_maps_out_tracked(keys: torch.DispatchKeySet, *arguments: Any, out: Tensor) -> None:
    """Autograd notices that `out` has changed."""
    torch.autograd.graph.increment_version(out)
    torch.ops.detcam.cam_maps.out.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *arguments, out=out)


library.impl("cam_maps.out", _cam_maps_out_tracked, "ADInplaceOrView", with_keyset=True)


def _cam_maps_out_negated(*arguments: Any, out: Tensor) -> None:
    """Arguments whose sign is a flag: torch's fallback would end the process, for an operator without a result."""
    if out.is_neg():
        raise ValueError("out: expected memory that holds its values, got a lazily negated view")
    plain = (value.resolve_neg() if isinstance(value, Tensor) else value for value in arguments)
    torch.ops.detcam.cam_maps.out(*plain, out=out)


library.impl("cam_maps.out", _cam_maps_out_negated, "Negative")


def cam_maps(
    acts: Tensor,  # [C, h, w] or [B, C, h, w]
    weights: Tensor,  # [N, C]
    size: tuple[int, int],
    index: Tensor | None = None,  # [N] int64
    *,
    normalize: str = "object",
    relu: bool = True,
    dtype: torch.dtype = torch.float32,
    window: Tensor | tuple[float, float, float, float] | None = None,  # [4] or [N, 4] float32
    out: Tensor | None = None,  # [N, H, W] of `dtype`
) -> Tensor:  # [N, H, W]
    """Class activation maps of N objects: weighted channel sum, ReLU, normalisation and resize, fused.

    `map_n = normalise(relu(sum_c weights[n, c] * acts[index[n], c]))`, resized like
    `F.interpolate(mode="bilinear", align_corners=False)`: half-pixel centres, border cells repeated. The
    order of normalisation and resize is that of `normalize`. Sums are taken in float32 (float64 for float64
    input). A cell whose sum is NaN or infinite counts as 0. The result is the same
    bit for bit on every run, and differentiable with respect to `acts` and `weights`.

    Args:
        acts: Activations [C, h, w] of one image or [B, C, h, w] of several; float32, float16, bfloat16 or
            float64; any strides.
        weights: Channel weights [N, C], one row per object; the same dtypes; N may be 0.
        size: Height and width of the maps in pixels.
        index: Image of each object, [N] int64 in [0, B). May be left out when there is one image. On a GPU a
            value out of range fails a device-side assertion, because a check would stall the stream.
        normalize: One of
            "object": min-max over the cells of each map, before the resize; a constant map becomes 0;
            "image": min-max over the cells of all maps of the same image, before the resize: maps can be
                compared;
            "object-after": min-max over the pixels of each map, after the resize (ODAM);
            "max": division by the largest pixel of each map, after the resize (Ultralytics); none above 0
                gives 0;
            "none": raw values, kept inside the range of the output type.
        relu: Whether negative sums count as 0.
        dtype: Output type: float32, float16, bfloat16, float64, or uint8 for round(255 * map), which needs a
            normalisation.
        window: Part of the feature map that fills the output, (left, top, right, bottom) in cells: pixel x
            samples at `left + (x + 0.5) * (right - left) / W - 0.5`. It can
            leave out the padding of a letterbox. A tensor [N, 4] gives one window per object: `region_windows`
            makes windows that render only the surroundings of each object, at full resolution. The default is
            (0, 0, w, h). Ranges over cells are those of the whole map, ranges over pixels those of the window.
        out: Memory to write the maps into, instead of new memory: contiguous [N, H, W] of `dtype` on the device of
            `acts`, apart from the memory of the other arguments. It carries no gradient.

    Returns:
        Maps [N, H, W] on the device of `acts`: in [0, 1], or [0, 255] for uint8. With "max" and no ReLU the
        lower bound is open, with "none" both are. `out` itself if given.

    Raises:
        TypeError: A dtype that is not supported, or a tensor expected and something else given.
        ValueError: Shapes, devices or options that do not fit together.
        IndexError: An index outside [0, B), when it lies on the CPU.
    """
    acts, weights = _check_maps(acts, weights)
    count, images = weights.shape[0], acts.shape[0]
    height, width = common.check_size(size)
    common.check_index(index, count, images, acts.device)
    common.check_choice("normalize", normalize, NORMALIZATIONS)
    if not isinstance(relu, bool):
        raise TypeError(f"relu: expected True or False, got {type(relu).__name__}")
    if not isinstance(dtype, torch.dtype) or dtype not in OUTPUT_DTYPES:
        actual = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
        raise TypeError(f"dtype: expected one of {common.list_names(OUTPUT_DTYPES)}, got {actual}")
    if dtype == torch.uint8 and normalize == "none":
        raise ValueError('dtype: uint8 holds normalised maps only, got normalize="none"')
    bounds = None if window is None else common.check_window(window, count, acts.device)
    if out is None:
        return torch.ops.detcam.cam_maps.default(acts, weights, index, bounds, height, width, normalize, relu, dtype)
    common.check_out(out, (count, height, width), dtype, acts=acts, weights=weights, index=index, window=bounds)
    torch.ops.detcam.cam_maps.out(acts, weights, index, bounds, normalize, relu, out=out)
    return out


def region_windows(
    boxes: Tensor,  # [N, 4]
    size: tuple[int, int],
    window: tuple[float, float, float, float],
) -> Tensor:  # [N, 4] float32
    """The windows that make `cam_maps` render a region of each map instead of the whole.

    `cam_maps(..., size=(rh, rw), window=region_windows(boxes, size, window))` gives the pixels in `boxes` of
    `cam_maps(..., size=size, window=window)`, when all boxes are rh pixels high and rw wide: 100 objects in an image
    of 3840 x 2160 then take 100 MB, as [100, 512, 512], instead of 3.3 GB. A box of another size is stretched to
    (rh, rw). The values agree to the rounding of float32 at the place of a pixel, about 1e-6 of the number of cells,
    as long as `normalize` takes ranges over cells; with "object-after" and "max" they are those of the region.

    Args:
        boxes: Regions (x1, y1, x2, y2) in pixels of the whole rendering, floating point. Outside of it the border
            repeats.
        size: Height and width of the whole rendering.
        window: Its window (left, top, right, bottom) in cells; (0, 0, w, h) where all of the map fills it.

    Returns:
        Windows [N, 4] in cells, float32, on the device of `boxes`.

    Raises:
        TypeError: A tensor or numbers expected and something else given.
        ValueError: Boxes of another shape, a size below 1, or a window without width or height.
    """
    height, width = common.check_size(size)
    count = boxes.shape[0] if isinstance(boxes, Tensor) and boxes.ndim else 0
    corners = common.check_boxes(boxes, count, getattr(boxes, "device", torch.device("cpu"))).double()
    left, top, right, bottom = common.check_sides(window)
    across, down = (right - left) / width, (bottom - top) / height
    x1, y1, x2, y2 = corners.T
    return torch.stack([left + x1 * across, top + y1 * down, left + x2 * across, top + y2 * down], 1).float()


def _check_maps(acts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, h, w], [N, C] of one dtype
    for name, value in (("acts", acts), ("weights", weights)):
        common.check_tensor(name, value, common.INPUT_DTYPES)
    if acts.ndim not in (3, 4) or 0 in acts.shape:
        raise ValueError(f"acts: expected a non-empty [C, h, w] or [B, C, h, w], got {list(acts.shape)}")
    if weights.ndim != 2 or weights.shape[1] != acts.shape[-3]:
        raise ValueError(f"weights: expected [N, {acts.shape[-3]}] for these acts, got {list(weights.shape)}")
    if weights.device != acts.device:
        raise ValueError(f"weights: expected device {acts.device} of acts, got {weights.device}")
    dtype = torch.promote_types(acts.dtype, weights.dtype)  # differs under autocast: half beside float
    acts = acts if acts.ndim == 4 else acts[None]
    return acts.to(dtype), weights.to(dtype)
