"""The private view shares the user's weights and leaves everything of the user's model alone."""

import copy
from typing import Any

import pytest
import torch
from support import fingerprint
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from detcam.engine import Capture, shadow


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.tied = nn.Conv2d(3, 4, 3)
        self.tied.weight = self.conv.weight
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.cache: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.act(self.norm(self.conv(x)))) * self.scale + self.tied(x)
        self.cache = y
        return y


@pytest.fixture
def model(seed: int) -> Model:
    model = Model()
    model.train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    return model


@pytest.fixture
def batch(seed: int) -> Tensor:
    return torch.randn(2, 3, 6, 6)


def test_memory_is_shared_and_ties_are_kept(model: Model) -> None:
    view = shadow(model)
    for (name, ours), (_, theirs) in zip(view.state_dict().items(), model.state_dict().items(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr(), name
    assert view.scale.data_ptr() == model.scale.data_ptr()
    assert view.tied.weight is view.conv.weight
    assert view.conv.weight is not model.conv.weight


def test_the_user_s_model_is_left_alone(model: Model, batch: Tensor) -> None:
    before = fingerprint(model)
    view = shadow(model)
    with Capture({"conv": view.conv}, cut_all=True) as capture:
        view(batch).sum().backward()
    assert capture.captured[0].tensor.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in view.parameters())
    assert not any(m.training for m in view.modules())
    assert view.act.inplace is False
    assert model.act.inplace is True
    assert fingerprint(model) == before


def test_computes_what_the_model_computes_in_eval_mode(model: Model, batch: Tensor) -> None:
    view = shadow(model)
    assert torch.equal(view(batch), copy.deepcopy(model).eval()(batch))


def test_later_updates_of_the_weights_are_seen(model: Model, batch: Tensor) -> None:
    view = shadow(model)
    with torch.no_grad():
        model.conv.weight.mul_(2)
        model.norm.running_mean.add_(1)
        model.load_state_dict({k: v + 1 for k, v in model.state_dict().items() if v.is_floating_point()}, strict=False)
    assert torch.equal(view(batch), copy.deepcopy(model).eval()(batch))


@pytest.mark.parametrize("keep", [lambda y: y, lambda y: [y, (y, {"last": y})]])
def test_activations_kept_from_a_training_step_do_not_matter(keep: Any, model: Model, batch: Tensor) -> None:
    output = model(batch)
    model.cache = keep(output)
    assert not output.is_leaf, "a tensor with an autograd history, which deepcopy alone refuses"
    before = fingerprint(model)
    view = shadow(model)
    assert fingerprint(model) == before
    model.cache = None
    assert torch.equal(view(batch), copy.deepcopy(model).eval()(batch))


def test_user_hooks_stay_and_fire(model: Model, batch: Tensor) -> None:
    calls: list[str] = []

    class Watcher:
        def __deepcopy__(self, memo: dict[int, Any]) -> "Watcher":
            raise AssertionError("a user's hook must not be copied")

        def forward(self, module: nn.Module, args: Any, output: Tensor) -> None:
            calls.append("forward")

    watcher = Watcher()
    model.conv.register_forward_hook(watcher.forward)
    model.conv.register_forward_pre_hook(lambda m, args, kwargs: calls.append("pre"), with_kwargs=True)
    model.conv.register_forward_hook(lambda m, args, output: output + 1, prepend=True)
    before = fingerprint(model)
    with_hook = copy.copy(model)
    view = shadow(model)
    output = view(batch)
    assert calls == ["pre", "forward"]
    assert fingerprint(with_hook) == fingerprint(model) == before
    calls.clear()
    torch.testing.assert_close(output, view(batch))
    model.eval()
    assert torch.equal(model(batch), output)  # the hook that changes the output counts in both
    assert calls == ["pre", "forward"] * 2


def test_models_made_or_used_under_inference_mode(seed: int, batch: Tensor) -> None:
    with torch.inference_mode():
        model = Model().eval()
        model(batch)
        before = fingerprint(model)
        inside = shadow(model)
    for view in (inside, shadow(model)):
        with Capture({"conv": view.conv}, cut_all=True) as capture:
            output = view(batch)
        (gradient,) = torch.autograd.grad(output.square().sum(), capture.captured[0].tensor)
        assert bool(gradient.any())
        with torch.inference_mode():
            assert torch.equal(model(batch), output)
    assert {k: v for k, v in fingerprint(model).items() if k.startswith("tensor")} == {
        k: v for k, v in before.items() if k.startswith("tensor")
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype, seed: int) -> None:
    model = Model().to(dtype)
    view = shadow(model)
    assert {p.dtype for p in view.parameters()} == {dtype}
    assert view(torch.randn(1, 3, 6, 6, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_layers(wrap: Any, seed: int, batch: Tensor) -> None:
    model = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(inplace=True)).eval()
    view = shadow(model)
    torch.testing.assert_close(view(batch), model(batch))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in view.parameters())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_batch_norm_behind_tokens(batch: int, order: torch.memory_format, seed: int) -> None:
    """torch's own are wrong for one contiguous picture whose map is flattened to tokens: the formula is the judge."""
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(batch, 4, 5, 6).contiguous(memory_format=order).requires_grad_()
    gradient = torch.randn(batch, 30, 4).transpose(1, 2).unflatten(2, (5, 6))  # as it comes from a sequence
    found = torch.autograd.grad(shadow(norm)(x), x, gradient)[0]
    scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    torch.testing.assert_close(found, gradient * scale.view(-1, 1, 1))
