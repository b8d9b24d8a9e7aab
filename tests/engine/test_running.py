"""While a view runs, nothing is checkpointed or compiled, in one thread or several; afterwards torch is as before."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from detcam.engine import Capture, running

VIEW = nn.Linear(1, 1)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_runs_once(reentrant: bool) -> None:
    runs: list[int] = []

    def square(x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        return x**2

    leaf = torch.tensor([3.0], requires_grad=True)
    for context, expected in ((True, 1), (False, 2)):
        runs.clear()
        if context:
            with running(VIEW):
                output = checkpoint.checkpoint(square, leaf, use_reentrant=reentrant)
        else:
            output = checkpoint.checkpoint(square, leaf, use_reentrant=reentrant)
        output.backward()
        assert len(runs) == expected
    assert float(leaf.grad) == 12  # type: ignore[arg-type]


def test_compiled_parts_are_not_compiled() -> None:
    graphs: list[Any] = []
    compiled = torch.compile(lambda x: x + 1, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    with running(VIEW):
        assert float(compiled(torch.ones(()))) == 2
    assert not graphs
    compiled(torch.ones(()))
    assert len(graphs) == 1


def test_the_last_thread_restores_torch() -> None:
    originals, steps = dict(vars(checkpoint)), [threading.Event() for _ in range(3)]

    def first() -> None:
        with running(VIEW):
            steps[0].set()
            steps[1].wait()
        steps[2].set()

    thread = threading.Thread(target=first)
    thread.start()
    steps[0].wait()
    with running(VIEW):
        steps[1].set()
        steps[2].wait()
        assert vars(checkpoint) != originals
    thread.join()
    assert vars(checkpoint) == originals


def test_an_exception_restores_torch() -> None:
    originals = dict(vars(checkpoint))
    with pytest.raises(KeyError), running(VIEW):
        raise KeyError
    assert vars(checkpoint) == originals


def test_hooks_of_the_library_stay_and_those_of_detcam_go() -> None:
    """transformers adds the hooks that record hidden states once, in the first forward, and marks the model."""
    view, kept = nn.Linear(1, 1), nn.Linear(1, 1)
    with running(kept):
        kept.register_forward_hook(lambda module, args, output: None)
    assert len(kept._forward_hooks) == 1
    for leave in (False, True):
        try:
            with running(view):
                Capture({"": view}).__enter__()
                assert len(view._forward_hooks) == 1
                if leave:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert not view._forward_hooks
