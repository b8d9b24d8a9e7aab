"""Methods whose weights differ from cell to cell, which keeps the maps of objects apart."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detcam.methods.base import Method, PooledMethod, parameter
from detcam.methods.gradient import GradCAM, GradCAMPlusPlus, HiResCAM


class ElementWiseGradCAM(HiResCAM):
    """Element-wise Grad-CAM: the positive contributions of the channels in each cell, summed.

    HiResCAM with the ReLU inside the sum, as pytorch-grad-cam's GradCAMElementWise has it.
    """

    name = "elementwise"
    formula = "sum_k ReLU(g_k * A_k)"
    source = "Pillai et al. 2022, arXiv:2110.00527, as in pytorch-grad-cam"
    gradient_times_activation = False

    def terms(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        return super().terms(acts, grads).clamp(min=0)


class SSGradCAM(Method):
    """Spatial sensitive Grad-CAM: Grad-CAM's weights, and for each channel a map of where its gradient is large.

    Yamauchi & Ishikawa 2022, "Spatial Sensitive Grad-CAM: Visual Explanations for Object Detection by Incorporating
    Spatial Sensitivity". The maps of several layers are added as they are; the paper divides each by its maximum.
    """

    name = "ssgradcam"
    formula = "ReLU(sum_k w_k M_k * A_k), w = mean_ij(g), M = |g| / max_ij |g|"
    source = "Yamauchi & Ishikawa 2022, ICIP, doi:10.1109/ICIP46576.2022.9897350"
    pooled: ClassVar[PooledMethod] = GradCAM()

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        size = grads.abs()
        spaces = size / size.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)  # silent ones are 0
        return torch.einsum("nc,nchw,nchw->nhw", self.pooled.weights(acts, grads), spaces, acts)


class SSGradCAMPlusPlus(SSGradCAM):
    """Spatial sensitive Grad-CAM++: the same with the weights of Grad-CAM++.

    Yamauchi 2024, "Spatial Sensitive Grad-CAM++: Improved Visual Explanation for Object Detectors via Weighted
    Combination of Gradient Map". The weights are those of our Grad-CAM++, poles included (see there).
    """

    name = "ssgradcam++"
    formula = "ReLU(sum_k w_k M_k * A_k), w of Grad-CAM++, M = |g| / max_ij |g|"
    source = "Yamauchi 2024, CVPR Workshops, pp. 8164-8168"
    pooled = GradCAMPlusPlus()


@dataclass(frozen=True)
class GCAME(Method):
    """G-CAME: Grad-CAM seen through a Gaussian around the object's cell.

    Nguyen et al. 2023, "G-CAME: Gaussian-Class Activation Mapping Explainer for Object Detectors". Each channel's
    Gaussian widens with the logarithm of the channel's weight, and is at least one cell wide. The paper centres it
    where the gradient is not zero, which is one cell at the last layer of YOLOX; behind larger kernels the centre is
    the cell where sum_k |g_k| is largest. `stride` is the paper's S, input pixels per cell, of which only the logarithm
    counts: give that of the layer.
    """

    stride: float = parameter(16.0, 1.0, 1024.0)

    name = "gcame"
    formula = (
        "ReLU(sum_k w_k G_k * A_k), w = mean_ij(g), G_k Gaussian around the object's cell, "
        "sigma_k = 3 |log|w_k|| log(stride) / floor((sqrt(hw) - 1) / 2)"
    )
    source = "Nguyen et al. 2023, arXiv:2306.03400"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        height, width = grads.shape[2:]
        weights = grads.mean(dim=(2, 3))  # [n, C]
        centre = grads.abs().sum(dim=1).flatten(1).argmax(dim=1)  # [n]
        row, column = centre // width, centre % width
        y, x = (torch.arange(side, device=grads.device) for side in (height, width))
        squared = (y - row[:, None])[:, :, None] ** 2 + (x - column[:, None])[:, None, :] ** 2  # [n, h, w]
        reach = max(math.floor((math.sqrt(height * width) - 1) / 2), 1)
        tiny = torch.finfo(weights.dtype).tiny
        logarithm = weights.abs().clamp(min=tiny).log().abs()
        sigma = (3 * logarithm * math.log(self.stride) / reach).clamp(min=1)
        masks = torch.exp(-squared[:, None] / (2 * sigma[:, :, None, None] ** 2))
        return torch.einsum("nc,nchw,nchw->nhw", weights, masks, acts)
