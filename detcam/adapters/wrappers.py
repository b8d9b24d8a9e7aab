"""Wrappers around a model: the model inside, or the name of the attribute that holds it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from detcam.errors import ModelError

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
LIBRARIES = {"torch", "lightning", "pytorch_lightning"}  # whose base classes have a forward without a computation
INSTEAD = "adapter=CallableAdapter(...) describes any other model"


def unwrapped(model: Any) -> Any:
    """The model inside wrappers that change only how it runs: compiled, parallel, averaged, with PEFT's adapters."""
    while True:
        if isinstance(model, PARALLEL) or type(model).__module__.startswith("timm.utils."):
            model = model.module if hasattr(model, "module") else model.ema
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        elif type(model).__module__.startswith("peft.") and hasattr(type(model), "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def model_inside(wrapper: Any, serves: Callable[[Any], bool]) -> tuple[Any, Any]:
    """The model in a wrapper and the wrapper's processor or None; the wrapper itself if it holds no model.

    Args:
        wrapper: a pipeline, trainer or checkpoint's dict, or a module that holds a model, as Lightning's do. A forward
            of its own may normalise images, so such a wrapper is not opened.
        serves: whether an adapter serves a model.

    Raises:
        ModelError: if it holds several models or weights only, or has a forward of its own; names the attributes.
    """
    name, inside = type(wrapper).__name__, _models_in(wrapper, serves)
    if isinstance(wrapper, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ModelError(
            f"{name}: TorchScript has no layers to read: give the module that was exported, or run it as a black box: "
            "adapter=CallableAdapter(..., layers=[], candidates=...) and method='drise'"
        )
    usual = [part for key in ("ema", "model") for path, part in inside.items() if str(path).split(".")[0] == key]
    held = next(iter(usual or (inside.values() if len(inside) == 1 else ())), None)
    if isinstance(wrapper, dict) and held is not None:
        model = copy.deepcopy(held).float()  # checkpoints hold half precision
        model.args = wrapper.get("train_args") or getattr(model, "args", {})
        return model, None
    if isinstance(wrapper, dict) and any(isinstance(value, (torch.Tensor, dict)) for value in wrapper.values()):
        raise ModelError(f"{name} of weights is not a network: build the network, load them into it, and give that")
    if (
        not isinstance(wrapper, (list, tuple))
        and len({id(model) for model in inside.values()}) == 1
        and not _computes(wrapper)
    ):
        images = "" if getattr(wrapper, "tokenizer", None) else "image_processor"  # alone it reads no text prompts
        processors = (getattr(wrapper, name, None) for name in ("processor", "processing_class", images))
        return next(iter(inside.values())), next((part for part in processors if part is not None), None)
    if inside:
        place = "model[{!r}]" if isinstance(wrapper, (dict, list, tuple)) else "model.{}"
        found = " or ".join(f"{place.format(path)} ({type(model).__name__})" for path, model in inside.items())
        raise ModelError(f"{name} wraps a model: give {found}, with its preparation as processor=; {INSTEAD}")
    return wrapper, None


def _models_in(wrapper: Any, serves: Callable[[Any], bool]) -> dict[str, Any]:
    """The outermost models in a wrapper that adapters serve, by path; of a module those with most of its weights."""
    if isinstance(wrapper, nn.Module):
        parts, whole = dict(wrapper.named_modules()), _weights(wrapper)
        del parts[""]
    else:
        held = dict(enumerate(wrapper)) if isinstance(wrapper, (list, tuple)) else wrapper
        held, whole, parts = held if isinstance(held, dict) else getattr(held, "__dict__", {}), 0, {}
        for name, part in held.items():
            inner = isinstance(part, nn.Module) and not serves(unwrapped(part)) and not _computes(unwrapped(part))
            parts |= dict(part.named_modules(prefix=str(name))) if inner else {name: part}
    inside: dict[str, Any] = {}
    for name, part in parts.items():
        nested = any(str(name).startswith(f"{path}.") for path in inside)
        if isinstance(part, nn.Module) and not nested and serves(opened := unwrapped(part)):
            inside[name] = opened
    return {name: part for name, part in inside.items() if 2 * _weights(part) >= whole}


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _computes(wrapper: Any) -> bool:
    """Whether a wrapper is a module with a forward of its own."""
    owner = next((base for base in type(wrapper).__mro__ if "forward" in vars(base)), nn.Module)
    container = isinstance(wrapper, nn.Sequential)
    return isinstance(wrapper, nn.Module) and (container or owner.__module__.split(".")[0] not in LIBRARIES)
