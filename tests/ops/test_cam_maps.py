import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from oracle import (
    INPUT_DTYPES,
    LAYOUTS,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_bits,
    expected_maps,
    fresh_seed,
    random_case,
    run_without_kernels,
)
from oracle import require_device as require
from torch import Tensor

from detcam import ops
from detcam.ops import reference

NORMALIZATIONS = tuple(ops.NORMALIZATIONS)


def run(case: Case, **options: object) -> Tensor:
    return ops.cam_maps(case.acts, case.weights, case.size, case.index, **options)


def run_reference(case: Case, normalize: str = "object", relu: bool = True, dtype=torch.float32) -> Tensor:
    return reference.cam_maps(case.acts, case.weights, case.index, None, *case.size, normalize, relu, dtype)


class TestValues:
    """The operator and its reference against the oracle."""

    @pytest.mark.parametrize("inference", [False, True])
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=str)
    def test_inputs(self, device: str, dtype: torch.dtype, layout: str, inference: bool) -> None:
        case = random_case(fresh_seed(), dtype, layout).to(device)
        out = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.inference_mode(inference):
            for normalize, relu in itertools.product(NORMALIZATIONS, (True, False)):
                expected = expected_maps(case, normalize, relu)
                assert_close(run(case, normalize=normalize, relu=relu, dtype=out), expected)
                assert_close(run_reference(case, normalize, relu, out), expected)

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_outputs(self, device: str, normalize: str, dtype: torch.dtype) -> None:
        if dtype == torch.uint8 and normalize == "none":
            pytest.skip("uint8 holds normalised maps only; the error has its own test")
        source = torch.float64 if dtype == torch.float64 else torch.float32
        case = random_case(fresh_seed(), source).to(device)
        maps = run(case, normalize=normalize, dtype=dtype)
        assert maps.dtype == dtype
        assert maps.is_contiguous()
        assert_close(maps, expected_maps(case, normalize))
        assert_close(run_reference(case, normalize, True, dtype), expected_maps(case, normalize))

    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    @pytest.mark.parametrize("each", [False, True], ids=["one-window", "window-per-object"])
    def test_window(self, device: str, normalize: str, each: bool) -> None:
        case = random_case(fresh_seed(), rows=9, columns=14).to(device)
        count = len(case.weights)
        boxes = [(0.75, 1.5, 12.25, 8.0), (-1.0, 0.0, 14.0, 10.5), (6.0, 0.25, 13.0, 6.0)]
        boxes = list(itertools.islice(itertools.cycle(boxes if each else boxes[:1]), count))
        window = torch.tensor(boxes, device=device) if each else boxes[0]
        assert_close(run(case, normalize=normalize, window=window), expected_maps(case, normalize, window=boxes))

    def test_default_window_is_the_whole_map(self, device: str) -> None:
        case = random_case(fresh_seed()).to(device)
        h, w = case.acts.shape[2:]
        assert torch.equal(run(case), run(case, window=(0, 0, w, h)))

    def test_window_removes_letterbox_padding(self, device: str) -> None:
        """A map padded by whole cells and cropped by its window is the map resized alone."""
        case = random_case(fresh_seed(), rows=8, columns=8).to(device)
        case.size = (64, 64)
        padded = torch.nn.functional.pad(case.acts, (0, 0, 3, 3))
        whole = run(case, normalize="none")
        cropped = ops.cam_maps(padded, case.weights, case.size, case.index, normalize="none", window=(0, 3, 8, 11))
        torch.testing.assert_close(cropped[:, 4:-4], whole[:, 4:-4], atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (6, 1, 1), (3, 1, 9), (3, 9, 1), (300, 33, 31)])
    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (37, 53), (129, 255)], ids=str)
    def test_extreme_shapes(self, device: str, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
        channels, rows, columns = shape
        case = random_case(fresh_seed(), channels=channels, rows=rows, columns=columns).to(device)
        case.size = size
        for normalize in ("object", "none", "max"):
            assert_close(run(case, normalize=normalize), expected_maps(case, normalize))
        assert_close(run(case, dtype=torch.uint8), expected_maps(case, "object"))

    def test_many_objects_of_many_images(self, device: str) -> None:
        """More objects than a group holds, images without any, and one after another in the index."""
        case = random_case(fresh_seed(), images=7, objects=83, rows=5, columns=13)
        case.index[case.index == 3] = 0
        case = case.to(device)
        for normalize in NORMALIZATIONS:
            assert_close(run(case, normalize=normalize), expected_maps(case, normalize))

    def test_more_pixels_than_32_bits_count(self, device: str) -> None:
        if not ops.is_compiled(device):
            pytest.skip("the reference counts no pixels itself, and takes ten times the memory")
        if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 6 << 30:
            pytest.skip("less than 6 GB of memory are free")
        case = random_case(fresh_seed(), images=1, objects=1, rows=3, columns=4).to(device)
        count, side = 33, 8200
        maps = ops.cam_maps(case.acts, case.weights.expand(count, -1), (side, side), dtype=torch.uint8)
        assert maps.numel() > 2**31
        assert torch.equal(maps[0], maps[-1])
        case.size = (side // 100, side // 100)  # its pixels lie half of one beside these
        assert_close(maps[-1:, 50::100, 50::100], expected_maps(case, "object"))

    def test_no_objects(self, device: str) -> None:
        case = random_case(fresh_seed()).to(device)
        for normalize in NORMALIZATIONS:
            maps = ops.cam_maps(case.acts, case.weights[:0], case.size, case.index[:0], normalize=normalize)
            assert maps.shape == (0, *case.size)

    def test_three_dimensional_acts_are_one_image(self, device: str) -> None:
        case = random_case(fresh_seed(), images=1).to(device)
        assert torch.equal(ops.cam_maps(case.acts[0], case.weights, case.size), run(case))

    def test_mixed_dtypes_meet_in_the_wider(self, device: str) -> None:
        case = random_case(fresh_seed(), torch.float16).to(device)
        wide = Case(case.acts.float(), case.weights.float(), case.size, case.index)
        assert torch.equal(ops.cam_maps(case.acts, wide.weights, case.size, case.index), run(wide))

    def test_autocast_does_not_lower_the_precision(self, device: str) -> None:
        case = random_case(fresh_seed()).to(device)
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
    def test_a_cell_that_is_not_finite_counts_as_zero(self, device: str, normalize: str, bad: float) -> None:
        case = random_case(fresh_seed(), rows=7, columns=7).to(device)
        case.acts[:, 1, 2, 3] = bad
        maps = run(case, normalize=normalize, relu=False)
        assert maps.isfinite().all()
        assert_close(maps, expected_maps(case, normalize, relu=False))
        assert_close(run_reference(case, normalize, False), expected_maps(case, normalize, relu=False))

    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_not_finite_everywhere_is_zero(self, device: str, normalize: str) -> None:
        acts, weights = torch.full((2, 3, 3), float("nan"), device=device), torch.ones(2, 2, device=device)
        assert not ops.cam_maps(acts, weights, (8, 8), normalize=normalize).any()

    @pytest.mark.parametrize("scale", [1e-45, 1e-30, 3e38])
    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_no_magnitude_overflows(self, device: str, normalize: str, scale: float, dtype: torch.dtype) -> None:
        if dtype == torch.uint8 and normalize == "none":
            pytest.skip("uint8 holds normalised maps only; the error has its own test")
        acts = (torch.linspace(-1, 1, 30) * scale).view(1, 5, 6).to(device)
        for relu in (True, False):
            maps = ops.cam_maps(
                acts, torch.ones(1, 1, device=device), (9, 9), normalize=normalize, relu=relu, dtype=dtype
            )
            assert maps.isfinite().all()

    @pytest.mark.parametrize("normalize", ["object", "image", "object-after", "max"])
    def test_range_is_the_unit_interval(self, device: str, normalize: str) -> None:
        case = random_case(fresh_seed()).to(device)
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


class TestOut:
    """Maps written into memory that is there already."""

    @pytest.mark.parametrize("inference", [False, True])
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_same_bits_as_without(self, device: str, normalize: str, dtype: torch.dtype, inference: bool) -> None:
        if dtype == torch.uint8 and normalize == "none":
            pytest.skip("uint8 holds normalised maps only; the error has its own test")
        case = random_case(fresh_seed(), images=2).to(device)
        window = (0.25, 0.0, 2.0, 1.75)
        with torch.inference_mode(inference):
            expected = run(case, normalize=normalize, dtype=dtype, window=window)
            out = torch.full_like(expected, 77)
            assert run(case, normalize=normalize, dtype=dtype, window=window, out=out) is out
            assert torch.equal(out, expected)

    def test_only_out_is_written(self, device: str) -> None:
        """A slice of a larger stack, beginning where no vector is aligned."""
        case = random_case(fresh_seed()).to(device)
        count, pixels = len(case.weights), math.prod(case.size)
        stack = torch.full((count * pixels + 6,), -5.0, device=device)
        run(case, out=stack[3:-3].view(count, *case.size))
        assert torch.equal(stack[3:-3].view(count, *case.size), run(case))
        assert (stack[:3] == -5).all()
        assert (stack[-3:] == -5).all()

    def test_no_objects(self, device: str) -> None:
        case = random_case(fresh_seed()).to(device)
        out = torch.empty(0, *case.size, device=device)
        assert ops.cam_maps(case.acts, case.weights[:0], case.size, case.index[:0], out=out) is out

    def test_autograd_notices(self, device: str) -> None:
        case = random_case(fresh_seed()).to(device)
        out = torch.zeros(len(case.weights), *case.size, device=device)
        held = torch.ones_like(out).requires_grad_() * out
        run(case, out=out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            held.sum().backward()

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            ("text", TypeError, "out: expected a tensor, got str"),
            (torch.empty(2, 8, 9), ValueError, r"out: expected contiguous \[2, 8, 8\] on cpu, got \[2, 8, 9\]"),
            (torch.empty(3, 8, 8), ValueError, r"out: expected contiguous \[2, 8, 8\] on cpu, got \[3, 8, 8\]"),
            (torch.empty(2, 8, 8).mT, ValueError, r"out: expected contiguous .* strides \(64, 1, 8\)"),
            (torch.empty(2, 8, 8, dtype=torch.float16), TypeError, "out: expected dtype float32, got torch.float16"),
            (torch.empty(2, 8, 8, device="meta"), ValueError, r"out: expected .* on cpu, got \[2, 8, 8\] on meta"),
            (torch.empty(2, 8, 8, requires_grad=True), ValueError, "out: carries no gradient"),
        ],
    )
    def test_errors_say_expected_and_actual(self, out: object, error: type, message: str) -> None:
        acts, weights, index = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3), torch.tensor([0, 1])
        with pytest.raises(error, match=message):
            ops.cam_maps(acts, weights, (8, 8), index, out=out)

    def test_inputs_that_require_a_gradient(self) -> None:
        case = random_case(fresh_seed())
        out = torch.empty(len(case.weights), *case.size)
        case.weights.requires_grad_()
        with pytest.raises(ValueError, match="out: carries no gradient"):
            run(case, out=out)
        with torch.no_grad():
            assert torch.equal(run(case, out=out), run(case))

    @pytest.mark.parametrize("name", ["acts", "weights", "window"])
    def test_shared_memory(self, name: str) -> None:
        memory = torch.zeros(600)
        arguments = {"acts": torch.zeros(3, 4, 5), "weights": torch.zeros(2, 3), "window": torch.ones(2, 4)}
        arguments[name] = memory[200 : 200 + arguments[name].numel()].view(arguments[name].shape)
        end = 200 + arguments[name].numel()
        for start in (200 - 128 + 1, end - 1):
            with pytest.raises(ValueError, match=f"out: expected memory of its own, got some of {name}"):
                ops.cam_maps(**arguments, size=(8, 8), out=memory[start : start + 128].view(2, 8, 8))
        ops.cam_maps(**arguments, size=(8, 8), out=memory[end : end + 128].view(2, 8, 8))

    def test_a_direct_call_stays_inside_its_memory(self) -> None:
        acts, weights = torch.zeros(1, 3, 4, 5), torch.zeros(2, 3)
        for call in (torch.ops.detcam.cam_maps.out, reference.cam_maps_out):
            for out in (torch.empty(1, 8, 8), torch.empty(2, 64), torch.empty(2, 8, 8).mT):
                with pytest.raises(RuntimeError, match="out must be a contiguous"):
                    call(acts, weights, None, None, "object", True, out=out)

    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_opcheck(self, device: str, normalize: str) -> None:
        case = random_case(fresh_seed()).to(device)
        out = torch.empty(len(case.weights), *case.size, device=device)
        arguments = (case.acts, case.weights, case.index, None, normalize, True)
        torch.library.opcheck(torch.ops.detcam.cam_maps.out, arguments, {"out": out})

    def test_compile(self, device: str) -> None:
        torch._dynamo.reset()
        case = random_case(fresh_seed()).to(device)

        def write(acts: Tensor, out: Tensor) -> Tensor:
            ops.cam_maps(acts.sin(), case.weights, case.size, case.index, out=out)
            return out.cos()

        compiled = torch.compile(write, fullgraph=True, backend="aot_eager")
        outs = [torch.empty(len(case.weights), *case.size, device=device) for _ in range(2)]
        assert torch.equal(compiled(case.acts, outs[0]), write(case.acts, outs[1]))
        assert torch.equal(*outs)


class TestRegions:
    """The surroundings of each object at full resolution, without the whole."""

    @pytest.mark.parametrize("normalize", ["object", "image", "none"])
    def test_equal_the_crop(self, device: str, normalize: str) -> None:
        """To the rounding of a pixel's place, which a window of float32 knows to 1e-6 of the map's width."""
        case = random_case(fresh_seed(), rows=17, columns=30, objects=9).to(device)
        case.size, part = (272, 480), (64, 96)
        window = (0.0, 0.5, 30.0, 16.5)
        corners = torch.rand(9, 2) * (torch.tensor([480, 272]) + 40) - 60  # some begin before the border ...
        corners = corners.round()
        corners[0] = torch.tensor([450, 250])  # ... and one ends behind it
        boxes = torch.cat([corners, corners + torch.tensor([96, 64])], 1).to(device)
        whole = run(case, normalize=normalize, window=window)
        regions = ops.cam_maps(
            case.acts,
            case.weights,
            part,
            case.index,
            normalize=normalize,
            window=ops.region_windows(boxes, case.size, window),
        )
        scale = max(1.0, float(whole.abs().max()))
        for region, map_, box in zip(regions, whole, boxes.long().tolist(), strict=True):
            left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], 480), min(box[3], 272)
            inside = region[top - box[1] : bottom - box[1], left - box[0] : right - box[0]]
            crop = map_[top:bottom, left:right]
            assert crop.numel() > 0
            torch.testing.assert_close(inside, crop, atol=1e-5 * scale, rtol=0)

    def test_beyond_the_border_repeats(self, device: str) -> None:
        case = random_case(fresh_seed(), rows=5, columns=6).to(device)
        boxes = torch.tensor([[-9.0, 3.0, -1.0, 9.0]], device=device).expand(len(case.weights), 4)
        window = ops.region_windows(boxes, (50, 60), (0, 0, 6, 5))
        part = ops.cam_maps(case.acts, case.weights, (6, 8), case.index, window=window)
        whole = ops.cam_maps(case.acts, case.weights, (50, 60), case.index)
        torch.testing.assert_close(part, whole[:, 3:9, :1].expand_as(part), atol=1e-5, rtol=0)

    def test_the_whole_is_a_region(self) -> None:
        window = ops.region_windows(torch.tensor([[0.0, 0.0, 640.0, 480.0]]), (480, 640), (1.5, 0.0, 19.0, 15.0))
        assert window.tolist() == [[1.5, 0.0, 19.0, 15.0]]

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"boxes: expected \[2, 4\] .* got \[2, 3\]"):
            ops.region_windows(torch.zeros(2, 3), (8, 8), (0, 0, 4, 4))
        with pytest.raises(TypeError, match=r"boxes: expected a floating-point tensor, got torch\.int64"):
            ops.region_windows(torch.zeros(2, 4, dtype=torch.int64), (8, 8), (0, 0, 4, 4))


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
    def test_gradients(self, device: str, normalize: str) -> None:
        case = random_case(fresh_seed(), torch.float64, images=2, channels=3, rows=3, columns=4, objects=2)
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
        assert torch.autograd.gradgradcheck(call, inputs)

    def test_gradient_of_one_input_only(self, device: str) -> None:
        case = random_case(fresh_seed()).to(device)
        case.weights.requires_grad_()
        run(case).sum().backward()
        assert case.weights.grad is not None
        assert case.acts.grad is None

    def test_uint8_and_no_grad_carry_no_graph(self) -> None:
        case = random_case(fresh_seed())
        case.weights.requires_grad_()
        assert not run(case, dtype=torch.uint8).requires_grad
        with torch.no_grad():
            assert not run(case).requires_grad

    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_opcheck(self, device: str, normalize: str) -> None:
        case = random_case(fresh_seed()).to(device)
        window = torch.tensor([[0.0, 0.0, 2.0, 2.0]], device=device).expand(len(case.weights), 4)
        for bounds, trained in ((None, True), (window, False)):
            arguments = (case.acts, case.weights.requires_grad_(trained), case.index, bounds, *case.size)
            torch.library.opcheck(torch.ops.detcam.cam_maps.default, (*arguments, normalize, True, torch.float32))

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile(self, device: str, dynamic: bool) -> None:
        """Traced whole, forward and backward; the trace can break, so no code is generated from it."""
        torch._dynamo.reset()
        case = random_case(fresh_seed()).to(device)

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

    def test_same_bits_every_time(self, device: str) -> None:
        case = random_case(fresh_seed(), images=3, objects=29, channels=130, rows=19, columns=21).to(device)
        for normalize in NORMALIZATIONS:
            assert_same_bits(lambda normalize=normalize: run(case, normalize=normalize))

    def test_cuda_graph_replays_without_a_sync(self) -> None:
        require("cuda")
        case = random_case(fresh_seed()).to("cuda")
        eager = run(case, window=(0.0, 0.0, 2.0, 2.0))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(case, window=(0.0, 0.0, 2.0, 2.0))
        graph.replay()
        assert torch.equal(captured, eager)


def test_fallback_when_disabled(tmp_path: Path) -> None:
    case = random_case(fresh_seed())
    assert_close(run_without_kernels("cam_maps", vars(case), tmp_path), expected_maps(case, "object"))
