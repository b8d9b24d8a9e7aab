"""Smoothing by hand: noisy and mirrored pictures explained one by one, principal components against a peer."""

import pytest
import pytorch_grad_cam as peer
import torch
from support import few
from sweep_settings import LAYER, SIZE, Anchor, Setting, assert_maps, captured

import detcam.runners.smoothing
from detcam import Explainer
from detcam.boxes import box_iou
from detcam.errors import MethodError
from detcam.methods import AnyMethod, Augmented, NoiseTunnel, PrincipalComponent, get_method
from detcam.methods.perturbation import Occlusion
from detcam.methods.smoothing import Version


def test_noise_tunnel_by_hand(exact: Setting, seed: int) -> None:
    """The mean of gradient times activation at the same anchors, from whole forwards of the library's model."""
    explanation = exact.explain(NoiseTunnel(samples=3, deviation=0.1, seed=seed), layers=[LAYER])
    found = explanation.objects
    model, kept = Anchor(exact.model), []
    model.model.get_submodule(LAYER).register_forward_hook(lambda module, args, out: kept.append(out))
    generator = torch.Generator().manual_seed(seed)
    strength = 0.1 * float(exact.pixels.max() - exact.pixels.min())
    expected = torch.zeros(())
    for _ in range(3):
        noise = strength * torch.randn(1, *exact.pixels.shape, generator=generator)[0]
        logits = model((exact.pixels + noise.double())[None].requires_grad_())[0]
        grads = [
            torch.autograd.grad(s, kept[-1], retain_graph=True)[0][0] for s in logits[found.class_ids, found.index]
        ]
        expected = expected + torch.stack([(g * kept[-1][0]).sum(dim=0).detach() for g in grads]) / 3
    assert_maps(explanation, expected)


@pytest.mark.parametrize(
    "method",
    [get_method("odam"), get_method("fused"), get_method("eigencam"), Occlusion(cells=3)],
    ids=lambda method: method.name,
)
def test_no_noise_changes_nothing(method: AnyMethod, exact: Setting) -> None:
    smoothed = exact.explain(NoiseTunnel(method, samples=2, deviation=0.0))
    for ours, one in zip(smoothed.maps, exact.explain(method).maps, strict=True):
        assert one.any()
        torch.testing.assert_close(ours, one, rtol=0, atol=1e-3 * float(one.abs().max()))
    assert smoothed.settings["method"] == f"noisy:{method.name}"


@pytest.mark.parametrize("found", few([1, 5], 5))
def test_forwards_are_those_declared(found: int, setting: Setting) -> None:
    runs: list[int] = []
    setting.model.get_submodule("model.0.conv").register_forward_pre_hook(lambda module, args: runs.append(1))
    for method, count in ((NoiseTunnel(samples=3), 4), (Augmented(), 7), (Augmented(scale=1.0), 3)):
        runs.clear()
        assert len(setting.explain(method, max_det=found, conf=0.0, iou=1.0)) == found
        assert len(runs) == count


def test_mirrored_by_hand(exact: Setting) -> None:
    """Each object's counterpart among all anchors of the mirrored picture, explained there and mirrored back."""
    smoothed = exact.explain(Augmented(scale=1.0), layers=[LAYER])
    plain = exact.explain("odam", layers=[LAYER])
    model, kept = Anchor(exact.model), []
    model.model.get_submodule(LAYER).register_forward_hook(lambda module, args, out: kept.append(out))
    mirrored = exact.pixels.flip(2)
    decoded = exact.raw(mirrored)[0]
    centre, side = decoded[:2].T, decoded[2:4].T
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    expected = []
    for i, one in enumerate(plain.maps):
        x1, y1, x2, y2 = plain.objects.network_boxes[i].tolist()
        class_id = int(plain.class_ids[i])
        overlaps = box_iou(torch.tensor([[SIZE - x2, y1, SIZE - x1, y2]]).double(), boxes)[0]
        anchor = int((overlaps * decoded[4 + class_id]).argmax())
        total = one / one.abs().max()
        if float(overlaps[anchor]) >= 0.5:
            score = model(mirrored[None].clone().requires_grad_())[0, class_id, anchor]
            gradient = torch.autograd.grad(score, kept[-1])[0]
            other = (gradient * kept[-1])[0].sum(dim=0).detach().flip(1).float()
            total = (total + other / other.abs().max()) / 2
        expected.append(total)
    assert_maps(smoothed, torch.stack(expected), 1e-3)


def test_objects_that_are_not_found_again_are_left_out(exact: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detcam.runners.smoothing, "SAME", 1.1)
    plain = torch.stack(exact.explain("odam", layers=[LAYER]).maps)
    largest = plain.abs().amax(dim=(1, 2), keepdim=True)
    assert_maps(exact.explain(Augmented(), layers=[LAYER]), plain / largest)


def test_boxes_follow_their_pixels(seed: int) -> None:
    """A bright rectangle, scaled and mirrored: its box is where it is."""
    pixels = torch.zeros(1, 3, 64, 96)
    pixels[..., 8:24, 16:48] = 1
    box = torch.tensor([[16.0, 8.0, 48.0, 24.0]])
    for version in Augmented(scale=2.0).versions(pixels):
        bright = (version.pixels[0, 0] > 0.5).nonzero()
        (top, left), (bottom, right) = bright.amin(dim=0).tolist(), (bright.amax(dim=0) + 1).tolist()
        expected = torch.tensor([[left, top, right, bottom]]).float()
        torch.testing.assert_close(version.boxes(box), expected, rtol=0, atol=1)
        back = version.back(version.pixels[0, 0], (64, 96))
        assert float((back - pixels[0, 0]).abs().mean()) < 0.05
    assert Version(pixels).boxes(box).equal(box)


@pytest.mark.parametrize("found", few([1, 5], 5))
def test_backwards_of_a_principal_component(found: int, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each object, of a score that is a user's function."""
    backwards: list[int] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **options: (backwards.append(1), grad(*a, **options))[1])
    adapter = Explainer(setting.model, imgsz=SIZE).adapter
    target = lambda outputs, objects: adapter.score(outputs, objects, "class")  # noqa: E731
    assert len(setting.explain("eigen:gradcam", target=target, max_det=found, conf=0.0, iou=1.0)) == found
    assert len(backwards) == found
    assert get_method("eigen:gradcam").passes == "1 F + N B"


KINDS = {"gradcam": peer.GradCAM, "odam": peer.HiResCAM, "layercam": peer.LayerCAM, "xgradcam": peer.XGradCAM}


@pytest.mark.parametrize("name", few(KINDS, "gradcam"))
def test_principal_component_is_pytorch_grad_cams_eigen_smooth(name: str, exact: Setting) -> None:
    explanation = exact.explain(f"eigen:{name}", layers=[LAYER])
    assert explanation.settings["method"] == f"eigen:{name}"
    model = Anchor(exact.model).eval().requires_grad_(True)
    layer = model.model.get_submodule(LAYER)
    found = explanation.objects
    for i, ours in enumerate(explanation.maps):
        targets = [lambda logits, i=i: logits[found.class_ids[i], found.index[i]]]
        cam = KINDS[name](model=model, target_layers=[layer])
        cam(exact.pixels[None].clone(), targets)
        seen = cam.activations_and_grads
        acts, grads = seen.activations[0].numpy(), seen.gradients[0].numpy()
        theirs = torch.from_numpy(cam.get_cam_image(exact.pixels[None], layer, targets, acts, grads, True)[0]).double()
        sign = 1 if float((theirs * ours).sum()) > 0 else -1
        torch.testing.assert_close(ours.double(), sign * theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_terms_add_up_to_the_map(seed: int) -> None:
    acts, grads = torch.rand(2, 3, 4, 5) + 0.1, torch.randn(2, 3, 4, 5)
    for name in ("odam", "gradcam", "gradcam++", "xgradcam", "layercam", "elementwise"):
        method = get_method(name)
        torch.testing.assert_close(method.terms(acts, grads).sum(dim=1), method.maps(acts, grads))


@pytest.mark.parametrize("name", ["scorecam", "eigencam", "fused", "gradient"])
def test_what_adds_up_no_channels_has_no_principal_component(name: str) -> None:
    with pytest.raises(MethodError, match=f"{name!r} is not a sum over channels"):
        PrincipalComponent(get_method(name))
    with pytest.raises(MethodError, match="does not exist"):
        get_method("noisy:nothing")


def test_captured_layers_are_those_of_the_method(setting: Setting) -> None:
    """The picture's own forward and those of its versions cut the graph alike."""
    explanation = setting.explain("noisy:gradcam", layers=[LAYER])
    assert explanation.settings["layers"] == [LAYER]
    assert all(one.shape == captured(setting, LAYER)[0].shape[1:] for one in explanation.maps)
