"""Shapley-CAM, and the second derivatives that it reads."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from detcam.engine.autograd_graph import nodes_behind
from detcam.errors import MethodError
from detcam.methods.gradient import GradCAM


class ShapleyCAM(GradCAM):
    """Shapley-CAM: Grad-CAM with the gradient corrected by the curvature of the score.

    Cai 2025, "CAMs as Shapley Value-based Explainers", the closed form of its second-order expansion:
    w = mean_ij(g - H A / 2), H the Hessian of the score with respect to this layer alone. The scalar is the user's
    target; the paper's residual softmax (ReST) assumes classes that exclude one another.
    """

    name = "shapleycam"
    formula = "ReLU(sum_k w_k A_k), w = mean_ij(g_k - (H A)_k / 2)"
    source = "Cai 2025, arXiv:2501.06261"
    reads = "activations, gradients, second derivatives"
    second_order = True
    passes = "1 F + N (1 + L) B, those of the L layers through the first"

    def gradients(
        self, scalars: Tensor, images: Tensor, tensors: list[Tensor]
    ) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
        """See `Method.gradients`, with g - H A / 2 in place of g: H the scalar's Hessian with respect to that tensor A.

        One object at a time, with one more backward per tensor, through the first backward.

        Raises:
            MethodError: if torch lacks the second derivative of an operation of the model.
        """
        for position, image in enumerate(images.tolist()):
            found: list[Tensor | None] = [None] * len(tensors)
            with torch.enable_grad():
                if scalars.requires_grad:
                    found = _derivatives(scalars[position], tensors, create_graph=True)
            corrected: list[Tensor | None] = []
            for tensor, gradient in zip(tensors, found, strict=True):
                product = None
                if gradient is not None and gradient.requires_grad:
                    product = _derivatives(gradient, [tensor], grad_outputs=tensor.detach(), retain_graph=True)[0]
                if gradient is not None:
                    gradient = (gradient.detach() if product is None else gradient.detach() - product / 2)[image][None]
                corrected.append(gradient)
            yield torch.tensor([position], device=images.device), corrected


def _derivatives(output: Tensor, tensors: list[Tensor], **options: Any) -> list[Tensor | None]:
    """The gradients of an output at tensors, None where it does not depend on one."""
    if any(node.name().endswith("Error") for node in nodes_behind([output.grad_fn])):
        raise _no_second_derivative("once_differentiable")  # autograd passes over it
    try:
        return list(torch.autograd.grad(output, tensors, allow_unused=True, **options))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # deformable convolutions, functions that can be differentiated once
        raise _no_second_derivative(str(error)) from error


def _no_second_derivative(reason: str) -> MethodError:
    return MethodError(
        f"method shapleycam: torch has no second derivative of an operation of this model ({reason}): use 'gradcam'"
    )
