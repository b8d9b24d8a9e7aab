"""The registry of methods: from a name to the class that computes its maps."""

from __future__ import annotations

from detcam.errors import MethodError, nearest
from detcam.methods.activation import EigenCAM
from detcam.methods.base import AnyMethod, Method, PooledMethod, SweepMethod, parameter
from detcam.methods.baseline import BoxGaussian, FilledBox, Noise
from detcam.methods.channels import AblationCAM, ReciproCAM
from detcam.methods.gradient import ODAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from detcam.methods.perturbation import DRISE, ISCAM, RISE, SSCAM, Occlusion, ScoreCAM

GRADIENT = (ODAM, HiResCAM, GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM)
SWEEPS = (RISE, DRISE, Occlusion, ScoreCAM, SSCAM, ISCAM, AblationCAM, ReciproCAM)
BASELINES = (Noise, BoxGaussian, FilledBox)

METHODS: dict[str, type[AnyMethod]] = {method.name: method for method in (*GRADIENT, EigenCAM, *SWEEPS, *BASELINES)}
DEFAULT = "odam"


def get_method(method: str | AnyMethod) -> AnyMethod:
    """The method of that name ("auto" is the default method) with its default parameters, or the given instance itself.

    Raises:
        MethodError: if no method has that name.
    """
    if isinstance(method, AnyMethod):
        return method
    name = DEFAULT if method == "auto" else str(method).lower()
    if name not in METHODS:
        raise MethodError(f"method {method!r} does not exist: {nearest(name, METHODS)}")
    return METHODS[name]()


__all__ = ["DEFAULT", "METHODS", "AnyMethod", "Method", "PooledMethod", "SweepMethod", "get_method", "parameter"]
