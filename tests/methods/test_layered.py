"""Smooth Grad-CAM++, Guided Grad-CAM and FullGrad against loops, one another and a peer."""

import pytorch_grad_cam as peer
import torch
from sweep_settings import LAYER, Setting, assert_maps
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.engine.sweeps import Probe
from detcam.methods.layered import FullGrad, SmoothGradCAMPlusPlus


def test_smooth_grad_cam_plus_plus_without_noise_is_grad_cam_plus_plus(exact: Setting) -> None:
    smooth = exact.explain(SmoothGradCAMPlusPlus(samples=2, deviation=0.0), layers=[LAYER])
    assert_maps(smooth, torch.stack(exact.explain("gradcam++", layers=[LAYER]).maps))


def test_guided_grad_cam_is_the_product(exact: Setting) -> None:
    coarse, fine = exact.explain("gradcam", layers=[LAYER]), exact.explain("guidedbackprop")
    expected = [
        interpolate(a.clamp(min=0)[None, None], b.shape, mode="bilinear")[0, 0] * b
        for a, b in zip(coarse.maps, fine.maps, strict=True)
    ]
    explanation = exact.explain("guidedgradcam", layers=[LAYER])
    for ours, truth in zip(explanation.maps, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-4 * float(truth.max() or 1))
    assert sum(bool(one.any()) for one in explanation.maps) >= 2


class Small(nn.Module):
    """Convolutions with and without biases, batch norms, several sizes of maps: [B, 3, H, W] -> logits [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.middle = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU())
        self.top = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(5, 4, 3, padding=1))
        norm = self.middle[1]
        nn.init.normal_(norm.weight, 1.0, 0.2)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.middle(self.stem(x))).mean(dim=(2, 3))


def probe_of(model: nn.Module, picture: Tensor) -> Probe:
    return Probe(
        module=model.requires_grad_(False),
        forward=model,
        score=lambda outputs, count: outputs.reshape(count, -1),
        image=picture,
        objects=None,  # type: ignore[arg-type]
    )


def test_fullgrad_equals_pytorch_grad_cam(seed: int) -> None:
    model = Small().eval()
    picture = torch.randn(3, 24, 32)
    ours = FullGrad().sweep(probe_of(model, picture), "")
    assert ours.shape == (4, 24, 32)
    for i, one in enumerate(ours):
        cam = peer.FullGrad(model.requires_grad_(True), [])
        theirs = torch.from_numpy(cam(picture[None].clone(), [lambda logits, i=i: logits[i]])[0])
        stretched = (one - one.min()) / (one.max() - one.min()).clamp(min=1e-12)  # blank where no unit is active
        torch.testing.assert_close(stretched, theirs, rtol=0, atol=1e-4)


def test_input_and_biases_account_for_the_score(seed: int) -> None:
    """Equation 3 of the paper, which makes FullGrad what it is: on a network of ReLUs nothing is missing."""
    model, picture = Small().eval().double(), torch.randn(3, 24, 32, dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = []
    from detcam.methods.layered import _bias

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and module.bias is not None:
            module.register_forward_hook(lambda m, a, out: seen.append((_bias(m).double(), out)))
    leaf = picture[None].requires_grad_()
    score = model(leaf)[0, 2]
    gradients = torch.autograd.grad(score, [leaf, *(out for _, out in seen)])
    total = (leaf * gradients[0]).sum()
    for (bias, _), gradient in zip(seen, gradients[1:], strict=True):
        total = total + (bias[:, None, None] * gradient[0]).sum()
    torch.testing.assert_close(total, score, rtol=1e-5, atol=1e-6)
