"""Base of the text-prompted detectors of the transformers library: their classes are phrases."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.adapters.base import Selection
from detcam.adapters.shared.queries import query_objects
from detcam.adapters.shared.scores import BOX_TARGETS, CLASS_TARGETS
from detcam.adapters.transformers.base import require_architecture, size_of
from detcam.adapters.transformers.detr import DetrAdapter, DetrKind, DetrOutputs
from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.types import Objects


@dataclass(frozen=True)
class PromptedOutputs(DetrOutputs):
    """Raw outputs; `logits` [B, Q, K] are of the K phrases.

    Attributes:
        raw: [B, Q, T] the logits of the model, for the library's post-processing; T is the number of tokens if each
            token has a logit, else K.
    """

    raw: Tensor


class PromptedAdapter(DetrAdapter):
    """Detectors whose classes are phrases; call `set_text` before any other method.

    The scalar is the logit of the kept query, or patch, for its phrase. `processor` is the model's processor with its
    tokenizer. Default: the processor of its checkpoint, if that is on this machine.
    """

    install = 'pip install "detcam[transformers]"'
    targets = (*CLASS_TARGETS, *BOX_TARGETS)
    task = "text-prompted"
    kinds: ClassVar[dict[str, DetrKind]]  # by architecture
    prefix: ClassVar[tuple[str, ...]]  # of the names of the models' classes

    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        self.module = module
        network: Any = module
        self.kind = self.kinds[network.config.model_type]
        self.whole = processor or _processor(network.config)
        if not hasattr(self.whole, "tokenizer"):
            raise InputError(
                f"{type(model).__name__} needs its processor with the tokenizer: "
                "Explainer(model, processor=AutoProcessor.from_pretrained(...), text=[...])"
            )
        self.processor = self.whole.image_processor
        self.resize = self._resized(imgsz)
        self.imgsz = imgsz or size_of(self.processor)
        self.stable = not self.kind.selected
        self.inputs: dict[str, Tensor] = {}  # the phrases, processed
        self._watch_entries()

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a detector of the architecture, or a derived class."""
        return any(
            base.__module__.split(".")[0] == "transformers"
            and base.__name__.endswith("ForObjectDetection")
            and base.__name__.startswith(cls.prefix)
            for base in type(model).__mro__
        )

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`."""
        require_architecture(model, cls.kinds)
        module: nn.Module = model
        return module

    def _resized(self, imgsz: int | None) -> dict[str, Any]:
        """The image processor's options for an input of `imgsz` pixels."""
        raise InputError(f"imgsz: this model takes {size_of(self.processor)} only, got {imgsz}: leave imgsz out")

    def set_text(self, text: Sequence[str]) -> None:
        """Set the classes to these phrases, numbered from 0.

        Raises:
            InputError: for phrases that the model cannot read.
        """
        self.names = dict(enumerate(text))
        self.available = tuple(target for target in self.targets if target != "margin" or len(text) > 1)
        self.inputs = {name: tensor.to(self.device) for name, tensor in self._tokens(list(text)).items()}

    @abstractmethod
    def _tokens(self, text: list[str]) -> dict[str, Tensor]:
        """The text inputs of the model's forward for a single image, made by the library's processor."""

    def _post_process(self, raw: Tensor, boxes: Tensor, conf: float, sizes: list[tuple[int, int]] | None) -> list[Any]:
        """The library's post-processing: for each image "scores" and "boxes" of the kept queries."""
        outputs = SimpleNamespace(logits=raw, pred_boxes=boxes)
        results: list[Any] = self.whole.post_process_grounded_object_detection(
            outputs, threshold=conf, target_sizes=sizes
        )
        return results

    @torch.no_grad()
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """See `Adapter.detect`: the processor's post-processing, run a second time to get the query of each object."""
        sources = [geometry.source for geometry in geometries]
        results = self._post_process(outputs.raw, outputs.boxes, conf, sources)
        # The selection depends on logits only: boxes of size 0 at x = query are kept in the same places.
        tags = torch.zeros_like(outputs.boxes, dtype=torch.float32)
        tags[..., 0] = torch.arange(tags.shape[1], device=tags.device)
        tagged = self._post_process(outputs.raw, tags, conf, None)
        objects = []
        for image, (result, tag, geometry) in enumerate(zip(results, tagged, geometries, strict=True)):
            best = result["scores"].argsort(descending=True, stable=True)[:max_det].sort().values
            boxes, queries, scores = result["boxes"][best].float(), tag["boxes"][best, 0].long(), result["scores"][best]
            classes = outputs.logits[image, queries].argmax(dim=1)
            objects.append(query_objects(boxes, scores, classes, queries, self.names, geometry))
        return objects

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: each query counts as its best phrase only."""
        return Selection(one_class=True)


def _processor(config: Any) -> Any:
    """The processor of the checkpoint, with its tokenizer, if it is on this machine."""
    if not config._name_or_path:
        return None
    import transformers

    try:
        return transformers.AutoProcessor.from_pretrained(
            config._name_or_path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError):
        return None
