"""Captum's attributions by name: an object's score is a Captum forward function."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.engine.sweeps import Probe
from detcam.errors import MethodError, nearest
from detcam.methods.base import MOST, SweepMethod
from detcam.methods.pixel import GuidedBackprop, report

DEFAULT = "IntegratedGradients"
PATCHES = 8  # patches down and across the image, for attributions that switch patches on and off
SAMPLES = 4 * PATCHES**2  # of the regressions behind LIME and Kernel SHAP: a few for each patch
TOGETHER = 4  # images in a forward
NEEDLESS = {
    "FeaturePermutation": "it permutes the images of a batch",
    "ShapleyValues": f"the exact values of {PATCHES**2} patches take 2^{PATCHES**2} forwards",
}
FAILURES = (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Captum(SweepMethod):
    """Any attribution of Captum to the pixels of the network's input, by name: `method="captum:DeepLift"`.

    The result is summed over the colours, with its sign. Arguments that Captum needs are filled in: a blank
    image (zeros) as the baseline, and an image of the mean colour beside it where several are wanted; 8 x 8 patches
    as the features that are switched on and off. Captum's limits remain: its DeepLift rules and its guided
    backpropagation know ReLU and its kin only, and pass SiLU or GELU like a plain gradient. Modules that a model calls
    several times in one forward, which Captum's rules cannot tell apart, are passed over likewise.

    Kokhlikyan et al. 2020, "Captum: A unified and generic model interpretability library for PyTorch"; each
    attribution's source is in Captum's documentation.

    Args:
        attribution: a class of `captum.attr` that takes a model or a forward function and nothing else.
        seed: of the random numbers that an attribution draws.
        options: arguments for the attribution's `attribute` method, e.g. n_samples=500.

    Raises:
        MethodError: if Captum is not installed or has no such attribution, or the attribution cannot be used.
    """

    name = "captum"
    formula = "ReLU(sum_colour attribution), by name: captum:DeepLift, captum:GradientShap, captum:KernelShap, ..."
    source = "Kokhlikyan et al. 2020, arXiv:2009.07896"
    reads = "input gradients, forwards"
    passes = "2 F + N times the attribution's own F and B"

    def __init__(self, attribution: str = DEFAULT, seed: int = 0, **options: Any) -> None:
        self._kind = _attribution(attribution)
        self._seed, self._options = seed, options
        self.name = f"captum:{self._kind.__name__}"  # type: ignore[misc]
        if self._kind.__name__ in ("GuidedBackprop", "Deconvolution"):
            self.caution = GuidedBackprop.caution  # type: ignore[misc]

    @classmethod
    def parameters(cls) -> dict[str, dict[str, Any]]:
        """See `AnyMethod.parameters`; the attribution is part of the name, and its options are Captum's."""
        return {"seed": {"default": 0, "range": [0, MOST]}}

    def sweep(self, probe: Probe, layer: str) -> Tensor:
        """See `SweepMethod.sweep`; a MethodError if Captum cannot attribute this model's scores."""
        scalar = _Scalar(probe)
        image = probe.image[None].contiguous()  # Captum flattens its input
        maps = []
        with torch.enable_grad(), _own_random_numbers(self._seed), warnings.catch_warnings():
            count = _hide_repeated(probe)
            try:
                warnings.simplefilter("ignore")  # Captum announces every hook that it sets
                attribution = self._kind(scalar)
                options = {**_filled_in(attribution, image), **self._options}
                for scalar.column in range(count):
                    found = attribution.attribute(image.clone(), **options)
                    maps.append(found.detach()[0].float().sum(dim=0))
                    report(probe, scalar.column + 1, count)
            except FAILURES as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise MethodError(
                    f"method {self.name}: Captum cannot attribute this model's scores ({reason}): use another method"
                ) from error
        return torch.stack(maps)


def _attribution(name: str) -> Any:
    """The class of `captum.attr` of that name."""
    try:
        import captum.attr
    except ImportError:
        raise MethodError('method captum: Captum is not installed: pip install "detcam[pixels]"') from None
    usable = {
        key.lower(): kind
        for key, kind in vars(captum.attr).items()
        if inspect.isclass(kind) and _needs_only_a_model(kind) and key not in NEEDLESS
    }
    if name.lower() not in usable:
        why = next((reason for key, reason in NEEDLESS.items() if key.lower() == name.lower()), None)
        if why is not None:
            raise MethodError(f"method captum:{name} is not offered: {why}")
        names = [f"captum:{kind.__name__}" for kind in usable.values()]
        raise MethodError(f"method captum:{name} does not exist: {nearest(f'captum:{name}', names)}")
    return usable[name.lower()]


def _needs_only_a_model(kind: Any) -> bool:
    wanted = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return hasattr(kind, "attribute") and wanted in (["model"], ["forward_func"])


def _filled_in(attribution: Any, image: Tensor) -> dict[str, Any]:
    """Arguments that attributions ask for, for an image [1, 3, H, W]."""
    _, colours, height, width = image.shape
    blank = torch.zeros_like(image)
    grey = blank + image.mean(dim=(2, 3), keepdim=True)
    rows, columns = (torch.arange(side, device=image.device) * PATCHES // side for side in (height, width))
    patch = colours, max(height // PATCHES, 1), max(width // PATCHES, 1)
    wanted = inspect.signature(attribution.attribute).parameters
    known = {
        "baselines": blank
        if "baselines" in wanted and wanted["baselines"].default is None
        else torch.cat([blank, grey]),
        "feature_mask": (rows[:, None] * PATCHES + columns).expand(1, colours, height, width).contiguous(),
        "sliding_window_shapes": patch,
        "strides": patch,
        "perturbations_per_eval": TOGETHER,
        "internal_batch_size": TOGETHER,
        "return_input_shape": True,
    }
    if {"feature_mask", "return_input_shape"} <= set(wanted):  # LIME and Kernel SHAP
        known["n_samples"] = SAMPLES
    return {name: value for name, value in known.items() if name in wanted}


class _Scalar(nn.Module):
    """One score of the probe as a module: images [b, 3, H, W] -> [b]; it holds the model, for attributions' hooks."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.model = probe.module
        self._scores = probe.scores
        self.column = 0

    def forward(self, images: Tensor) -> Tensor:
        return self._scores(images)[:, self.column]


def _hide_repeated(probe: Probe) -> int:
    """Hide modules that run repeatedly from Captum, by a backward hook of no effect; the number of scores."""
    runs: dict[nn.Module, int] = {}
    leaves = [module for module in probe.module.modules() if not list(module.children())]

    def count(module: nn.Module, args: Any) -> None:
        runs[module] = runs.get(module, 0) + 1

    handles = [module.register_forward_pre_hook(count) for module in leaves]
    with torch.no_grad():
        scores = probe.scores(probe.image[None])
    for handle in handles:
        handle.remove()
    for module, times in runs.items():
        if times > 1:
            module.register_full_backward_hook(lambda *_: None)
    return scores.shape[1]


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Within, torch's and NumPy's global generators start from `seed`; afterwards they continue where they were."""
    state = np.random.get_state()  # noqa: NPY002 (Captum draws from it)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
