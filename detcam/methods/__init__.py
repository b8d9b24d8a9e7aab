"""The registry of methods: from a name to the class that computes its maps."""

from importlib.metadata import entry_points

from detcam.errors import MethodError, nearest
from detcam.methods.activation import FEM, KPCACAM, DeepFeatureFactorization, EigenCAM, RandomCAM
from detcam.methods.attention import ChefersRelevance, RawAttention, Rollout, SamplingPoints
from detcam.methods.base import AnyMethod, Method, PooledMethod, SweepMethod, parameter
from detcam.methods.baseline import BoxGaussian, FilledBox, Noise
from detcam.methods.captum_attribution import Captum
from detcam.methods.channels import AblationCAM, ReciproCAM
from detcam.methods.combination import HOW, Combination, Fused, Part
from detcam.methods.finer import FinerCAM
from detcam.methods.gradient import CAM, ODAM, EigenGradCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from detcam.methods.layered import FullGrad, GuidedGradCAM, SmoothGradCAMPlusPlus
from detcam.methods.path import LayerIG
from detcam.methods.perturbation import DRISE, ISCAM, RISE, SSCAM, Occlusion, ScoreCAM
from detcam.methods.pixel import Gradient, GradientXInput, GuidedBackprop, IntegratedGradients, SmoothGrad
from detcam.methods.search import Search
from detcam.methods.shapley import ShapleyCAM
from detcam.methods.smoothing import WRAPPERS, Augmented, NoiseTunnel, PrincipalComponent
from detcam.methods.spatial import GCAME, ElementWiseGradCAM, SSGradCAM, SSGradCAMPlusPlus
from detcam.methods.superpixels import DCLOSE

GRADIENT = (
    ODAM, HiResCAM, GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, CAM, ShapleyCAM, EigenGradCAM, ElementWiseGradCAM,
    SSGradCAM, SSGradCAMPlusPlus, GCAME, FinerCAM, Fused, LayerIG,
)  # fmt: skip
ACTIVATION = (EigenCAM, KPCACAM, FEM, DeepFeatureFactorization)
SWEEPS = (
    RISE, DRISE, DCLOSE, Search, Occlusion, ScoreCAM, SSCAM, ISCAM, AblationCAM, ReciproCAM, SmoothGradCAMPlusPlus,
)  # fmt: skip
PIXEL = (
    Gradient, GradientXInput, SmoothGrad, IntegratedGradients, FullGrad, GuidedBackprop, GuidedGradCAM, Captum,
)  # fmt: skip
ATTENTION = (RawAttention, Rollout, ChefersRelevance, SamplingPoints)
BASELINES = (Noise, BoxGaussian, FilledBox, RandomCAM)

METHODS: dict[str, type[AnyMethod]] = {
    method.name: method for method in (*GRADIENT, *ACTIVATION, *SWEEPS, *PIXEL, *ATTENTION, *BASELINES)
}
SECTIONS: dict[str, tuple[type[AnyMethod], ...]] = {
    "Weights and gradients": GRADIENT,
    "Activations only": ACTIVATION,
    "Forwards of changed images or activations": SWEEPS,
    "Pixels": PIXEL,
    "Attention": ATTENTION,
    "Baselines": BASELINES,
    "Combinations of several maps, or of one map over changed images": (Combination, *WRAPPERS.values()),
}  # for `detcam methods` and docs/methods.md
VIEWS = {"why": ("layerig", "stem"), "where": ("odam", "level")}  # question -> the method and layers that answer it
DEFAULT = VIEWS["why"][0]


def plugins() -> dict[str, type[AnyMethod]]:
    """The methods of other installed packages, by name, loaded from their entry points of group "detcam.methods".

    Raises:
        MethodError: if an entry point is not a method, or has the name of a method of detcam.
    """
    methods: dict[str, type[AnyMethod]] = {}
    for point in entry_points(group="detcam.methods"):
        method = point.load()
        if not (isinstance(method, type) and issubclass(method, AnyMethod)) or method.name in METHODS:
            raise MethodError(
                f"plug-in {point.value!r}: expected a class derived from a method, with a name that is not taken"
            )
        methods[method.name] = method
    return methods


def automatic(layers: object) -> str:
    """The name of the method that "auto" stands for at an explainer's `layers`.

    The view "why" at "auto" and "stem"; the method of the view "where", which suits any layers, at others.
    """
    why, where = VIEWS["why"], VIEWS["where"]
    return why[0] if isinstance(layers, str) and layers in ("auto", why[1]) else where[0]


def get_method(method: str | AnyMethod, layers: object = "auto") -> AnyMethod:
    """The method of that name with its default parameters, or the given instance itself; also of `plugins`.

    "auto" is what suits the `layers`, see `automatic`; "captum:NAME" is Captum's attribution of that name.
    "product:odam@evidence,odam@level" and the like, also with "mean" and "max", combine methods, each at its own layers
    (several with "+" between); "noisy:odam", "augmented:odam" and "eigen:gradcam" smooth a method.

    Raises:
        MethodError: if no method has that name.
    """
    if isinstance(method, AnyMethod):
        return method
    if not isinstance(method, str):
        raise MethodError(f"method: expected a name or a method, got a {type(method).__name__}: see `detcam methods`")
    kind, colon, attribution = method.partition(":")
    if colon and kind.lower() == Captum.name:
        return Captum(attribution)
    how = next((how for how in HOW if colon and how == kind.lower()), None)
    if how is not None:
        return Combination([_part(part) for part in attribution.split(",")], how)
    if colon and kind.lower() in WRAPPERS:
        return WRAPPERS[kind.lower()](get_method(attribution, layers))
    name = automatic(layers) if method == "auto" else method.lower()
    if name in METHODS:
        return METHODS[name]()
    others = plugins()
    if name not in others:
        hint = nearest(name.replace("pp", "++"), [*METHODS, *others])  # as others spell it
        raise MethodError(f"method {method!r} does not exist: {hint}")
    return others[name]()


def view_of(method: str, layers: object) -> str | None:
    """The view, "why" or "where", that a method by name is at an explainer's `layers`; None for any other."""
    name = automatic(layers) if method == "auto" else method.lower()
    places = METHODS[name].layers if layers == "auto" and name in METHODS else layers
    return next((view for view, answer in VIEWS.items() if answer == (name, places)), None)


def _part(text: str) -> Part:
    """A method of a combination, as `method@layers`."""
    name, _, layers = text.partition("@")
    places = tuple(layers.split("+")) if "+" in layers else layers or "auto"
    return Part(get_method(name, places), places)


__all__ = [
    "DEFAULT", "METHODS", "SECTIONS", "VIEWS", "WRAPPERS", "AnyMethod", "Augmented", "Combination", "Method",
    "NoiseTunnel", "Part", "PooledMethod", "PrincipalComponent", "SweepMethod", "automatic", "get_method", "parameter",
    "plugins", "view_of",
]  # fmt: skip
