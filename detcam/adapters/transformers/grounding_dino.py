"""Grounding DINO of the transformers library: a detector of phrases with a logit for every token of the text."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from detcam.adapters.transformers.base import sizes_of
from detcam.adapters.transformers.detr import DetrKind
from detcam.adapters.transformers.text_prompted import PromptedAdapter, PromptedOutputs
from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.types import Objects

END = "."  # the processor joins the phrases to a single text, and ends each phrase with this token


class GroundingDinoAdapter(PromptedAdapter):
    """Grounding DINO (Liu et al. 2023, arXiv:2303.05499) and MM Grounding DINO (Zhao et al. 2024, arXiv:2401.02361).

    The model compares each query with every token of the text, and the library's post-processing takes the strongest
    token's logit for the score. So the logit of a phrase is the logit of its strongest token, including the full stop
    behind it (and the start of the text for the first phrase, the end for the last). An object's class is the phrase of
    the token that its score comes from. Its label is this phrase as the user gave it; the library would list the tokens
    above a second threshold.

    `Objects.words` says how much each word of the object's phrase matches its query: the sigmoid of the word's
    strongest token logit, comparable with the score.

    The model selects queries from the image, so a number means another query in another image.
    """

    family = "transformers grounding"
    models = "Grounding DINO, MM Grounding DINO; with text=[...]"
    served = "(MM)?GroundingDino.*ForObjectDetection"
    kinds: ClassVar = {
        name: DetrKind("model.encoder", "model.input_proj_vision", "GroundingDinoImageProcessor", selected=True)
        for name in ("grounding-dino", "mm-grounding-dino")
    }

    def _tokens(self, text: list[str]) -> dict[str, Tensor]:
        for phrase in text:
            if END in phrase:
                raise InputError(f"text: {phrase!r} has a full stop, which ends a phrase: give each phrase separately")
        merged = self.whole.tokenizer(
            f"{END} ".join(phrase.strip().lower() for phrase in text) + END,
            return_tensors="pt",
            return_token_type_ids=True,
        )
        ids = merged["input_ids"][0]
        if len(ids) > self.config.max_text_len:
            raise InputError(
                f"text: {len(ids)} tokens, and the model reads at most {self.config.max_text_len}: give fewer phrases"
            )
        ends = ids == self.whole.tokenizer.convert_tokens_to_ids(END)
        owner = (ends.cumsum(dim=0) - ends.long()).clamp(max=len(text) - 1)
        self._members = [(owner == k).nonzero().flatten() for k in range(len(text))]
        self._words = [_words(self.whole.tokenizer, ids, members) for members in self._members]
        return {name: merged[name] for name in ("input_ids", "token_type_ids", "attention_mask")}

    def forward(self, batch: Tensor, max_det: int) -> PromptedOutputs:
        inside = batch[:, self.channels] if batch.shape[1] > self.channels else torch.ones_like(batch[:, 0])
        outputs = self.module(
            pixel_values=batch[:, : self.channels],
            pixel_mask=inside.long(),
            output_attentions=False,
            output_hidden_states=False,
            return_dict=True,
            **{name: tokens.expand(len(batch), -1) for name, tokens in self.inputs.items()},
        )
        logits = torch.stack([outputs.logits[..., members].amax(dim=2) for members in self._members], dim=2)
        return PromptedOutputs(logits, outputs.pred_boxes, sizes_of(inside), raw=outputs.logits)

    def _post_process(self, outputs: Any, boxes: Tensor, conf: float, sizes: list[tuple[int, int]] | None) -> list[Any]:
        raw = SimpleNamespace(logits=outputs.raw, pred_boxes=boxes)
        ids = self.inputs["input_ids"].expand(len(boxes), -1)
        return self.whole.post_process_grounded_object_detection(raw, ids, conf, target_sizes=sizes)

    @torch.no_grad()
    def detect(self, outputs: Any, geometries: list[Geometry], conf: float, iou: float, max_det: int) -> list[Objects]:
        detected = super().detect(outputs, geometries, conf, iou, max_det)
        return [self._worded(outputs.raw[image], objects) for image, objects in enumerate(detected)]

    @torch.no_grad()
    def objects_at(self, outputs: Any, candidates: Tensor, class_ids: Tensor, geometry: Geometry) -> Objects:
        """See `Adapter.objects_at`: queries."""
        return self._worded(outputs.raw[0], super().objects_at(outputs, candidates, class_ids, geometry))

    def _worded(self, raw: Tensor, objects: Objects) -> Objects:
        """The objects of an image with token logits `raw` [Q, T], with the match of each word of their phrases."""
        words = []
        for query, phrase in zip(objects.index.tolist(), objects.class_ids.tolist(), strict=True):
            scores = raw[query].float().sigmoid()
            words.append(tuple((word, float(scores[places].amax())) for word, places in self._words[phrase]))
        return replace(objects, words=tuple(words))


def _words(tokenizer: Any, ids: Tensor, members: Tensor) -> list[tuple[str, list[int]]]:
    """The words of a phrase with the positions of their tokens; `members` are the positions of the phrase's tokens."""
    words: list[tuple[str, list[int]]] = []
    for place in members.tolist():
        piece = tokenizer.convert_ids_to_tokens(int(ids[place]))
        if piece.startswith("##") and words:
            word, places = words[-1]
            words[-1] = (word + piece[2:], [*places, place])
        elif piece != END and int(ids[place]) not in tokenizer.all_special_ids:
            words.append((piece, [place]))
    return words
