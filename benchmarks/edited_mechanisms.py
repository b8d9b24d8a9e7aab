"""Ways to compute that people's layers use, and that hooks or a walk through autograd's graph may stumble over.

Modules from [B, C, h, w] to the same. Under `eagerly` they compute the same values by plain operations, for a reference
that autograd differentiates without any of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool2d, conv2d, pad, silu
from torch.utils.checkpoint import checkpoint


class Mechanism(nn.Module):
    """A convolution with SiLU beside a skip, run in some way."""

    eager = False

    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.SiLU())

    def run(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.body(x) if self.eager else self.run(x))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.sigmoid() + x * x.sigmoid() * (1 - x.sigmoid()))


class FastSwish(torch.autograd.Function):
    """Differentiable once, with a second output that has no gradient."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * x.sigmoid(), x > 0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, unused: Tensor) -> Tensor:
        return Swish.backward(ctx, gradient)


@torch.library.custom_op("edited_yolo::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


swish.register_autograd(Swish.backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class PythonFunction(Mechanism):
    def forward(self, x: Tensor) -> Tensor:
        return silu(x) if self.eager else Swish.apply(x)


class FunctionOnce(Mechanism):
    def forward(self, x: Tensor) -> Tensor:
        return silu(x) if self.eager else FastSwish.apply(x)[0]


class CustomOperator(Mechanism):
    def forward(self, x: Tensor) -> Tensor:
        return silu(x) if self.eager else swish(x)


class ReentrantCheckpoint(Mechanism):
    def run(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=True)


class Checkpoint(Mechanism):
    def run(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)


class Scripted(Mechanism):
    """TorchScript, whose layers and rectifiers are no modules of Python."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.scripted = torch.jit.script(self.body)

    def forward(self, x: Tensor) -> Tensor:
        if not self.eager:
            return x + self.scripted(x)
        return x + silu(conv2d(x, self.body[0].weight, self.body[0].bias, padding=1))


class Compiled(Mechanism):
    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.compiled = torch.compile(self.body, backend="aot_eager")

    def run(self, x: Tensor) -> Tensor:
        return self.compiled(x)


class InPlace(Mechanism):
    """In-place operations on a tensor and on a view of it; the values after them count."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body[0](x)
        if self.eager:
            return x + silu(y)
        half = y[:, ::2]
        half.mul_(half.sigmoid())
        silu(y[:, 1::2], inplace=True)
        return y.add_(x)


class Views(Mechanism):
    """Strides, windows and expanded axes without a copy."""

    def forward(self, x: Tensor) -> Tensor:
        padded = pad(x, (1, 1))
        mean = avg_pool2d(padded, (1, 3), 1) if self.eager else padded.unfold(3, 3, 1).mean(-1)
        if not self.eager:
            mean = mean.as_strided(mean.shape, mean.stride()).movedim(1, -1).unsqueeze(0).expand(2, -1, -1, -1, -1)
            mean = mean[1].movedim(-1, 1)
        return x + self.body(mean)


class GradientHook(Mechanism):
    """Doubles the gradient in a tensor's hook, as gradient reversal does; so does the reference."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: 2 * gradient)
        return x + y


class ModuleHook(Mechanism):
    """A module's backward hook, which torch makes a function in Python of."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.body[0].register_full_backward_hook(triple)


def triple(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(3 * gradient for gradient in inputs)


class SpectralNorm(Mechanism):
    """A weight that is computed in each forward, and kept as an attribute with its graph."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.body[0] = nn.utils.spectral_norm(self.body[0])


class FakeQuantised(Mechanism):
    """As while training for int8: rounded in the forward, straight through in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127))


class Int8(Mechanism):
    """A gate in int8, where gradients end, beside a skip."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.gate = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(c, c)), {nn.Linear}, torch.qint8)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)).float()).to(x)[:, :, None, None].sigmoid()


MECHANISMS: tuple[type[Mechanism], ...] = (
    PythonFunction, FunctionOnce, CustomOperator, ReentrantCheckpoint, Checkpoint, Scripted, Compiled, InPlace, Views,
    GradientHook, ModuleHook, SpectralNorm, FakeQuantised, Int8,
)  # fmt: skip


@contextmanager
def eagerly() -> Iterator[None]:
    """Context in which all mechanisms compute by plain operations."""
    Mechanism.eager = True
    try:
        yield
    finally:
        Mechanism.eager = False
