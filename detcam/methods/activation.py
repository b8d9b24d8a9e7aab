"""Methods that read activations only. Their map is the same for every object of a picture, and the result says so."""

from __future__ import annotations

import torch
from torch import Tensor

from detcam.methods.base import Method


class EigenCAM(Method):
    """Eigen-CAM: the activations projected on their first principal component.

    Muhammad & Yeasin 2020, "Eigen-CAM: Class Activation Map using Principal Components", equation 4, on activations
    centred per channel. A principal component has no sign of its own: ours is the one whose projection grows with the
    strength of the activations (sum_k |A_k|).
    """

    name = "eigencam"
    formula = "ReLU(+-(A - mean_ij(A)) v), v = first principal component of A"
    source = "Muhammad & Yeasin 2020, arXiv:2008.00299, eq. 4"
    reads = "activations"
    object_specific = False
    passes = "1 F"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        """See `Method.maps`."""
        n, _, h, w = acts.shape
        cells = acts.flatten(2).transpose(1, 2).double()  # [n, hw, C]
        cells = cells.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # an overflow in the model: eigh takes finite numbers
        centred = cells - cells.mean(dim=1, keepdim=True)
        if h * w < centred.shape[2]:  # the smaller of the two Gram matrices has the same leading component
            values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))  # ascending eigenvalues
            projection = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()  # [n, hw]
        else:
            _, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
            projection = (centred @ vectors[:, :, -1:]).squeeze(2)
        strength = cells.abs().sum(dim=2)
        sign = torch.where((projection * strength).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
        return (projection * sign).to(acts.dtype).view(n, h, w)
