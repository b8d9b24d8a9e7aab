"""Contenders: methods at layers, and the baselines beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from detcam.errors import InputError
from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.methods import METHODS, AnyMethod, Combination, SweepMethod, get_method
from detcam.methods.attention import AttentionMethod

BASELINES = ("noise", "box", "gaussian", "eigencam")
NEEDS_AN_ARGUMENT = ("captum",)  # `captum` alone is not a method: `captum:NAME`
PER_CHANNEL = ("scorecam", "sscam", "iscam", "ablationcam")  # a forward for each channel: left out by `--quick`
QUICK = {"masks": 24, "cells": 8, "steps": 3, "samples": 2, "levels": 1}  # limits of costly parameters


@dataclass
class Sweep:
    """Length of a method's sweep, from its progress: a count, so that decisions do not depend on the clock."""

    backwards: bool = False  # whether each forward has a backward for every object
    forwards: int = 0  # of the longest sweep so far; 0 for a method without a sweep

    def __call__(self, done: int, total: int) -> None:
        """Progress callback, see `Explainer(progress=...)`."""
        self.forwards = max(self.forwards, total)

    def passes(self, objects: int) -> int:
        """Forwards and backwards for an image with this number of objects."""
        return self.forwards * (1 + objects if self.backwards else 1)


@dataclass(frozen=True)
class Contender:
    """A named way to explain an image."""

    name: str  # e.g. "odam @ level"
    explain: Callable[[Any], Explanation]  # image -> explanation of all its objects
    # File names of the images to take part in, for an expensive contender; None: all.
    only: frozenset[str] | None = None
    sweep: Sweep = field(default_factory=Sweep)  # its cost


def contenders(
    model: Any, methods: Sequence[str], layers: Sequence[str], quick: bool = False, **options: Any
) -> tuple[list[Contender], dict[str, str]]:
    """Every method at every layer, and the baselines.

    Methods are names, or "all"; layers are presets, "auto" (the method's own), or module names, with `+` between the
    names of modules that are read together. Methods that read no layers take part once, under their name alone;
    baselines take part at their default layers. With `quick`, methods that sweep have fewer masks, cells, steps and
    samples, and no method with a forward per channel takes part.

    Returns (contenders, left out): the second maps each contender that cannot explain this model to the reason. Raises
    an InputError for a method that does not exist, or if no contender is left.
    """
    names = [m for m in METHODS if m not in NEEDS_AN_ARGUMENT] if list(methods) == ["all"] else list(methods)
    taking_part: list[Contender] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys([*BASELINES, *names]):
        method = get_method(name)
        fixed = name in BASELINES or not reads_layers(method)
        places = ["auto"] if fixed else dict.fromkeys(method.layers if p == "auto" else p for p in layers)
        for layer in places:
            title = name if fixed else f"{name} @ {layer}"
            if quick and name in PER_CHANNEL:
                left_out[title] = "takes a forward for each channel: left out by --quick"
                continue
            place: Any = layer.split("+") if "+" in layer or "." in layer else layer
            sweep = Sweep(backwards="gradients" in method.reads)
            try:
                explainer = Explainer(model, hastened(method) if quick else method, place, progress=sweep, **options)
            except (InputError, ImportError) as error:
                left_out[title] = str(error)
            else:
                taking_part.append(Contender(title, explainer, sweep=sweep))
    if not taking_part:
        raise InputError(f"no method can explain this model: {next(iter(left_out.values()), 'give --methods')}")
    return taking_part, left_out


def reads_layers(method: AnyMethod) -> bool:
    """Whether the choice of layers changes the method's maps."""
    if isinstance(method, (Combination, AttentionMethod)):
        return False  # their parts or the attention fix the layers
    return not isinstance(method, SweepMethod) or "activations" in method.reads


def hastened(method: AnyMethod) -> AnyMethod:
    """The method with fewer masks, cells, steps and samples, where it has such parameters."""
    fewer = {p: min(QUICK[p], facts["default"]) for p, facts in method.parameters().items() if p in QUICK}
    return replace(method, **fewer) if fewer else method  # type: ignore[type-var]
