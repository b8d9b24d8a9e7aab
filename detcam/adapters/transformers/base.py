"""Base of the transformers adapters: model classes, image processors and their sizes."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, ImageSize, sides_of
from detcam.errors import ModelError
from detcam.geometry import Geometry, white

STRIDE = 32  # sides are multiples of the largest stride: a hybrid encoder adds maps of neighbouring levels


class TransformersAdapter(Adapter):
    """Base of the adapters of transformers."""

    install = 'pip install "detcam[transformers]"'
    served: ClassVar[str]  # regular expression of the names of the library's classes that the family serves
    kinds: ClassVar[Mapping[str, Any]] = {}  # facts by architecture; empty: any architecture
    processor: Any  # the image processor
    resize: dict[str, Any]  # options of the processor, for the size of the input

    def __init__(self, module: Any, model: Any, imgsz: ImageSize | None = None, processor: Any = None) -> None:
        self.config = module.config
        self.names = {int(i): name for i, name in self.config.id2label.items()}
        super().__init__(module, model, imgsz, processor)

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a model of the family's classes in transformers, or derived from one."""
        bases = [base for base in type(model).__mro__ if base.__module__.split(".")[0] == "transformers"]
        return any(re.fullmatch(cls.served, base.__name__) for base in bases)

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: an error for architectures that are not in the table."""
        library = type(model).__module__.split(".")[0]
        kind = getattr(getattr(model, "config", None), "model_type", library)
        if cls.kinds and kind not in cls.kinds:
            raise ModelError(f"{type(model).__name__}: {kind!r} is not one of the architectures {', '.join(cls.kinds)}")
        return model

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: by the image processor; a fourth channel is 0 on padding, if there is padding."""
        data = self._processed(image)
        pixels = data["pixel_values"][0].to(self.device, self.dtype)
        network = resized = (pixels.shape[1], pixels.shape[2])
        if "pixel_mask" in data and not bool(data["pixel_mask"].all()):
            mask = data["pixel_mask"][0]
            resized = int(mask[:, 0].sum()), int(mask[0].sum())
            pixels = torch.cat([pixels, mask.to(pixels)[None]])
        return pixels, Geometry((image.shape[0], image.shape[1]), resized, (0, 0), network)

    def _processed(self, image: np.ndarray, **changes: Any) -> Any:
        """The output of the processor for an image, with some settings changed."""
        return self._run_processor(self.processor, image, **{**self.resize, **changes})

    def _run_processor(self, processor: Any, image: np.ndarray, **settings: Any) -> Any:
        image = self.fit(image)
        if image.dtype != np.uint8:
            image = image * np.float32(255 / white(image))  # processors expect 0 to 255
        if self.channels != 3:
            scales = {f"image_{name}": values for name, values in self.scales().items()}
            settings |= {"do_convert_rgb": False, **scales}
        return processor(images=image, input_data_format="channels_last", return_tensors="pt", **settings)

    def _pixels(self, image: np.ndarray, **changes: Any) -> Tensor:
        """[3, h, w] an image processed with some settings changed."""
        return self._processed(image, **changes)["pixel_values"][0].to(self.device, self.dtype)


def return_dicts(module: nn.Module) -> None:
    """Have all parts of a private view return dicts: some models fail otherwise."""
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if hasattr(config, "return_dict"):
            config.return_dict = True  # in the copy of the view


def checkpoint_processor(config: Any, loader: str = "AutoImageProcessor") -> Any:
    """The processor of a model's checkpoint, by a class of transformers, if it is on this machine, else None."""
    if not config._name_or_path:
        return None
    import transformers

    try:
        return getattr(transformers, loader).from_pretrained(
            config._name_or_path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError):
        return None


def default_processor(config: Any, architecture: str) -> Any:
    """The image processor of a model's checkpoint if it is on this machine, else of the class `architecture`."""
    import transformers

    return checkpoint_processor(config) or getattr(transformers, architecture)()


def size_of(processor: Any) -> dict[str, int]:
    """The size that a processor resizes to, without empty entries."""
    return {name: int(pixels) for name, pixels in dict(processor.size).items() if pixels is not None}


def sized(processor: Any, imgsz: ImageSize, stride: int = 1) -> dict[str, dict[str, int]]:
    """A processor's options for an input of `imgsz` pixels: the shorter side if the processor keeps the aspect."""
    sides, crops = sides_of(imgsz, stride), bool(getattr(processor, "do_center_crop", None))
    sizes = {"size": _scaled(processor.size, imgsz, stride)}
    if "shortest_edge" in sizes["size"] and (crops or isinstance(imgsz, int)):
        sizes["size"] = {"shortest_edge": max(sides)}
    return sizes | ({"crop_size": {"height": sides[0], "width": sides[1]}} if crops else {})


def longest_side(processor: Any, imgsz: ImageSize) -> dict[str, dict[str, int]]:
    """A processor's options for a longest side of `imgsz` pixels, in the aspect of its size, or for (height, width)."""
    sizes = {"size": _scaled(processor.size, imgsz, STRIDE)}
    if getattr(processor, "pad_size", None):
        height, width = list(sizes["size"].values()) if len(sizes["size"]) == 2 else sides_of(imgsz, STRIDE)
        if "shortest_edge" in sizes["size"]:
            height = width
        sizes["pad_size"] = {"height": height, "width": width}
    return sizes


def _scaled(size: Any, imgsz: ImageSize, stride: int) -> dict[str, int]:
    """The `size` of a processor, scaled so that its longest side has `imgsz` pixels, rounded up to the stride."""
    given = {name: pixels for name, pixels in dict(size).items() if pixels is not None}
    if "shortest_edge" in given:
        height, width = sides_of(imgsz, 1)
        return {"shortest_edge": min(height, width), "longest_edge": max(height, width)}
    if isinstance(imgsz, int):
        longest = max(given.values()) * stride
        return {name: -(-pixels * imgsz // longest) * stride for name, pixels in given.items()}
    return dict(zip(given, sides_of(imgsz, stride), strict=True))  # height first


def sizes_of(inside: Tensor) -> Tensor:
    """[B, 2] (height, width) of each image in the network's input, from [B, H, W] 1 on the image, 0 on padding."""
    return torch.stack([inside[:, :, 0].sum(dim=1), inside[:, 0].sum(dim=1)], dim=1)


def recorders_last(module: nn.Module, source: str = "transformers") -> None:
    """Move recording hooks, of transformers and of the Python module `source`, behind hooks that replace outputs."""
    for part in module.modules():
        hooks: Any = part._forward_hooks
        for key, hook in list(hooks.items()):
            origin = getattr(getattr(hook, "func", hook), "__module__", "")
            if origin == source or origin.startswith("transformers."):
                hooks.move_to_end(key)
