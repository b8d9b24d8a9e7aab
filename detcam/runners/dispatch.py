"""Choice of the runner that makes a method's maps."""

from detcam.errors import InputError, LayerError, MethodError
from detcam.methods import AnyMethod, Method, SweepMethod
from detcam.methods.attention import AttentionMethod
from detcam.methods.combination import Combination
from detcam.methods.path import PathMethod
from detcam.methods.smoothing import Smoothing
from detcam.runners.attention import AttentionRunner
from detcam.runners.base import Layers, Request, Runner
from detcam.runners.combination import CombinationRunner
from detcam.runners.gradient import GradientRunner
from detcam.runners.path import PathRunner
from detcam.runners.perturbation import PerturbationRunner
from detcam.runners.smoothing import SmoothingRunner


def runner_for(method: AnyMethod, layers: Layers, request: Request) -> Runner:
    """The runner that makes the maps of a method.

    Args:
        method: of any kind.
        layers: the explainer's `layers`; "auto" is the preset that the method declares.
        request: the model, the target and the options.

    Raises:
        LayerError: for layers that do not exist, or for any with a method that has its own layers.
        TargetError: for a target that the method cannot explain.
        MethodError: for a method of an unknown kind, or one that cannot read this model.
    """
    if isinstance(method, Smoothing):
        return SmoothingRunner(method, runner_for(method.method, layers, request), request.model_run)
    if isinstance(method, Combination):
        if layers != "auto":
            raise LayerError(f"method {method.name!r} names its own layers: leave layers out")
        parts = [runner_for(part.method, part.layers, request) for part in method.parts]
        return CombinationRunner(method, parts, request)
    if isinstance(method, AttentionMethod):
        if layers != "auto":
            raise LayerError(f"method {method.name!r} reads attention, which has its own layers: leave layers out")
        return AttentionRunner(method, request)
    chosen = method.layers if layers == "auto" else layers
    plan = request.plan_of(chosen)
    if isinstance(method, SweepMethod):
        return PerturbationRunner(method, plan, request, start_runner(method.starts_from, layers, request))
    if isinstance(method, PathMethod):
        return PathRunner(method, plan, request, complete=chosen == "stem")
    if isinstance(method, Method):
        return GradientRunner(method, plan, request)
    raise MethodError(f"method {method.name!r} is of no kind that an explainer knows: derive it from Method")


def start_runner(method: AnyMethod | None, layers: Layers, request: Request) -> Runner | None:
    """The runner of the maps that a sweep starts from; None without such a method, or if the model cannot have it."""
    try:
        return None if method is None else runner_for(method, layers, request)
    except InputError:
        return None
