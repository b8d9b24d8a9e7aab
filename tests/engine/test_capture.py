"""Captured activations are what the module put out, and the graph starts there."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam.engine import Capture, Captured, Reached, shadow

Pair = namedtuple("Pair", ["features", "other"])


class Backbone(nn.Module):
    """Three convolutions in a row, then two branches that both read the last one."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=inplace))
        self.late = nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.late(self.middle(self.stem(x)))).mean(dim=(2, 3)))


class Returns(nn.Module):
    """A convolution whose output comes wrapped in some container, which the next layer unwraps."""

    def __init__(self, wrap: Any, unwrap: Any) -> None:
        super().__init__()
        self.inner = Wrapper(wrap)
        self.unwrap = unwrap
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.unwrap(self.inner(x))).mean(dim=(2, 3))


class Wrapper(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.conv(x))


def modules(model: nn.Module, *names: str) -> dict[str, nn.Module]:
    named = dict(model.named_modules())
    return {name: named[name] for name in names}


@pytest.fixture
def batch(seed: int) -> Tensor:
    return torch.randn(2, 3, 6, 7)


@pytest.mark.parametrize("names", [["stem"], ["middle.0", "late"], ["late", "stem", "middle"]])
@pytest.mark.parametrize("cut_all", [True, False])
def test_captures_what_the_modules_put_out(names: list[str], cut_all: bool, batch: Tensor) -> None:
    model = shadow(Backbone())
    expected: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: expected.update({name: out.detach().clone()}))
        for name, module in modules(model, *names).items()
    ]
    reference = model(batch)
    for handle in handles:
        handle.remove()
    with Capture(modules(model, *names), cut_all) as capture:
        output = model(batch)
    assert {c.name for c in capture.captured} == set(names)
    for captured in capture.captured:
        assert torch.equal(captured.tensor, expected[captured.name])
    assert torch.equal(output, reference)
    assert capture.missing() == []


@pytest.mark.parametrize(
    ("cut_all", "input_requires_grad", "leaves"),
    [
        (True, False, {"stem", "middle", "late"}),
        (False, False, {"stem"}),
        (True, True, {"stem", "middle", "late"}),
        (False, True, set()),  # the graph starts at the input, before every layer
    ],
)
def test_the_graph_starts_at_the_cut(cut_all: bool, input_requires_grad: bool, leaves: set[str], batch: Tensor) -> None:
    model = shadow(Backbone())
    with Capture(modules(model, "stem", "middle", "late"), cut_all) as capture:
        model(batch.requires_grad_(input_requires_grad))
    assert {c.name for c in capture.captured if c.tensor.is_leaf} == leaves


def test_backward_stops_at_the_earliest_cut(batch: Tensor) -> None:
    model = shadow(Backbone())
    recorded: dict[str, bool] = {}
    for name in ("stem", "middle", "late"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, a, out, n=name: recorded.update({n: out.requires_grad}))
    with Capture(modules(model, "middle"), cut_all=False) as capture:
        output = model(batch)
    # Nothing before the cut is recorded: neither it nor the input has a graph that a backward could follow.
    assert recorded == {"stem": False, "middle": False, "late": True}
    output.sum().backward()
    assert capture.captured[0].tensor.grad is not None
    assert batch.grad is None
    assert all(p.grad is None for p in model.parameters())


def test_gradients_are_those_of_the_plain_model(seed: int, batch: Tensor) -> None:
    model = Backbone().eval()
    with Capture(modules(view := shadow(model), "stem", "late"), cut_all=False) as capture:
        output = view(batch)[:, 1].sum()
    found = torch.autograd.grad(output, [c.tensor for c in capture.captured])

    seen: dict[str, Tensor] = {}
    for name in ("stem", "late"):
        model.get_submodule(name).register_forward_hook(lambda m, a, out, n=name: seen.update({n: out}))
    expected = torch.autograd.grad(model(batch)[:, 1].sum(), [seen["stem"], seen["late"]])
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_model_continues_with_what_is_given(batch: Tensor) -> None:
    model = shadow(Backbone())
    given = torch.randn(2, 4, 6, 7)
    with Capture(modules(model, "stem"), given={"stem": given}) as capture:
        output = model(batch)
    (captured,) = capture.captured
    assert torch.equal(captured.tensor, given)
    assert captured.tensor is not given
    found = torch.autograd.grad(output.sum(), captured.tensor)[0]
    leaf = given.clone().requires_grad_()
    plain = model.head(torch.tanh(model.late(model.middle(leaf))).mean(dim=(2, 3)))
    assert torch.equal(output, plain)
    torch.testing.assert_close(found, torch.autograd.grad(plain.sum(), leaf)[0])
    assert torch.equal(captured.acts, given)
    assert torch.equal(Captured("stem", captured.tensor, given - 1).acts, given - 1)


def test_the_forward_ends_where_all_is_captured(batch: Tensor) -> None:
    model = shadow(Backbone())
    ran: list[str] = []
    for name in ("stem", "middle", "late"):
        model.get_submodule(name).register_forward_hook(lambda m, a, o, name=name: ran.append(name))
    with Capture(modules(model, "stem", "middle"), until=["middle", "stem"]) as capture, pytest.raises(Reached):
        model(batch)
    assert ran == ["stem", "middle"]
    assert [c.name for c in capture.captured] == ["stem", "middle"]
    assert model(batch).shape == (2, 2), "no hook is left"


def test_cutting_everywhere_gives_local_gradients(batch: Tensor) -> None:
    """Two tensors that enter the head, of which one also feeds the other: each gradient counts its own path."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return (2 * a + 5 * self.b(a)).sum()

    model = shadow(Skip())
    for cut_all in (True, False):
        with Capture(modules(model, "a", "b"), cut_all) as capture:
            output = model(batch)
        at_a, at_b = torch.autograd.grad(output, [c.tensor for c in capture.captured])
        through_b = model.b.weight.sum(dim=0)[:, 0, 0][None, :, None, None] * 5
        torch.testing.assert_close(at_b, torch.full_like(at_b, 5.0))
        torch.testing.assert_close(at_a, torch.full_like(at_a, 2.0) + (0 if cut_all else through_b))


@pytest.mark.parametrize("inplace", ["module", "functional", "flag set on a copy"])
def test_operations_in_place_do_not_reach_captured_values(inplace: str, batch: Tensor) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
            self.act = nn.ReLU(inplace=inplace == "module")

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = torch.relu_(x) if inplace == "functional" else self.act(x)
            return self.last(x)

    model = Block()
    view = shadow(model)
    if inplace == "flag set on a copy":
        view.act.inplace = True
    expected = model.conv(batch)
    with Capture(modules(view, "conv"), cut_all=True) as capture:
        output = view(batch)
    assert bool((expected < 0).any())
    captured = capture.captured[0].tensor
    assert torch.equal(captured, expected)
    (gradient,) = torch.autograd.grad(output.sum(), captured)
    (plain,) = torch.autograd.grad(model.last(expected.relu()).sum(), expected)
    torch.testing.assert_close(gradient, plain)
    assert torch.equal(captured, expected)


class Output(OrderedDict):
    """As transformers' ModelOutput: a mapping whose values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass
class Record:
    features: Tensor


CONTAINERS: dict[str, tuple[Any, Any, list[str], type]] = {
    "tuple": (lambda t: (t, 3), lambda o: o[0], ["inner[0]"], tuple),
    "list": (lambda t: [t, t[0]], lambda o: o[0], ["inner[0]"], list),
    "dict": (lambda t: {"p3": t, "n": None}, lambda o: o["p3"], ["inner[p3]"], dict),
    "OrderedDict": (lambda t: OrderedDict(p3=t), lambda o: o["p3"], ["inner[p3]"], OrderedDict),
    "namedtuple": (lambda t: Pair(t, "x"), lambda o: o.features, ["inner[0]"], Pair),
    "attributes": (lambda t: Output(features=t), lambda o: o.features, ["inner[features]"], Output),
    "nested": (lambda t: {"a": [(t, t * 2)]}, lambda o: o["a"][0][1], ["inner[a][0][0]", "inner[a][0][1]"], dict),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_outputs_in_containers(kind: str, batch: Tensor) -> None:
    wrap, unwrap, names, container = CONTAINERS[kind]
    types: list[type] = []
    view = shadow(Returns(wrap, lambda o: types.append(type(o)) or unwrap(o)))
    expected = view.inner.conv(batch)
    reference = view(batch)
    with Capture(modules(view, "inner"), cut_all=True) as capture:
        output = view(batch)
    assert [c.name for c in capture.captured] == names
    assert types == [container, container]
    assert torch.equal(capture.captured[0].tensor, expected)
    assert torch.equal(output, reference)
    assert torch.autograd.grad(output.sum(), capture.captured[-1].tensor)[0].any()
    assert capture.missing() == []


def test_outputs_of_transformers(batch: Tensor) -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    view = shadow(
        Returns(lambda t: outputs.BackboneOutput(feature_maps=(t, t + 1)), lambda o: o.feature_maps[0] + o[0][1])
    )
    reference = view(batch)
    with Capture(modules(view, "inner"), cut_all=True) as capture:
        output = view(batch)
    assert torch.equal(output, reference)
    assert [c.name for c in capture.captured] == ["inner[feature_maps][0]", "inner[feature_maps][1]"]


def test_a_module_that_runs_twice_is_captured_twice(batch: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    view = shadow(Twice())
    with Capture(modules(view, "conv"), cut_all=True) as capture:
        view(batch)
    assert [c.name for c in capture.captured] == ["conv", "conv#1"]
    assert torch.equal(capture.captured[1].tensor, view(batch))


def test_says_which_modules_gave_nothing(batch: Tensor) -> None:
    view = shadow(Backbone())
    view.unused = nn.Conv2d(3, 3, 1)
    with Capture(modules(view, "unused", "head", "stem"), cut_all=True) as capture:
        view(batch)
    assert capture.missing() == ["unused", "head"]  # the head's output has two dimensions


def test_hooks_are_removed_also_after_an_exception(batch: Tensor) -> None:
    view = shadow(Backbone())
    other = view.late.register_forward_hook(lambda m, a, out: None)
    with pytest.raises(RuntimeError, match="size"), Capture(modules(view, "stem", "late"), cut_all=True):
        view(batch[:, :2])
    assert not view.stem._forward_hooks
    assert list(view.late._forward_hooks) == [other.id]


class Tokens(nn.Module):
    """A class token and two maps of 2 x 3 and 1 x 2 cells in one sequence, changed in place after the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).mul_(2).tanh()).sum(dim=(1, 2))


def test_maps_inside_a_sequence_of_tokens(seed: int) -> None:
    """The gradients at the maps are those of plain autograd at the sequence, token by token."""
    model, x = shadow(Tokens().double()), torch.randn(2, 1 + 6 + 2, 4).double()
    with Capture({"layer": model.layer}, grids=lambda tokens: [(1, 2, 3), (7, 1, 2)]) as capture:
        out = model(x)
    assert [c.name for c in capture.captured] == ["layer[0]", "layer[1]"]
    assert not capture.missing()
    torch.testing.assert_close(out, model(x), msg="the model goes on with what it would have had")
    sequence = model.layer(x).detach().requires_grad_()
    expected = torch.autograd.grad(model.last((sequence * 2).tanh()).sum(), sequence)[0]
    found = torch.autograd.grad(out.sum(), [c.tensor for c in capture.captured])
    for grid, (start, rows, columns) in zip(found, [(1, 2, 3), (7, 1, 2)], strict=True):
        assert grid.shape == (2, 4, rows, columns)
        for row in range(rows):
            for column in range(columns):
                token = expected[:, start + row * columns + column]
                torch.testing.assert_close(grid[:, :, row, column], token)


def test_a_sequence_without_maps_is_left_alone(seed: int) -> None:
    model = shadow(Tokens())
    with Capture({"layer": model.layer}) as capture:
        model(torch.randn(1, 3, 4))
    assert capture.missing() == ["layer"]
