"""Base of the text-prompted detectors of the transformers library: their classes are phrases."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from detcam.adapters.base import Selection
from detcam.adapters.shared.queries import QueryOutputs
from detcam.adapters.transformers.base import checkpoint_processor
from detcam.adapters.transformers.detr import DetrAdapter
from detcam.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PromptedOutputs(QueryOutputs):
    """Raw outputs; `logits` [B, Q, K] are of the K phrases."""

    # [B, Q, T] the logits of the model, for the library's post-processing; T is the number of tokens if each token has
    # a logit, else K.
    raw: Tensor


class PromptedAdapter(DetrAdapter):
    """Detectors whose classes are phrases; call `set_text` before any other method.

    The scalar is the logit of the kept query, or patch, for its phrase. `processor` is the model's processor with its
    tokenizer. Default: the processor of its checkpoint, if that is on this machine.
    """

    task = "text-prompted"

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        self.whole = processor or checkpoint_processor(module.config, "AutoProcessor")
        if not hasattr(self.whole, "tokenizer"):
            raise InputError(
                f"{type(model).__name__} needs its processor with the tokenizer: "
                "Explainer(model, processor=AutoProcessor.from_pretrained(...), text=[...])"
            )
        super().__init__(module, model, imgsz, self.whole.image_processor)
        self.inputs: dict[str, Tensor] = {}  # the phrases, processed

    def set_text(self, text: Sequence[str]) -> None:
        """Set the classes to these phrases, numbered from 0; an InputError for phrases that the model cannot read."""
        self.names = dict(enumerate(text))
        self.available = self._available(len(text))
        self.inputs = {name: tensor.to(self.device) for name, tensor in self._tokens(list(text)).items()}

    @abstractmethod
    def _tokens(self, text: list[str]) -> dict[str, Tensor]:
        """The text inputs of the model's forward for a single image, made by the library's processor."""

    def _post_process(self, outputs: Any, boxes: Tensor, conf: float, sizes: list[tuple[int, int]] | None) -> list[Any]:
        raw = SimpleNamespace(logits=outputs.raw, pred_boxes=boxes)
        return self.whole.post_process_grounded_object_detection(raw, threshold=conf, target_sizes=sizes)

    def _classes(self, result: Any, best: Tensor, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def selection(self, iou: float) -> Selection:
        """See `Adapter.selection`: each query counts as its best phrase only."""
        return Selection(one_class=True)
