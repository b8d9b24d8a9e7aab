"""The registry of methods: from a name to the class that computes its maps."""

from __future__ import annotations

from detcam.errors import MethodError, nearest
from detcam.methods.activation import FEM, KPCACAM, DeepFeatureFactorization, EigenCAM, RandomCAM
from detcam.methods.base import AnyMethod, Method, PooledMethod, SweepMethod, parameter
from detcam.methods.baseline import BoxGaussian, FilledBox, Noise
from detcam.methods.captum_attribution import Captum
from detcam.methods.channels import AblationCAM, ReciproCAM
from detcam.methods.gradient import (
    CAM,
    ODAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from detcam.methods.layered import FullGrad, GuidedGradCAM, SmoothGradCAMPlusPlus
from detcam.methods.perturbation import DRISE, ISCAM, RISE, SSCAM, Occlusion, ScoreCAM
from detcam.methods.pixel import Gradient, GradientXInput, GuidedBackprop, IntegratedGradients, SmoothGrad
from detcam.methods.shapley import ShapleyCAM
from detcam.methods.spatial import GCAME, ElementWiseGradCAM, SSGradCAM, SSGradCAMPlusPlus

GRADIENT = (
    ODAM, HiResCAM, GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, CAM, ShapleyCAM, EigenGradCAM, ElementWiseGradCAM,
    SSGradCAM, SSGradCAMPlusPlus, GCAME,
)  # fmt: skip
ACTIVATION = (EigenCAM, KPCACAM, FEM, DeepFeatureFactorization)
SWEEPS = (RISE, DRISE, Occlusion, ScoreCAM, SSCAM, ISCAM, AblationCAM, ReciproCAM, SmoothGradCAMPlusPlus)
PIXEL = (
    Gradient, GradientXInput, SmoothGrad, IntegratedGradients, FullGrad, GuidedBackprop, GuidedGradCAM, Captum,
)  # fmt: skip
BASELINES = (Noise, BoxGaussian, FilledBox, RandomCAM)

METHODS: dict[str, type[AnyMethod]] = {
    method.name: method for method in (*GRADIENT, *ACTIVATION, *SWEEPS, *PIXEL, *BASELINES)
}
DEFAULT = "odam"


def get_method(method: str | AnyMethod) -> AnyMethod:
    """The method of that name with its default parameters, or the given instance itself.

    "auto" is the default method; "captum:NAME" is Captum's attribution of that name.

    Raises:
        MethodError: if no method has that name.
    """
    if isinstance(method, AnyMethod):
        return method
    kind, colon, attribution = str(method).partition(":")
    if colon and kind.lower() == Captum.name:
        return Captum(attribution)
    name = DEFAULT if method == "auto" else str(method).lower()
    if name not in METHODS:
        hint = nearest(name.replace("pp", "++"), METHODS)  # as others spell it
        raise MethodError(f"method {method!r} does not exist: {hint}")
    return METHODS[name]()


__all__ = ["DEFAULT", "METHODS", "AnyMethod", "Method", "PooledMethod", "SweepMethod", "get_method", "parameter"]
