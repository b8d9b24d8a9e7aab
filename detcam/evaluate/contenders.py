"""Who takes part: methods at layers, and the baselines that every honest table has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from detcam.errors import InputError
from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.methods import METHODS, AnyMethod, Combination, SweepMethod, get_method
from detcam.methods.attention import AttentionMethod

BASELINES = ("noise", "box", "gaussian", "eigencam")
NEEDS_AN_ARGUMENT = ("captum",)  # no method by itself: `captum:NAME`
PER_CHANNEL = ("scorecam", "sscam", "iscam", "ablationcam")  # a forward for each channel: not with `--quick`
QUICK = {"masks": 24, "cells": 8, "steps": 3, "samples": 2, "levels": 1}  # parameters that cost forwards


@dataclass
class Sweep:
    """How long a method's sweep is, as its progress tells: a count, because a clock would decide otherwise each time.

    Attributes:
        backwards: whether each of its forwards has a backward for every object.
        forwards: of the longest sweep so far; 0 for a method that does not sweep.
    """

    backwards: bool = False
    forwards: int = 0

    def __call__(self, done: int, total: int) -> None:
        """What `Explainer(progress=...)` calls."""
        self.forwards = max(self.forwards, total)

    def passes(self, objects: int) -> int:
        """Forwards and backwards for a picture of so many objects."""
        return self.forwards * (1 + objects if self.backwards else 1)


@dataclass(frozen=True)
class Contender:
    """A way to explain a picture, under the name it has in the table.

    Attributes:
        name: e.g. "odam @ level".
        explain: from a picture to the explanation of all its objects.
        only: the file names of the pictures it takes part in, for one that is dear; None: all.
        sweep: how dear it is.
    """

    name: str
    explain: Callable[[Any], Explanation]
    only: frozenset[str] | None = None
    sweep: Sweep = field(default_factory=Sweep)


def contenders(
    model: Any, methods: Sequence[str], layers: Sequence[str], quick: bool = False, **options: Any
) -> tuple[list[Contender], dict[str, str]]:
    """Every method at every layer, and the baselines.

    Methods that read no layers take part once, under their bare name; baselines at the layers they choose themselves.

    Args:
        model: see `Explainer`.
        methods: names of methods; "all" for every one that there is.
        layers: presets, or names of modules with `+` between those that are read together.
        quick: fewer masks, cells, steps and samples in methods that sweep; none that takes a forward for each channel.
        options: of `Explainer`.

    Returns:
        (contenders, left out): the second names what this model cannot be explained with, and why.

    Raises:
        InputError: for a method that does not exist, or if none is left.
    """
    names = [m for m in METHODS if m not in NEEDS_AN_ARGUMENT] if list(methods) == ["all"] else list(methods)
    found: list[Contender] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys([*BASELINES, *names]):
        method = get_method(name)
        own = name in BASELINES or not reads_layers(method)
        for layer in ["auto"] if own else layers:
            title = name if own else f"{name} @ {layer}"
            if quick and name in PER_CHANNEL:
                left_out[title] = "takes a forward for each channel: left out by --quick"
                continue
            chosen: Any = layer.split("+") if "+" in layer or "." in layer else layer
            sweep = Sweep(backwards="gradients" in method.reads)
            try:
                explainer = Explainer(model, hastened(method) if quick else method, chosen, progress=sweep, **options)
            except (InputError, ImportError) as error:
                left_out[title] = str(error)
            else:
                found.append(Contender(title, explainer, sweep=sweep))
    if not found:
        raise InputError(f"no method can explain this model: {next(iter(left_out.values()), 'none was given')}")
    return found, left_out


def reads_layers(method: AnyMethod) -> bool:
    """Whether the choice of layers changes the method's maps."""
    if isinstance(method, (Combination, AttentionMethod)):
        return False  # they have layers of their own
    return not isinstance(method, SweepMethod) or "activations" in method.reads


def hastened(method: AnyMethod) -> AnyMethod:
    """The method with fewer masks, cells, steps and samples, where it has such parameters."""
    fewer = {p: min(QUICK[p], facts["default"]) for p, facts in method.parameters().items() if p in QUICK}
    return type(method)(**fewer) if fewer else method
