"""Gradients of many objects in one pass equal those of a loop, within the memory asked for."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from detcam.engine.gradients import batched_gradients


@pytest.mark.parametrize("memory", [0, 70, 10**9])
def test_chunks_equal_a_loop(memory: int, seed: int) -> None:
    layer = nn.TransformerDecoderLayer(16, 4, 24, dropout=0.0, batch_first=True).eval().requires_grad_(False)
    maps = torch.randn(1, 16, 3, 5, requires_grad=True)
    unused = torch.randn(2, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule on the CPU: it would run one by one
        scalars = layer(torch.randn(1, 7, 16), maps.flatten(2).transpose(1, 2))[0, :, 3].tanh()
    chunks = list(batched_gradients(scalars, [maps, unused], memory, per_object=10))
    assert [len(objects) for objects, _ in chunks] == ([1] * 7 if memory == 0 else [7])
    assert torch.equal(torch.cat([objects for objects, _ in chunks]), torch.arange(7))
    together = torch.cat([gradients[0] for _, gradients in chunks])
    for i in range(7):
        alone = torch.autograd.grad(scalars[i], maps, retain_graph=True)[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)
    assert not torch.cat([gradients[1] for _, gradients in chunks]).any()


def test_memory_bounds_a_chunk(seed: int) -> None:
    leaf = torch.randn(10, requires_grad=True)
    sizes = [len(objects) for objects, _ in batched_gradients(leaf**2, [leaf], memory=45, per_object=10)]
    assert sizes == [4, 4, 2]
