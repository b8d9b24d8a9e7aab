"""A private view of the user's model: the model itself is never changed, not even by an exception."""

import copy
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STAND_INS = {  # for names of torch's module: the reentrant checkpoint, and the other's hooks
    "CheckpointFunction": SimpleNamespace(apply=lambda run, preserve_rng_state, *args: run(*args)),
    "_checkpoint_hook": lambda frame: nullcontext(),
}
_lock, _restored = threading.Lock(), ExitStack()
_running: list[nn.Module] = []  # in all threads


def shadow(model: nn.Module) -> nn.Module:
    """A copy of the modules of `model` that shares the memory of its parameters and buffers.

    The copy is in eval mode, none of its parameters requires grad (so a backward writes no `.grad`), and no
    activation works in place (so a captured tensor keeps its values). Modes, flags, hooks and gradients of `model`
    stay as they are; a later in-place update of its weights changes the copy, too. The user's hooks are kept on the
    copy and run in its forwards.

    Args:
        model: any module; in train or eval mode, frozen or not, also with parameters made under inference mode.
    """
    with torch.inference_mode(False), torch.no_grad():  # TorchScript copies its weights, with their graph
        memo: dict[int, Any] = {}
        for module in model.modules():
            for tensor in _tensors_in(vars(module)):
                memo.setdefault(id(tensor), _shared(tensor))
            for name in _HOOKS:
                for hook in getattr(module, name).values():
                    memo[id(hook)] = hook
        view = copy.deepcopy(model, memo)
        for module in [m for m in view.modules() if not isinstance(m, torch.jit.ScriptModule)]:
            for name, part in module.named_children():
                if isinstance(part, torch.jit.ScriptModule):
                    setattr(module, name, _hookable(part))
        for module in view.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_hook(_order_gradient)
    return view.eval()


@contextmanager
def running(view: nn.Module) -> Iterator[None]:
    """Context in which a private view runs, outside the caller's inference mode and autocast.

    A checkpoint would run its part again in the backward, when the hooks that cut the graph are gone, and a compiled
    part would be a node that may allow one backward only: there is neither within. Both settings belong to the process,
    so the last thread that leaves restores them. Hooks of detcam and Captum that were added within are removed: Captum
    leaves some, and Ctrl-C may come while others are being added. Those of the model's library, which transformers adds
    in the first forward, stay.
    """
    before = [(hooks := getattr(module, name), set(hooks)) for module in view.modules() for name in _HOOKS]
    with _lock:
        if not _running:
            for name, stand_in in _STAND_INS.items():
                _restored.callback(setattr, checkpoint, name, getattr(checkpoint, name))
                setattr(checkpoint, name, stand_in)
            if "torch._dynamo" in sys.modules:  # slow to import; whoever compiles has imported it
                _restored.enter_context(torch.compiler.set_stance("force_eager"))
        _running.append(view)
    try:
        device = next(view.parameters(), torch.empty(0)).device.type  # a black box has no parameters
        with torch.inference_mode(False), torch.autocast(device, enabled=False):
            yield
    finally:
        for hooks, kept in before:
            for key in hooks.keys() - kept:
                hook = getattr(hooks[key], "func", hooks[key])  # of a partial
                if str(getattr(hook, "__module__", "")).startswith(("detcam.", "captum.")):
                    del hooks[key]
        with _lock:
            _running.remove(view)
            if not _running:
                _restored.close()


def _hookable(part: nn.Module) -> nn.Module:
    """A part in TorchScript, which takes no hooks, in a module that takes them."""
    holder = nn.Module()
    vars(holder).update(forward=part, _apply=part._apply)
    return holder


def _order_gradient(module: nn.Module, args: Any, output: Tensor) -> None:
    """Make the gradient of a batch norm's output arrive in the memory order of the output.

    On the CPU, torch 2.15 (at least) returns a wrong gradient for a batch norm in eval mode whose output is contiguous,
    where the batch is one image and the gradient comes with the strides of tokens, as behind `flatten(2).transpose`.
    """
    if output.requires_grad:
        order = torch.contiguous_format if output.is_contiguous() or output.ndim != 4 else torch.channels_last
        output.register_hook(lambda g: g if g is None else g.contiguous(memory_format=order))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Parameters, buffers and cached tensors, also those that a module keeps in lists or dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def _shared(tensor: Tensor) -> Tensor:
    """The same memory without its autograd history. Inference tensors cannot enter a graph, so they are copied."""
    data = tensor.clone() if tensor.is_inference() else tensor.detach()
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
