"""Semantic segmenters of segmentation-models-pytorch, with any encoder."""

from typing import Any

import torch
from torch import Tensor, nn

from detcam.adapters.base import ImageSize
from detcam.adapters.logits import PlainSegmenter
from detcam.adapters.shared.semantic import SemanticOutputs
from detcam.adapters.shared.stages import token_grid
from detcam.adapters.wrappers import INSTEAD
from detcam.errors import ModelError

STRIDE = 32  # sides must be multiples of it
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGMOIDS = ("Sigmoid", "LogSigmoid", "Hardsigmoid")
# Activations whose input has the classes of their output.
ACTIVATIONS = (*SIGMOIDS, "Softmax", "Softmax2d", "LogSoftmax", "Tanh", "Identity", "ArgMax", "Clamp")
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
PARTS = ("encoder", "decoder", "segmentation_head")


class SmpAdapter(PlainSegmenter):
    """Models of segmentation-models-pytorch.

    Models of the library have no preprocessing. `processor` is the encoder's `get_preprocessing_fn(...)`, from
    [H, W, 3] to float [H, W, 3]. Without a processor, pixels are divided by 255, and normalised with ImageNet's mean
    and standard deviation if the model was made with encoder weights. The image keeps its size, or its longest side
    becomes `imgsz` pixels; zeros at the right and the bottom pad it to a multiple of 32. A single class means
    foreground or background, as in the library's binary mode; with activation="sigmoid" several classes overlap.
    """

    family = "segmentation-models-pytorch"
    library = "segmentation_models_pytorch"
    models = (
        "Unet, Unet++, FPN, PSPNet, PAN, Linknet, MAnet, DeepLabV3, DeepLabV3+, UPerNet, SegFormer, DPT; any encoder"
    )
    install = 'pip install "detcam[smp]"'

    def __init__(self, module: Any, model: Any, imgsz: ImageSize | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        settings: Any = getattr(module, "config", None) or {}
        normalised = processor is None and settings.get("encoder_weights")
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalised else ((0.0,), (1.0,))
        self._prepared_by(imgsz, processor, mean, std, STRIDE)
        head = module.segmentation_head.named_modules(prefix="segmentation_head")
        classifier, last = [part for part in head if isinstance(part[1], CONVOLUTIONS)][-1]
        activation = list(module.segmentation_head.modules())[-1]
        classes = last.out_channels
        self.binary = classes == 1
        self.multilabel = not self.binary and type(activation).__name__ in SIGMOIDS
        names = ["background", "foreground"] if self.binary else [f"class {i}" for i in range(classes)]
        sizes = (part.img_size for part in module.modules() if getattr(part, "strict_img_size", False))
        self.least = next(sizes, (4 * STRIDE, 4 * STRIDE))  # the minimum of PAN
        self.plans = {"level": ("decoder",), "evidence": _stages_read(module, self.blank()[None]) or ("decoder",)}
        self._watch(classifier, dict(enumerate(names)))
        self._activated: list[tuple[Tensor, Tensor]] = []
        if type(activation).__name__ in ACTIVATIONS:
            activation.register_forward_hook(lambda module, args, output: self._activated.append((args[0], output)))

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error for a part of a model."""
        missing = [part for part in PARTS if not isinstance(getattr(model, part, None), nn.Module)]
        if missing:
            raise ModelError(f"{type(model).__name__} has no {missing[0]}: give a whole model, e.g. smp.Unet(...)")
        return model

    def grids(self, tokens: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """See `Adapter.grids`: the patches of an encoder, row by row, after its class token if there is one."""
        return token_grid(tokens, [(-(-size[0] // side), -(-size[1] // side)) for side in (4, 8, 14, 16, 32)])

    def forward(self, batch: Tensor, max_det: int) -> SemanticOutputs:
        """See `Adapter.forward`: the logits before the activation, if the model has one."""
        outputs = super().forward(batch, max_det)
        return SemanticOutputs(self._with_background(outputs.logits), self._with_background(outputs.full))

    def _run(self, batch: Tensor) -> Tensor:
        self._activated.clear()
        output = self.module(batch)
        output = output[0] if isinstance(output, tuple) else output  # (masks, class logits)
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            raise ModelError(
                f"{type(self.module).__name__} puts out a {type(output).__name__}, not logits [B, C, H, W]: {INSTEAD}"
            )
        entered = next((entered for entered, left in self._activated if left is output), None)
        return output if entered is None else entered

    def _with_background(self, logits: Tensor) -> Tensor:
        """Logits of binary mode with a background logit of 0, so that a softmax equals the sigmoid."""
        return torch.cat([torch.zeros_like(logits), logits], dim=1) if self.binary else logits


def _stages_read(network: Any, blank: Tensor) -> tuple[str, ...]:
    """The modules inside the encoder whose outputs are the maps that the decoder reads, found by one small forward.

    Empty if the encoder does not take `blank` [1, C, H, W], or computes its maps outside of modules.
    """
    ran: list[tuple[str, Any]] = []
    put_out: list[Tensor] = []
    maps: list[Tensor] = []

    def note(name: str) -> Any:
        return lambda module, args, output: ran.append((f"encoder.{name}", output))

    def cut(module: nn.Module, args: object, output: list[Tensor]) -> list[Tensor]:
        put_out.extend(output)
        maps.extend(tensor.detach().requires_grad_() for tensor in output)
        return maps

    handles = [part.register_forward_hook(note(name)) for name, part in network.encoder.named_modules() if name]
    handles.append(network.encoder.register_forward_hook(cut))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            output = network(blank)
            masks = output[0] if isinstance(output, tuple) else output
            gradients = torch.autograd.grad(masks.sum(), maps, allow_unused=True)
    except (RuntimeError, AssertionError, ValueError, AttributeError):
        return ()
    finally:
        for handle in handles:
            handle.remove()
    names = []
    for tensor, gradient in zip(put_out, gradients, strict=True):
        makers = [name for name, output in ran if output is tensor]
        if gradient is not None and makers:
            names.append(makers[-1])  # the outermost
    return tuple(names)
