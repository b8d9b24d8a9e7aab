import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import INPUT_DTYPES, assert_same_bits, run_without_kernels
from oracle import require_device as require
from support import diagonal
from torch import Tensor

from detcam import ops
from detcam.methods import gradient
from detcam.ops import reference

MODES = tuple(ops.ELEMENTWISE_MODES)
LAYOUTS = ("contiguous", "channels-last", "strided", "expanded")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}  # of a sum's terms


@dataclass
class Case:
    """Arguments of one call."""

    acts: Tensor  # [B, C, h, w]
    grads: Tensor  # [N, C, h, w]
    index: Tensor | None  # [N]

    def to(self, device: str) -> "Case":
        return Case(*(None if value is None else value.to(device) for value in vars(self).values()))

    def run(self, mode: str) -> Tensor:
        return ops.elementwise_maps(self.acts, self.grads, mode, self.index)

    def run_reference(self, mode: str) -> Tensor:
        return reference.elementwise_maps(self.acts, self.grads, self.index, mode)


def random_case(seed: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous", **fixed: int) -> Case:
    """Random shapes and values; activations are positive, as gradcam++ has poles where their sum is not."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    bounds = {"images": (1, 3), "channels": (1, 40), "rows": (1, 23), "columns": (1, 23), "objects": (1, 7)}
    images, channels, rows, columns, objects = (fixed.get(k, draw.randint(*v)) for k, v in bounds.items())
    acts = torch.rand(images, channels, rows, columns) + 0.1
    grads = torch.randn(objects, channels, rows, columns)
    index = torch.randint(images, (objects,))
    return Case(lay_out(acts.to(dtype), layout), lay_out(grads.to(dtype), layout), index)


def lay_out(values: Tensor, layout: str) -> Tensor:
    if layout == "channels-last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = values.new_zeros(*values.shape[:2], 2 * values.shape[2] + 1, 3 * values.shape[3] + 2)
        wide[..., 1::2, 2::3] = values
        return wide[..., 1::2, 2::3]
    if layout == "expanded":
        return values[:, :, :1].expand_as(values)
    return values


def expected(case: Case, mode: str) -> np.ndarray:
    """The definitions in float64, one object and one channel at a time."""
    acts, grads = case.acts.detach().cpu().double().numpy(), case.grads.detach().cpu().double().numpy()
    objects, channels, rows, columns = grads.shape
    owners = range(objects) if case.index is None else case.index.tolist()
    maps, weights = np.zeros((objects, rows, columns)), np.zeros((objects, channels))
    for n, image in enumerate(owners):
        for c in range(channels):
            a, g = acts[image if len(acts) > 1 else 0, c], grads[n, c]
            if mode == "gradient-times-activation":
                maps[n] += g * a
            elif mode == "layercam":
                maps[n] += np.maximum(g, 0) * a
            elif mode == "gradcam":
                weights[n, c] = g.mean()
            elif mode == "xgradcam":
                weights[n, c] = (a * g).sum() / (a.sum() + 1e-7)
            else:
                alpha = g**2 / (2 * g**2 + a.sum() * g**3 + 1e-6)
                weights[n, c] = (alpha * np.maximum(g, 0)).sum()
    return maps if mode in MODES[:2] else weights


def assert_close(result: Tensor, case: Case, mode: str) -> None:
    """To rounding, which grows with the size of what is summed."""
    truth = expected(case, mode)
    accumulator = torch.float64 if case.grads.dtype == torch.float64 else torch.float32
    assert result.dtype == accumulator
    assert result.is_contiguous()
    tolerance = TOLERANCE[case.grads.dtype]
    atol = tolerance * (1 + np.abs(truth).max(initial=0))
    np.testing.assert_allclose(result.detach().cpu().double().numpy(), truth, atol=atol, rtol=tolerance)


@pytest.mark.parametrize("mode", MODES)
class TestValues:
    """The operator and its reference against the oracle."""

    @pytest.mark.parametrize(("dtype", "layout", "inference"), diagonal(INPUT_DTYPES, LAYOUTS, (False, True)))
    def test_inputs(self, device: str, mode: str, dtype: torch.dtype, layout: str, inference: bool, seed: int) -> None:
        case = random_case(seed, dtype, layout).to(device)
        with torch.inference_mode(inference):
            if mode == "gradcam++":  # its quotient has a pole below zero, where rounding decides everything
                case.grads = case.grads.abs()
            assert_close(case.run(mode), case, mode)
            assert_close(case.run_reference(mode), case, mode)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (300, 1, 1), (3, 1, 129), (2, 129, 1), (70, 33, 32)])
    def test_extreme_shapes(self, device: str, mode: str, shape: tuple[int, int, int], seed: int) -> None:
        case = random_case(seed, **dict(zip(("channels", "rows", "columns"), shape, strict=True))).to(device)
        case.grads = case.grads.abs()
        assert_close(case.run(mode), case, mode)

    def test_more_cells_than_a_tile(self, device: str, mode: str, seed: int) -> None:
        case = random_case(seed, channels=3, rows=61, columns=67).to(device)
        case.grads = case.grads.abs()
        assert_close(case.run(mode), case, mode)

    def test_acts_of_each_object_or_shared(self, device: str, mode: str, seed: int) -> None:
        case = random_case(seed, images=1, objects=4).to(device)
        case.grads, case.index = case.grads.abs(), None
        shared = case.run(mode)
        assert_close(shared, case, mode)
        own = Case(case.acts.expand_as(case.grads), case.grads, None)
        torch.testing.assert_close(own.run(mode), shared, atol=1e-6, rtol=1e-6)

    def test_no_objects(self, device: str, mode: str, seed: int) -> None:
        case = random_case(seed, images=2).to(device)
        result = ops.elementwise_maps(case.acts, case.grads[:0], mode, case.index[:0])
        assert result.shape == expected(Case(case.acts, case.grads[:0], case.index[:0]), mode).shape

    def test_silent_channels_stay_finite(self, device: str, mode: str) -> None:
        zeros = torch.zeros(2, 3, 4, 5, device=device)
        assert not ops.elementwise_maps(zeros, zeros, mode).any()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_stays_in_its_place(self, device: str, mode: str, bad: float, seed: int) -> None:
        """The formula decides, as in the reference; other cells and channels are untouched."""
        case = random_case(seed, channels=4, rows=3, columns=4).to(device)
        case.grads = case.grads.abs()
        case.grads[:, 1, 2, 3] = bad
        result, truth = case.run(mode), case.run_reference(mode)
        torch.testing.assert_close(result, truth, atol=1e-4, rtol=1e-4, equal_nan=True)
        touched = result[:, 2, 3] if mode in MODES[:2] else result[:, 1]
        assert result.isfinite().sum() >= result.numel() - touched.numel()

    def test_agrees_with_the_method(self, device: str, mode: str, seed: int) -> None:
        classes = {"gradient-times-activation": gradient.HiResCAM, "layercam": gradient.LayerCAM}
        classes |= {"gradcam": gradient.GradCAM, "gradcam++": gradient.GradCAMPlusPlus, "xgradcam": gradient.XGradCAM}
        case = random_case(seed, rows=4, columns=5).to(device)
        acts, grads = case.acts[case.index], case.grads.abs()
        method = classes[mode]()
        wanted = method.maps(acts, grads) if mode in MODES[:2] else method.weights(acts, grads)
        torch.testing.assert_close(ops.elementwise_maps(acts, grads, mode), wanted, atol=1e-4, rtol=1e-4)


class TestContract:
    """Errors, gradients, determinism, and life under torch's tools."""

    def test_alias(self, seed: int) -> None:
        case = random_case(seed)
        assert torch.equal(case.run("hirescam"), case.run("gradient-times-activation"))

    def test_layercam_keeps_no_negative_gradient(self, device: str, seed: int) -> None:
        case = random_case(seed).to(device)
        case.grads = -case.grads.abs()
        assert not case.run("layercam").any()

    def test_mixed_dtypes_meet_in_the_wider(self, device: str, seed: int) -> None:
        case = random_case(seed, torch.float16).to(device)
        wide = Case(case.acts.float(), case.grads.float(), case.index)
        assert torch.equal(Case(case.acts, wide.grads, case.index).run("hirescam"), wide.run("hirescam"))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"acts": "text"}, TypeError, "acts: expected a tensor, got str"),
            ({"acts": torch.zeros(2, 3, 4, 5, dtype=torch.int32)}, TypeError, "acts: expected dtype .* torch.int32"),
            ({"acts": torch.zeros(3, 4, 5)}, ValueError, r"acts: expected \[B, C, h, w\] .* got \[3, 4, 5\]"),
            ({"acts": torch.zeros(2, 3, 0, 5)}, ValueError, r"acts: expected .* got \[2, 3, 0, 5\]"),
            ({"grads": torch.zeros(2, 3, 4, 6)}, ValueError, r"grads: expected \[N, 3, 4, 5\], got \[2, 3, 4, 6\]"),
            ({"grads": torch.zeros(2, 3, 4, 5, device="meta")}, ValueError, "grads: expected device cpu .* got meta"),
            ({"mode": "scorecam"}, ValueError, "mode: expected one of gradient-times-.* got 'scorecam'"),
            ({"grads": torch.zeros(3, 3, 4, 5)}, ValueError, "index: expected .* 2 images; got None"),
            ({"index": torch.zeros(2)}, TypeError, "index: expected an int64 tensor, got torch.float32"),
            ({"index": torch.zeros(3, dtype=torch.int64)}, ValueError, r"index: expected \[2\] .* got \[3\]"),
            ({"index": torch.tensor([0, 2])}, IndexError, r"index: expected values in \[0, 2\), got 0 to 2"),
        ],
    )
    def test_errors_say_expected_and_actual(self, change: dict, error: type, message: str) -> None:
        arguments = {"acts": torch.zeros(2, 3, 4, 5), "grads": torch.zeros(2, 3, 4, 5), "mode": "hirescam"}
        with pytest.raises(error, match=message):
            ops.elementwise_maps(**(arguments | change))

    @pytest.mark.parametrize("bad", [2, -1])
    def test_a_direct_call_stays_inside_its_memory(self, bad: int) -> None:
        acts, grads, index = torch.zeros(2, 3, 4, 5), torch.zeros(1, 3, 4, 5), torch.tensor([bad])
        for call in (torch.ops.detcam.elementwise_maps.default, reference.elementwise_maps):
            with pytest.raises((RuntimeError, IndexError), match="index"):
                call(acts, grads, index, "xgradcam")

    @pytest.mark.parametrize("mode", MODES)
    def test_gradients(self, device: str, mode: str, seed: int) -> None:
        case = random_case(seed, torch.float64, images=2, channels=3, rows=2, columns=3, objects=2).to(device)
        grads = (case.grads.abs() + 0.1).requires_grad_()  # away from the kink at zero
        acts = case.acts.requires_grad_(mode != "gradcam")

        def call(acts: Tensor, grads: Tensor) -> Tensor:
            return ops.elementwise_maps(acts, grads, mode, case.index)

        assert torch.autograd.gradcheck(call, (acts, grads))
        if mode != "gradcam":  # it is linear in its gradients alone
            assert torch.autograd.gradgradcheck(call, (acts, grads))

    @pytest.mark.parametrize("mode", MODES)
    def test_opcheck(self, device: str, mode: str, seed: int) -> None:
        case = random_case(seed).to(device)
        for index, trained in ((case.index, True), (case.index, False)):
            arguments = (case.acts, case.grads.abs().requires_grad_(trained), index, mode)
            torch.library.opcheck(torch.ops.detcam.elementwise_maps.default, arguments)

    @pytest.mark.parametrize(("mode", "dynamic"), diagonal(["layercam", "xgradcam"], [False, True]))
    def test_compile(self, device: str, mode: str, dynamic: bool, seed: int) -> None:
        """Traced whole, forward and backward; the trace can break, so no code is generated from it."""
        torch._dynamo.reset()
        case = random_case(seed, channels=3, rows=4, columns=5).to(device)

        def loss(acts: Tensor, grads: Tensor, index: Tensor) -> Tensor:
            return ops.elementwise_maps(acts.sin(), grads, mode, index).square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        found = []
        for call in (loss, compiled):
            acts, grads = case.acts.clone().requires_grad_(), case.grads.clone().requires_grad_()
            call(acts, grads, case.index).backward()
            found.append((acts.grad, grads.grad))
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("mode", MODES)
    def test_same_bits_every_time(self, device: str, mode: str, seed: int) -> None:
        case = random_case(seed, objects=9, channels=130, rows=19, columns=21).to(device)
        assert_same_bits(lambda: case.run(mode))

    def test_cuda_graph_replays_without_a_sync(self, seed: int) -> None:
        require("cuda")
        case = random_case(seed).to("cuda")
        for mode in MODES:
            eager = case.run(mode)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = case.run(mode)
            graph.replay()
            torch.testing.assert_close(captured, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.nightly  # that of cam_maps says the same by default
def test_fallback_when_disabled(tmp_path: Path, seed: int) -> None:
    case = random_case(seed)
    assert_close(run_without_kernels("elementwise_maps", vars(case) | {"mode": "layercam"}, tmp_path), case, "layercam")
