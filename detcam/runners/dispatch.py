"""From a method to the runner that makes its maps."""

from __future__ import annotations

from functools import partial

from detcam.errors import LayerError, MethodError
from detcam.methods import AnyMethod, Method, SweepMethod
from detcam.methods.attention import AttentionMethod
from detcam.methods.combination import Combination
from detcam.methods.smoothing import Smoothing
from detcam.runners.attention import AttentionRunner
from detcam.runners.base import Layers, Request, Runner, scalars_of
from detcam.runners.combination import CombinationRunner
from detcam.runners.gradient import GradientRunner
from detcam.runners.perturbation import PerturbationRunner, perturbation_target
from detcam.runners.smoothing import SmoothingRunner


def runner_for(method: AnyMethod, layers: Layers, request: Request) -> Runner:
    """The runner that makes the maps of a method.

    Args:
        method: of any kind.
        layers: the explainer's `layers`; "auto" is what the method declares.
        request: what is asked for.

    Raises:
        LayerError: for layers that do not exist, or that a combination was given.
        TargetError: for a target that the method cannot explain.
        MethodError: for a method of no known kind.
    """
    if isinstance(method, Smoothing):
        return SmoothingRunner(method, runner_for(method.method, layers, request), request.model_run)
    if isinstance(method, Combination):
        if layers != "auto":
            raise LayerError(f"method {method.name!r} names its own layers: leave layers out")
        return CombinationRunner(
            method, [runner_for(part.method, part.layers, request) for part in method.parts], request
        )
    if isinstance(method, AttentionMethod):
        if layers != "auto":
            raise LayerError(f"method {method.name!r} reads attention, which has its own layers: leave layers out")
        score = partial(scalars_of, request.adapter, request.target)
        return AttentionRunner(request.adapter, method, request.target, score)
    plan = request.plan_of(method.layers if layers == "auto" else layers)
    if isinstance(method, SweepMethod):
        target = perturbation_target(method, request.target, request.adapter)
        score = partial(scalars_of, request.adapter, target)
        return PerturbationRunner(method, plan, target, score, request)
    if isinstance(method, Method):
        return GradientRunner(method, plan, request)
    raise MethodError(f"method {method.name!r} is of no kind that an explainer knows: derive it from Method")
