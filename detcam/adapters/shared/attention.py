"""Attention of a detection transformer: finds its modules, and has them return or record their weights.

Modules are found by their names, which are the same in all detection transformers: `encoder.layers.0.self_attn`,
`decoder.layers.0.self_attn`, and `decoder.layers.0.encoder_attn` or `cross_attn`; those of a backbone do not count.
"""

import inspect
import re
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from detcam.errors import MethodError

Levels = tuple[tuple[int, int, int], ...]
Record = Callable[[Tensor, Tensor, Levels], None]

ENCODER = re.compile(r"^(?!.*(backbone|pixel_level))(.*\.)?encoder\.layers?\.\d+\.(self_attn|attention\.attention)$")
QUERIES = re.compile(r"^(?!.*query_transformer)(.*\.)?decoder\.layers\.\d+\.self_attn(\.self_attn)?$")
CROSS = re.compile(r"(^|\.)decoder\.layers\.\d+\.(encoder_attn|cross_attn(\.(cross|multihead)_attn)?)$")
CLASS_TOKEN = re.compile(  # timm's, torchvision's and transformers' vision transformers
    r"(^|\.)(blocks\.\d+\.attn\.attn_drop|layers\.encoder_layer_\d+\.self_attention"
    r"|layers?\.\d+\.attention(\.attention)?)$"
)
SAMPLERS = ("multi_scale_deformable_attn_pytorch", "multi_scale_deformable_attention_v2", "ms_deform_attn_core_pytorch")


@dataclass(frozen=True)
class AttentionPlan:
    """The attention modules of a private view, in the order that they run."""

    # Self-attention of the tokens that the queries read, if it is a matrix; without a decoder, of all tokens.
    encoder: tuple[nn.Module, ...]
    queries: tuple[nn.Module, ...]  # self-attention of the queries
    cross: tuple[nn.Module, ...]  # cross-attention from the queries to the tokens
    holders: tuple[nn.Module, ...]  # the parents of all these modules, with the projections that feed them
    # Number of detection tokens at the end of a sequence without a decoder; None: the class token, the first, instead.
    objects: int | None = 0

    @property
    def samples(self) -> bool:
        """Whether cross-attention is deformable: queries read a few points in place of whole maps."""
        return any(_samples(module) for module in self.cross)


def attention_plan(view: nn.Module, family: str, class_token: bool = False) -> AttentionPlan:
    """Find the attention of a private view, and have it return its weights; with a class token, the encoder's.

    The view's attention is set to "eager", the implementation that computes the matrix, and its modules return the
    weights of each head.

    Raises:
        MethodError: if the model has no such attention.
    """
    network: Any = view
    config = getattr(network, "config", None)
    if config is not None and hasattr(config, "_attn_implementation"):
        config._attn_implementation = "eager"
    encoder, queries, cross = (
        _matching(view, pattern) for pattern in (CLASS_TOKEN if class_token else ENCODER, QUERIES, CROSS)
    )
    objects = None if class_token and encoder else 0 if cross else int(getattr(config, "num_detection_tokens", 0))
    if objects == 0 and not cross:
        raise MethodError(
            f"this {family} model has no decoder whose queries attend to the image: use a method that reads gradients, "
            "e.g. 'odam'"
        )
    encoder = {name: module for name, module in encoder.items() if not _samples(module)}
    modules = {**encoder, **queries, **cross}
    for name, module in modules.items():
        if name.endswith(".attn_drop"):  # of timm: the matrix passes through it if it is not fused
            vars(view.get_submodule(name.rpartition(".")[0]))["fused_attn"] = False
        elif isinstance(module, nn.MultiheadAttention):
            vars(module)["forward"] = partial(_eager, module)
        elif not _samples(module) and _ask not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_ask, with_kwargs=True)
    holders = tuple(view.get_submodule(name.rpartition(".")[0]) for name in modules)
    return AttentionPlan(tuple(encoder.values()), tuple(queries.values()), tuple(cross.values()), holders, objects)


def _matching(view: nn.Module, pattern: re.Pattern[str]) -> dict[str, nn.Module]:
    """The innermost modules whose names match."""
    modules = {name: module for name, module in view.named_modules() if pattern.search(name)}
    return {name: m for name, m in modules.items() if not any(other.startswith(f"{name}.") for other in modules)}


def _ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Pre-hook that requests the weights of attention that returns them on request only."""
    optional = "output_attentions" in inspect.signature(module.forward).parameters
    return args, {**kwargs, "output_attentions": True} if optional else kwargs


def _eager(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """PyTorch's attention, and the weights [B, H, Q, K] of each head, which PyTorch does not return."""
    if options.get("key_padding_mask") is not None:
        raise MethodError("attention methods: attention to padded tokens is not supported here: use 'odam'")
    assert attention.in_proj_weight is not None
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    heads = []
    for tokens, weight, bias in zip((query, key, value), attention.in_proj_weight.chunk(3), biases, strict=True):
        tokens = tokens if attention.batch_first else tokens.transpose(0, 1)
        heads.append(linear(tokens, weight, bias).unflatten(2, (attention.num_heads, -1)).transpose(1, 2))
    q, k, v = heads  # [B, H, tokens, D]
    logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if (mask := options.get("attn_mask")) is not None:
        mask = mask.unflatten(0, logits.shape[:2]) if mask.ndim == 3 else mask  # [B * H, Q, K] or [Q, K]
        logits = logits.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    weights = logits.softmax(dim=3)
    mixed = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return mixed if attention.batch_first else mixed.transpose(0, 1), weights


def _samples(module: nn.Module) -> bool:
    return hasattr(module, "sampling_offsets")


def sampling(module: nn.Module, record: Record) -> AbstractContextManager[None] | None:
    """A context in which each forward of deformable attention calls `record`; None for other attention."""
    return _recorded(module, record) if _samples(module) else None


@contextmanager
def _recorded(module: Any, record: Record) -> Iterator[None]:
    """Record the arguments of the sampling function: the points, and the weights with their graph."""

    def note(shapes: Any, places: Tensor, weights: Tensor, points: Any = None) -> None:
        batch, queries, heads = weights.shape[:3]
        sizes = [(int(h), int(w)) for h, w in shapes]
        counts = points or [weights.shape[3:].numel() // len(sizes)] * len(sizes)
        levels = tuple((h, w, int(count)) for (h, w), count in zip(sizes, counts, strict=True))
        record(places.reshape(batch, queries, heads, -1, 2), weights, levels)

    def listen(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def sample(value: Tensor, shapes: Any, places: Tensor, weights: Tensor, *rest: Any, **more: Any) -> Tensor:
            note(shapes, places, weights, rest[0] if rest else None)
            return core(value, shapes, places, weights, *rest, **more)

        return sample

    with ExitStack() as stack:
        if hasattr(module, "attn"):  # transformers' Deformable DETR and RT-DETR: a module
            handle = module.attn.register_forward_pre_hook(lambda _, args: note(args[2], args[4], args[5]))
            stack.callback(handle.remove)
        elif hasattr(module, "ms_deformable_attn_core"):  # D-FINE: an attribute
            stack.callback(setattr, module, "ms_deformable_attn_core", module.ms_deformable_attn_core)
            module.ms_deformable_attn_core = listen(module.ms_deformable_attn_core)
        else:  # RT-DETRv2, RF-DETR, Ultralytics: a global function
            _rebind(module, listen)
            stack.callback(vars(module).pop, "forward")
        yield


def _rebind(module: Any, listen: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    """Replace the sampling function in a copy of this module's forward; other modules keep the original."""
    forward = module.forward.__func__
    name = next((name for name in SAMPLERS if name in forward.__globals__), None)
    if name is None:
        raise MethodError(
            f"attention methods: {type(module).__name__} has a sampling function that detcam does not know"
        )
    names = {**forward.__globals__, name: listen(forward.__globals__[name])}
    recording = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    vars(module)["forward"] = types.MethodType(recording, module)
