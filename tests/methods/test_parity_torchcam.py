"""Our maps against torch-cam's, of the same class logit at the same anchor, before the ReLU."""

from typing import Any

import pytest
import torch
from sweep_settings import LAYER, SIZE, Anchor, Setting, assert_maps
from torch import Tensor, nn

from detcam import Explanation
from detcam.methods.layered import SmoothGradCAMPlusPlus
from detcam.methods.perturbation import ISCAM, SSCAM

peer = pytest.importorskip("torchcam.methods")  # there is none for Python 3.10
SAMPLES = 2


class OneAnchor(nn.Module):
    """The model as a classifier of one of its anchors: [B, 3, H, W] -> logits [B, nc]."""

    def __init__(self, model: nn.Module, anchor: int) -> None:
        super().__init__()
        self.whole, self.anchor = Anchor(model), anchor

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x)[:, :, self.anchor]


def peer_maps(kind: Any, setting: Setting, explanation: Explanation, noises: list[Tensor], **options: Any) -> Tensor:
    """[N, h, w]; each draw of the peer's noise is the next of `noises`, the same for every object."""
    maps = []
    for class_id, anchor in zip(explanation.class_ids.tolist(), explanation.objects.index.tolist(), strict=True):
        model = OneAnchor(setting.model, anchor).eval().requires_grad_(True)
        left = iter(noises)
        extractor = kind(model, model.whole.model.get_submodule(LAYER), input_shape=(3, 64, SIZE), **options)
        if noises:
            extractor._distrib = Fixed(left)
        with extractor:
            scores = model(setting.pixels[None].clone().requires_grad_())
            acts = extractor.hook_a[0].detach().clone()
            weights = extractor._get_weights(class_id, scores)[0]
        maps.append(torch.einsum("c,chw->hw", weights[0].detach(), acts[0]))
    return torch.stack(maps)


class Fixed:
    """A distribution whose draws were made before."""

    def __init__(self, draws: Any) -> None:
        self._draws = draws

    def sample(self, shape: Any) -> Tensor:
        draw = next(self._draws)
        assert draw.shape == shape
        return draw


def test_smooth_grad_cam_plus_plus(exact: Setting, seed: int) -> None:
    """The peer's noisy forward and its gradients, with the paper's weights.

    The peer itself takes the last sample's gradient for D1 where the paper takes the mean (so: one sample), and sums
    A * D3 over the cells where the paper multiplies each D3 with the sum of A.
    """
    explanation = exact.explain(SmoothGradCAMPlusPlus(samples=1, deviation=0.1, seed=seed), layers=[LAYER])
    strength = 0.1 * float(exact.pixels.max() - exact.pixels.min())
    noise = strength * torch.randn(exact.pixels.shape, generator=torch.Generator().manual_seed(seed))
    theirs = peer_maps(PapersSmoothGradCAMpp, exact, explanation, [noise.double()[None]], num_samples=1, std=1.0)
    assert_maps(explanation, theirs)


class PapersSmoothGradCAMpp(peer.SmoothGradCAMpp):
    def _compute_smoothgrad_weights(self, class_idx: Any, eps: float, **options: Any) -> list[Tensor]:
        acts = self.hook_a[0].clone()
        super()._compute_smoothgrad_weights(class_idx, eps, **options)
        grads = self.hook_g[0]  # of the noisy picture
        alpha = grads**2 / (2 * grads**2 + acts.sum(dim=(2, 3), keepdim=True) * grads**3 + 1e-6)
        return [(alpha * grads.clamp(min=0)).sum(dim=(2, 3))]


@pytest.mark.nightly
def test_sscam(exact: Setting, seed: int) -> None:
    """Our noise is drawn mask by mask, the peer's for all masks of a sample at once."""
    explanation = exact.explain(SSCAM(samples=SAMPLES, deviation=0.5, seed=seed), layers=[LAYER])
    generator = torch.Generator().manual_seed(seed)
    draws = [
        torch.stack([0.5 * torch.randn(64, SIZE, generator=generator) for _ in range(64)])[None].double()
        for _ in range(SAMPLES)
    ]
    # The peer stretches masks at the layer's size and enlarges them then; a bilinear mask may miss its extremes.
    theirs = peer_maps(StretchedSSCAM, exact, explanation, draws, num_samples=SAMPLES, std=1.0)
    assert_maps(explanation, theirs)


@pytest.mark.nightly
def test_iscam(exact: Setting) -> None:
    explanation = exact.explain(ISCAM(samples=SAMPLES), layers=[LAYER])
    assert_maps(explanation, peer_maps(StretchedISCAM, exact, explanation, [], num_samples=SAMPLES))


class Stretched:
    """Masks stretched to [0, 1] after they are enlarged, as Score-CAM's paper does it (equation 5)."""

    def _upsample(self, activation: Tensor) -> Tensor:
        large = super()._upsample(activation)  # type: ignore[misc]
        low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
        return (large - low) / (high - low + 1e-8)


class StretchedSSCAM(Stretched, peer.SSCAM):
    pass


class StretchedISCAM(Stretched, peer.ISCAM):
    pass
