import itertools
import os
from pathlib import Path

import pytest
import torch
from oracle import (
    ACCEPTED,
    INPUT_DTYPES,
    LAYOUTS,
    NORMALIZATIONS,
    TRACED,
    Case,
    assert_close,
    assert_same_bits,
    expected_maps,
    random_case,
    run,
    run_without_kernels,
)
from oracle import require_device as require
from support import NIGHTLY, diagonal, few
from torch import Tensor

from detcam import ops
from detcam.ops import reference

SHAPES = [(1, 1, 1), (1, 5, 7), (6, 1, 1), (3, 1, 9), (3, 9, 1), (300, 33, 31)]
SIZES = [(1, 1), (2, 3), (37, 53), (129, 255)]


def run_reference(case: Case, normalize: str = "object", relu: bool = True, dtype=torch.float32) -> Tensor:
    return reference.cam_maps(case.acts, case.weights, case.index, None, *case.size, normalize, relu, dtype)


class TestValues:
    """The operator and its reference against the oracle."""

    @pytest.mark.parametrize(("dtype", "layout", "inference"), diagonal(INPUT_DTYPES, LAYOUTS, (False, True)))
    def test_inputs(self, device: str, dtype: torch.dtype, layout: str, inference: bool, seed: int) -> None:
        case = random_case(seed, dtype, layout).to(device)
        out = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.inference_mode(inference):
            for normalize, relu in itertools.product(NORMALIZATIONS, (True, False)):
                expected = expected_maps(case, normalize, relu)
                assert_close(run(case, normalize=normalize, relu=relu, dtype=out), expected)
                assert_close(run_reference(case, normalize, relu, out), expected)

    @pytest.mark.parametrize(("normalize", "dtype"), ACCEPTED)
    def test_outputs(self, device: str, normalize: str, dtype: torch.dtype, seed: int) -> None:
        source = torch.float64 if dtype == torch.float64 else torch.float32
        case = random_case(seed, source).to(device)
        maps = run(case, normalize=normalize, dtype=dtype)
        assert maps.dtype == dtype
        assert maps.is_contiguous()
        assert_close(maps, expected_maps(case, normalize))
        assert_close(run_reference(case, normalize, True, dtype), expected_maps(case, normalize))

    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    @pytest.mark.parametrize("each", [False, True], ids=["one-window", "window-per-object"])
    def test_window(self, device: str, normalize: str, each: bool, seed: int) -> None:
        case = random_case(seed, rows=9, columns=14).to(device)
        count = len(case.weights)
        boxes = [(0.75, 1.5, 12.25, 8.0), (-1.0, 0.0, 14.0, 10.5), (6.0, 0.25, 13.0, 6.0)]
        boxes = list(itertools.islice(itertools.cycle(boxes if each else boxes[:1]), count))
        window = torch.tensor(boxes, device=device) if each else boxes[0]
        assert_close(run(case, normalize=normalize, window=window), expected_maps(case, normalize, window=boxes))

    def test_default_window_is_the_whole_map(self, device: str, seed: int) -> None:
        case = random_case(seed).to(device)
        h, w = case.acts.shape[2:]
        assert torch.equal(run(case), run(case, window=(0, 0, w, h)))

    def test_window_removes_letterbox_padding(self, device: str, seed: int) -> None:
        """A map padded by whole cells and cropped by its window is the map resized alone."""
        case = random_case(seed, rows=8, columns=8).to(device)
        case.size = (64, 64)
        padded = torch.nn.functional.pad(case.acts, (0, 0, 3, 3))
        whole = run(case, normalize="none")
        cropped = ops.cam_maps(padded, case.weights, case.size, case.index, normalize="none", window=(0, 3, 8, 11))
        torch.testing.assert_close(cropped[:, 4:-4], whole[:, 4:-4], atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(("shape", "size"), diagonal(SHAPES, SIZES))
    def test_extreme_shapes(self, device: str, shape: tuple[int, int, int], size: tuple[int, int], seed: int) -> None:
        channels, rows, columns = shape
        case = random_case(seed, channels=channels, rows=rows, columns=columns).to(device)
        case.size = size
        for normalize in ("object", "none", "max"):
            assert_close(run(case, normalize=normalize), expected_maps(case, normalize))
        assert_close(run(case, dtype=torch.uint8), expected_maps(case, "object"))

    def test_many_objects_of_many_images(self, device: str, seed: int) -> None:
        """More objects than a group holds, images without any, and one after another in the index."""
        case = random_case(seed, images=7, objects=83, rows=5, columns=13)
        case.index[case.index == 3] = 0
        case = case.to(device)
        for normalize in NORMALIZATIONS:
            assert_close(run(case, normalize=normalize), expected_maps(case, normalize))

    @pytest.mark.nightly
    def test_more_pixels_than_32_bits_count(self, device: str, seed: int) -> None:
        if not ops.is_compiled(device):
            pytest.skip("the reference counts no pixels itself, and takes ten times the memory")
        if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 6 << 30:
            pytest.skip("less than 6 GB of memory are free")
        case = random_case(seed, images=1, objects=1, rows=3, columns=4).to(device)
        count, side = 33, 8200
        maps = ops.cam_maps(case.acts, case.weights.expand(count, -1), (side, side), dtype=torch.uint8)
        assert maps.numel() > 2**31
        assert torch.equal(maps[0], maps[-1])
        case.size = (side // 100, side // 100)  # its pixels lie half of one beside these
        assert_close(maps[-1:, 50::100, 50::100], expected_maps(case, "object"))

    def test_no_objects(self, device: str, seed: int) -> None:
        case = random_case(seed).to(device)
        for normalize in NORMALIZATIONS:
            maps = ops.cam_maps(case.acts, case.weights[:0], case.size, case.index[:0], normalize=normalize)
            assert maps.shape == (0, *case.size)

    def test_three_dimensional_acts_are_one_image(self, device: str, seed: int) -> None:
        case = random_case(seed, images=1).to(device)
        assert torch.equal(ops.cam_maps(case.acts[0], case.weights, case.size), run(case))

    def test_mixed_dtypes_meet_in_the_wider(self, device: str, seed: int) -> None:
        case = random_case(seed, torch.float16).to(device)
        wide = Case(case.acts.float(), case.weights.float(), case.size, case.index)
        assert torch.equal(ops.cam_maps(case.acts, wide.weights, case.size, case.index), run(wide))

    def test_autocast_does_not_lower_the_precision(self, device: str, seed: int) -> None:
        case = random_case(seed).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            assert_close(run(case), expected_maps(case, "object"))
            assert_close(run_reference(case), expected_maps(case, "object"))


class TestDegenerateMaps:
    """Constant, negative and non-finite maps: zeros where there is nothing to show, and never NaN."""

    @pytest.mark.parametrize("normalize", [n for n in NORMALIZATIONS if n != "none"])
    @pytest.mark.parametrize("value", [0.0, -3.0])
    def test_nothing_positive_is_zero(self, device: str, normalize: str, value: float) -> None:
        acts, weights = torch.full((4, 5, 6), value, device=device), torch.ones(2, 4, device=device)
        for dtype in (torch.float32, torch.uint8):
            assert not ops.cam_maps(acts, weights, (9, 11), normalize=normalize, dtype=dtype).any()

    @pytest.mark.parametrize(("normalize", "value"), [("object", 0), ("image", 0), ("object-after", 0), ("max", 1)])
    def test_constant(self, device: str, normalize: str, value: float) -> None:
        acts, weights = torch.full((4, 5, 6), 0.7, device=device), torch.ones(2, 4, device=device)
        assert (ops.cam_maps(acts, weights, (9, 11), normalize=normalize) == value).all()
        case = Case(acts[None], weights, (9, 11), torch.zeros(2, dtype=torch.int64, device=device))
        torch.testing.assert_close(run_reference(case, normalize), torch.full((2, 9, 11), float(value), device=device))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_a_cell_that_is_not_finite_counts_as_zero(self, device: str, normalize: str, bad: float, seed: int) -> None:
        case = random_case(seed, rows=7, columns=7).to(device)
        case.acts[:, 1, 2, 3] = bad
        maps = run(case, normalize=normalize, relu=False)
        assert maps.isfinite().all()
        assert_close(maps, expected_maps(case, normalize, relu=False))
        assert_close(run_reference(case, normalize, False), expected_maps(case, normalize, relu=False))

    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_not_finite_everywhere_is_zero(self, device: str, normalize: str) -> None:
        acts, weights = torch.full((2, 3, 3), float("nan"), device=device), torch.ones(2, 2, device=device)
        assert not ops.cam_maps(acts, weights, (8, 8), normalize=normalize).any()

    @pytest.mark.parametrize(("normalize", "dtype"), ACCEPTED)
    def test_no_magnitude_overflows(self, device: str, normalize: str, dtype: torch.dtype) -> None:
        for scale, relu in itertools.product((1e-45, 1e-30, 3e38), (True, False)):
            acts = (torch.linspace(-1, 1, 30) * scale).view(1, 5, 6).to(device)
            weights = torch.ones(1, 1, device=device)
            assert ops.cam_maps(acts, weights, (9, 9), normalize=normalize, relu=relu, dtype=dtype).isfinite().all()

    @pytest.mark.parametrize("normalize", ["object", "image", "object-after", "max"])
    def test_range_is_the_unit_interval(self, device: str, normalize: str, seed: int) -> None:
        case = random_case(seed).to(device)
        maps = run(case, normalize=normalize)
        assert maps.min() >= 0
        assert maps.max() <= 1

    def test_image_ranges_keep_objects_comparable(self, device: str) -> None:
        acts = torch.rand(3, 6, 6, device=device)
        strong, weak = ops.cam_maps(
            acts, torch.tensor([[1.0, 1, 1], [0.1, 0.1, 0.1]], device=device), (6, 6), normalize="image"
        )
        assert strong.max() == 1
        assert weak.max() < 0.5


class TestContract:
    """Errors, gradients, determinism, and life under torch's tools."""

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"acts": "text"}, TypeError, "acts: expected a tensor, got str"),
            (
                {"acts": torch.zeros(2, 3, 4, 5, dtype=torch.int32)},
                TypeError,
                "acts: expected dtype .* got torch.int32",
            ),
            ({"acts": torch.zeros(4, 5)}, ValueError, r"acts: expected a non-empty .* got \[4, 5\]"),
            (
                {"acts": torch.zeros(2, 3, 0, 5)},
                ValueError,
                r"acts: expected a non-empty .* got \[2, 3, 0, 5\]",
            ),
            ({"weights": torch.zeros(2, 4)}, ValueError, r"weights: expected \[N, 3\] .* got \[2, 4\]"),
            (
                {"weights": torch.zeros(2, 3, device="meta")},
                ValueError,
                "weights: expected device cpu .* got meta",
            ),
            ({"size": (0, 4)}, ValueError, r"size: expected .* got \(0, 4\)"),
            ({"index": None}, ValueError, "index: expected .* 2 images; got None"),
            ({"index": torch.zeros(2)}, TypeError, "index: expected an int64 tensor, got torch.float32"),
            ({"index": torch.zeros(5, dtype=torch.int64)}, ValueError, r"index: expected \[2\] .* got \[5\]"),
            ({"index": torch.tensor([0, 2])}, IndexError, r"index: expected values in \[0, 2\), got 0 to 2"),
            (
                {"index": torch.tensor([-1, 0])},
                IndexError,
                r"index: expected values in \[0, 2\), got -1 to 0",
            ),
            ({"normalize": "odam"}, ValueError, "normalize: expected one of object, .* got 'odam'"),
            ({"dtype": torch.int32}, TypeError, "dtype: expected one of float32, .* got torch.int32"),
            ({"dtype": torch.uint8, "normalize": "none"}, ValueError, 'uint8 .* got normalize="none"'),
            (
                {"window": (0, 0, 0, 4)},
                ValueError,
                r"window: expected finite left < right .* got \(0, 0, 0, 4\)",
            ),
            (
                {"window": torch.zeros(3, 4)},
                ValueError,
                r"window: expected \[4\] or \[2, 4\] .* got \[3, 4\]",
            ),
            ({"window": torch.zeros(4, dtype=torch.int64)}, TypeError, "window: expected a floating-point"),
        ],
    )
    def test_errors_say_expected_and_actual(self, change: dict, error: type, message: str) -> None:
        arguments = {
            "acts": torch.zeros(2, 3, 4, 5),
            "weights": torch.zeros(2, 3),
            "size": (8, 8),
            "index": torch.tensor([0, 1]),
        }
        with pytest.raises(error, match=message):
            ops.cam_maps(**(arguments | change))

    @pytest.mark.parametrize("bad", [2, -1])
    def test_a_direct_call_stays_inside_its_memory(self, bad: int) -> None:
        acts, weights, index = torch.zeros(2, 3, 4, 5), torch.zeros(1, 3), torch.tensor([bad])
        for call in (torch.ops.detcam.cam_maps.default, reference.cam_maps):
            with pytest.raises((RuntimeError, IndexError), match="index"):
                call(acts, weights, index, None, 8, 8, "object", True, torch.float32)

    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_gradients(self, device: str, normalize: str, seed: int) -> None:
        case = random_case(seed, torch.float64, images=2, channels=3, rows=3, columns=4, objects=2)
        case = case.to(device)

        def call(acts: Tensor, weights: Tensor) -> Tensor:
            return ops.cam_maps(
                acts,
                weights,
                (5, 6),
                case.index,
                normalize=normalize,
                dtype=torch.float64,
                window=(0, 0.5, 3.5, 3),
            )

        inputs = (case.acts.requires_grad_(), case.weights.requires_grad_())
        assert torch.autograd.gradcheck(call, inputs)
        if NIGHTLY or normalize == "object":
            assert torch.autograd.gradgradcheck(call, inputs)

    def test_gradient_of_one_input_only(self, device: str, seed: int) -> None:
        case = random_case(seed).to(device)
        case.weights.requires_grad_()
        run(case).sum().backward()
        assert case.weights.grad is not None
        assert case.acts.grad is None

    def test_uint8_and_no_grad_carry_no_graph(self, seed: int) -> None:
        case = random_case(seed)
        case.weights.requires_grad_()
        assert not run(case, dtype=torch.uint8).requires_grad
        with torch.no_grad():
            assert not run(case).requires_grad

    @pytest.mark.parametrize("normalize", TRACED)
    def test_opcheck(self, device: str, normalize: str, seed: int) -> None:
        case = random_case(seed).to(device)
        window = torch.tensor([[0.0, 0.0, 2.0, 2.0]], device=device).expand(len(case.weights), 4)
        for bounds, trained in ((None, True), (window, False)):
            arguments = (case.acts, case.weights.requires_grad_(trained), case.index, bounds, *case.size)
            torch.library.opcheck(torch.ops.detcam.cam_maps.default, (*arguments, normalize, True, torch.float32))

    @pytest.mark.parametrize("dynamic", few([False, True], False))
    def test_compile(self, device: str, dynamic: bool, seed: int) -> None:
        """Traced whole, forward and backward; the trace can break, so no code is generated from it."""
        torch._dynamo.reset()
        case = random_case(seed).to(device)

        def loss(acts: Tensor, weights: Tensor, index: Tensor) -> Tensor:
            maps = ops.cam_maps(acts.sin(), weights, (12, 17), index, normalize="image", window=(0, 0, 2, 2))
            return maps.square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        grads = []
        for call in (loss, compiled):
            acts, weights = case.acts.clone().requires_grad_(), case.weights.clone().requires_grad_()
            call(acts, weights, case.index).backward()
            grads.append((acts.grad, weights.grad))
        torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)

    def test_same_bits_every_time(self, device: str, seed: int) -> None:
        case = random_case(seed, images=3, objects=29, channels=130, rows=19, columns=21).to(device)
        for normalize in NORMALIZATIONS:
            assert_same_bits(lambda normalize=normalize: run(case, normalize=normalize))

    def test_cuda_graph_replays_without_a_sync(self, seed: int) -> None:
        require("cuda")
        case = random_case(seed).to("cuda")
        eager = run(case, window=(0.0, 0.0, 2.0, 2.0))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(case, window=(0.0, 0.0, 2.0, 2.0))
        graph.replay()
        assert torch.equal(captured, eager)


@pytest.mark.nightly
def test_fallback_when_disabled(tmp_path: Path, seed: int) -> None:
    case = random_case(seed)
    assert_close(run_without_kernels("cam_maps", vars(case), tmp_path), expected_maps(case, "object"))
