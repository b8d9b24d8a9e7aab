"""Tail forwards against plain hooks on whole forwards; what is on record; batches, progress, and nothing left behind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import explanation_of, random_picture, random_yolo
from torch import Tensor, nn

from detcam.engine import Capture, shadow
from detcam.engine.sweeps import Probe, Recorder, answered

ANCHORS = [3, 70, 101]


class Net(nn.Module):
    """A backbone with a shared activation, a neck that reads two of its stages, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.stem, self.stage = nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Sigmoid())
        self.neck, self.head = nn.Conv2d(10, 5, 1), nn.Conv2d(5, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        early = self.act(self.stem(x))
        late = self.stage(early)
        return self.head(self.act(self.neck(torch.cat([early, late], dim=1))))


def first_scores(outputs: Tensor, count: int) -> Tensor:
    """[b, 4]: a few numbers of a raw output."""
    return outputs.reshape(count, -1)[:, 5:9]


def probe_of(module: nn.Module, layers: list[str], picture: Tensor, **options: Any) -> Probe:
    """A probe of one picture [3, H, W], with the layers' activations captured as the explainer does."""
    module = shadow(module)
    score = options.pop("score", first_scores)
    named = dict(module.named_modules())
    with torch.no_grad(), Capture({name: named[name] for name in layers}) as capture:
        module(picture[None])
    captured = {c.name: c.tensor[0].detach() for c in capture.captured}
    objects = explanation_of(np.zeros((8, 8, 3), np.uint8), [torch.zeros(2, 2)] * 2).objects
    return Probe(module, module, score, picture, objects, captured, **options)


def plainly(module: nn.Module, picture: Tensor, values: dict[str, Tensor], score: Callable[..., Tensor]) -> Tensor:
    """The scores of whole forwards, one by one, with plain hooks that put other values at some layers."""
    rows = []
    for i in range(max(len(v) for v in values.values())):
        one = {name: v[i : i + 1] if len(v) > 1 else v for name, v in values.items()}
        handles = [module.get_submodule(name).register_forward_hook(lambda m, a, o, v=v: v) for name, v in one.items()]
        rows.append(score(module(picture[None]), 1)[0])
        for handle in handles:
            handle.remove()
    return torch.stack(rows)


def yolo_logits(outputs: Any, count: int) -> Tensor:
    return outputs[1]["scores"][:, 2, ANCHORS]


@torch.no_grad()
@pytest.mark.parametrize("layer", ["model.4", "model.9", "model.9.cv1.conv", "model.15", "model.22.cv3.0.0"])
def test_a_tail_is_a_whole_forward_with_other_activations(layer: str, seed: int) -> None:
    picture = random_picture(seed, 64, 96)
    model = random_yolo("yolov8n.yaml", seed, picture, 96).double()  # so that rounding decides nothing
    pixels = torch.rand(3, 64, 96).double()
    probe = probe_of(model, [layer], pixels, score=yolo_logits)
    acts = 10 * probe.layers[layer] * torch.randn(3, *probe.layers[layer].shape)
    expected = plainly(model, pixels, {layer: acts}, yolo_logits)
    runs: list[int] = []
    probe.module.get_submodule("model.0").conv.register_forward_hook(lambda *_: runs.append(1))
    tail = probe.tail(layer)
    assert len(runs) == 1, "the record is one forward, its check answers the layers before from memory"
    torch.testing.assert_close(tail(acts), expected.float(), rtol=1e-6, atol=1e-6)
    assert len(runs) == 1
    changed = (tail(acts) - probe.unchanged).abs().amax(dim=0)
    assert changed.max() > 1e-4, "activations that change nothing prove nothing"


@torch.no_grad()
@pytest.mark.parametrize("cut_all", [True, False])
def test_other_layers_keep_their_values_when_all_are_cut(cut_all: bool, seed: int) -> None:
    net, pixels = Net(), torch.rand(3, 12, 14)
    probe = probe_of(net, ["stem", "stage"], pixels, cut_all=cut_all)
    acts = torch.randn(5, *probe.layers["stem"].shape)
    held = {"stage": probe.layers["stage"][None]} if cut_all else {}
    expected = plainly(net, pixels, {"stem": acts, **held}, first_scores)
    torch.testing.assert_close(probe.tail("stem")(acts), expected)
    other = plainly(
        net, pixels, {"stem": acts} if cut_all else {"stem": acts, "stage": probe.layers["stage"][None]}, first_scores
    )
    assert not torch.allclose(expected, other, atol=1e-4)


@torch.no_grad()
def test_a_layer_that_runs_twice_has_two_tails(seed: int) -> None:
    net, pixels = Net(), torch.rand(3, 12, 14)
    probe = probe_of(net, ["act"], pixels, cut_all=False)
    assert set(probe.layers) == {"act", "act#1"}
    second = torch.rand(4, *probe.layers["act#1"].shape)
    torch.testing.assert_close(probe.tail("act#1")(second), first_scores(net.head(second), 4))
    first = torch.rand(4, *probe.layers["act"].shape)
    rest = net.head(net.act(net.neck(torch.cat([first, net.stage(first)], dim=1))))
    torch.testing.assert_close(probe.tail("act")(first), first_scores(rest, 4))


class Tokens(nn.Module):
    """One token that belongs to no map, then a map of 2 x 3, in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.read = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4), nn.Linear(28, 9)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.read(self.mix(torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)).flatten(1))


@torch.no_grad()
def test_maps_inside_tokens_are_replaced(seed: int) -> None:
    net, pixels = Tokens(), torch.rand(3, 8, 12)

    def grids(tokens: int) -> list[tuple[int, int, int]]:
        return [(1, 2, 3)] if tokens == 7 else []

    tokens: list[Tensor] = []
    handle = net.mix.register_forward_hook(lambda m, a, o: tokens.append(o))
    net(pixels[None])
    handle.remove()
    probe = probe_of(net, ["embed"], pixels, layout={"grids": grids})
    probe = Probe(probe.module, probe.module, first_scores, pixels, probe.objects,
                  {"mix": tokens[0][0, 1:].T.unflatten(1, (2, 3))}, layout={"grids": grids})  # fmt: skip
    acts = torch.rand(3, 4, 2, 3)
    whole = torch.cat([tokens[0][:, :1].expand(3, -1, -1), acts.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(probe.tail("mix")(acts), first_scores(net.read(whole.flatten(1)), 3))


@torch.no_grad()
def test_a_hook_that_changes_an_output_does_so_once(seed: int) -> None:
    """The hook's work is on record already, and must not be done again on an answer from memory."""
    net, pixels = Net(), torch.rand(3, 12, 14)
    net.stem.register_forward_hook(lambda m, a, o: o * 3 + 1)
    net.act.register_forward_hook(lambda m, a, o: o * 2 - 1)  # runs before the layer and after it
    probe = probe_of(net, ["stage"], pixels)
    acts = torch.rand(3, *probe.layers["stage"].shape)
    torch.testing.assert_close(probe.tail("stage")(acts), plainly(net, pixels, {"stage": acts}, first_scores))


@torch.no_grad()
def test_an_operation_in_place_cannot_spoil_what_is_remembered(seed: int) -> None:
    class InPlace(Net):
        def forward(self, x: Tensor) -> Tensor:
            early = self.stem(x)
            late = self.stage(early)
            early[:, :2] = early[:, :2] + late[:, :2]
            early.mul_(2)
            return self.head(self.act(self.neck(torch.cat([early, late], dim=1))))

    net, pixels = InPlace(), torch.rand(3, 12, 14)
    probe = probe_of(net, ["stage"], pixels)
    acts = torch.rand(3, *probe.layers["stage"].shape)
    tail = probe.tail("stage")
    expected = plainly(net, pixels, {"stage": acts}, first_scores)
    for _ in range(3):
        torch.testing.assert_close(tail(acts), expected)


@torch.no_grad()
def test_the_record_keeps_outermost_calls_that_had_finished(seed: int) -> None:
    net = Net()
    with Recorder(net, {"stage.1", "neck", "act#1"}) as recorder:
        net(torch.rand(1, 3, 12, 14))
    assert [call.module for call in recorder.before["stage.1"].calls] == [net.stem, net.act, net.stage[0]]
    assert [call.module for call in recorder.before["neck"].calls] == [net.stem, net.act, net.stage]
    assert [call.module for call in recorder.before["act#1"].calls] == [net.stem, net.act, net.stage, net.neck]
    assert recorder.largest == 4 * 6 * 6 * 7  # float32; the stage, at half resolution
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@torch.no_grad()
def test_modules_get_their_own_forward_back_whatever_happens(seed: int) -> None:
    net, x = Net(), torch.rand(1, 3, 12, 14)
    before, expected = {m: dict(vars(m)) for m in net.modules()}, net(x)
    with Recorder(net, {"neck"}) as recorder:
        net(x)

    def interrupted() -> None:
        with answered(recorder.before["neck"].calls, 2):
            assert net.stem(x).shape[0] == 2  # from memory
            assert net.stem(x).shape[0] == 1  # a second call is a real one
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {m: dict(vars(m)) for m in net.modules()} == before
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("memory", [1, 4 * 4 * 6 * 6 * 7 * 3, 2**40])
def test_batches_cover_all_within_memory_and_tell(memory: int, seed: int) -> None:
    told: list[tuple[int, int]] = []
    probe = probe_of(Net(), [], torch.rand(3, 12, 14), memory=memory, progress=lambda *state: told.append(state))
    parts = list(probe.batches(7))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(7))
    assert max(part.stop - part.start for part in parts) == min(max(memory // (4 * 4 * 6 * 6 * 7), 1), 7)
    assert told == [(part.stop, 7) for part in parts]
    assert list(probe.batches(0)) == []


@torch.no_grad()
def test_scores_are_float32_of_the_model_s_own_precision(seed: int) -> None:
    net, pixels = Net().bfloat16(), torch.rand(3, 12, 14).bfloat16()
    probe = probe_of(net, ["stage"], pixels)
    assert probe.unchanged.dtype == torch.float32
    acts = torch.rand(3, *probe.layers["stage"].shape)
    expected = plainly(net, pixels, {"stage": acts.bfloat16()}, first_scores)
    torch.testing.assert_close(probe.tail("stage")(acts), expected.float(), rtol=2e-2, atol=2e-2)
    assert probe.scores(torch.rand(2, 3, 12, 14)).dtype == torch.float32
