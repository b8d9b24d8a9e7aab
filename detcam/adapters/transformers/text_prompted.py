"""What detectors of the transformers library share whose classes are phrases that the user gives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detcam.adapters.base import Selection
from detcam.adapters.shared.queries import BOX_TARGETS, CLASS_TARGETS, query_objects
from detcam.adapters.transformers.base import require_architecture, size_of
from detcam.adapters.transformers.detr import DetrAdapter, DetrKind, DetrOutputs
from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.types import Objects


@dataclass(frozen=True)
class PromptedOutputs(DetrOutputs):
    """Raw outputs whose `logits` [B, Q, K] are those of the K phrases.

    Attributes:
        raw: [B, Q, T] the logits as the model returns them and the library's own post-processing reads them; where it
            gives a logit to each token, T is the number of these.
    """

    raw: Tensor


class PromptedAdapter(DetrAdapter):
    """Detectors whose classes are phrases; `set_text` must be called before anything is run.

    The scalar is the logit of the kept query, or patch, for its phrase. `processor` is the model's own, with its
    tokenizer, by default that of its checkpoint if it lies on this machine.
    """

    install = 'pip install "detcam[transformers]"'
    targets = (*CLASS_TARGETS, *BOX_TARGETS)
    task = "text-prompted"
    kinds: ClassVar[dict[str, DetrKind]]  # by architecture
    prefix: ClassVar[tuple[str, ...]]  # how the names of the models' classes begin

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
        self.stable = not self.kind.chosen
        self.inputs: dict[str, Tensor] = {}  # what the processor made of the phrases
        self._watch_doors()

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: a detector of the architecture, or derived from one."""
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
        """Take these phrases for the classes, numbered from 0.

        Raises:
            InputError: for phrases that the model cannot read.
        """
        self.names = dict(enumerate(text))
        self.available = tuple(target for target in self.targets if target != "margin" or len(text) > 1)
        self.inputs = {name: tensor.to(self.device) for name, tensor in self._tokens(list(text)).items()}

    @abstractmethod
    def _tokens(self, text: list[str]) -> dict[str, Tensor]:
        """What the model's forward takes beside one picture, as the library's own processor makes it of the phrases."""

    def _post_process(self, raw: Tensor, boxes: Tensor, conf: float, sizes: list[tuple[int, int]] | None) -> list[Any]:
        """The library's own post-processing: for each picture "scores" and "boxes" of the kept queries."""
        outputs = SimpleNamespace(logits=raw, pred_boxes=boxes)
        results: list[Any] = self.whole.post_process_grounded_object_detection(
            outputs, threshold=conf, target_sizes=sizes
        )
        return results

    @torch.no_grad()
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        """See `Adapter.detect`: the processor's own post-processing, with the query carried along."""
        sources = [geometry.source for geometry in geometries]
        results = self._post_process(outputs.raw, outputs.boxes, conf, sources)
        # The selection looks at logits only, so boxes of no size at x = query pass through it to the same places.
        tags = torch.zeros_like(outputs.boxes, dtype=torch.float32)
        tags[..., 0] = torch.arange(tags.shape[1], device=tags.device)
        tagged = self._post_process(outputs.raw, tags, conf, None)
        found = []
        for image, (result, tag, geometry) in enumerate(zip(results, tagged, geometries, strict=True)):
            best = result["scores"].argsort(descending=True, stable=True)[:max_det].sort().values
            boxes, queries, scores = result["boxes"][best].float(), tag["boxes"][best, 0].long(), result["scores"][best]
            classes = outputs.logits[image, queries].argmax(dim=1)
            found.append(query_objects(boxes, scores, classes, queries, self.names, geometry))
        return found

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: each query counts as its best phrase only."""
        return Selection(one_class=True)


def _processor(config: Any) -> Any:
    """The processor of the checkpoint, with its tokenizer, if it lies on this machine."""
    if not config._name_or_path:
        return None
    import transformers

    try:
        return transformers.AutoProcessor.from_pretrained(
            config._name_or_path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError):
        return None
