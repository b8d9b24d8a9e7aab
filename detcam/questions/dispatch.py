"""From the arguments of a call to the question that they ask."""

from typing import Any

from detcam.adapters import Adapter
from detcam.errors import InputError
from detcam.questions.base import Question
from detcam.questions.missed import Missed
from detcam.questions.mistakes import Mistakes
from detcam.questions.prompts import Prompted


def question(
    adapter: Adapter, ask: Any, prompts: Any, truth: Any, size: tuple[int, int], conf: float, iou: float, max_det: int
) -> Question:
    """The question about an image of (height, width) pixels: exactly one of `ask`, `prompts` and `truth` is given.

    Raises an InputError for several questions at once, for a model that cannot answer the question, and as
    `checked_pairs`, `checked_prompts` and `checked_truth` raise it.
    """
    if sum(one is not None for one in (ask, prompts, truth)) > 1:
        raise InputError("ask, prompts, truth: expected one of them, got several: ask them one after the other")
    model = f"this {adapter.family} {adapter.task} model"
    askable = adapter.lists_candidates and type(adapter).objects_at is not Adapter.objects_at
    instead = "ask about a box with ask=[(box, class)]" if askable else "leave it out"
    if ask is not None:
        if not adapter.lists_candidates:
            custom = "give CallableAdapter(candidates=...) or leave ask out"
            instead = "use prompts=[(x, y)]" if adapter.prompt_kinds else custom
            raise InputError(f"ask: {model} lists no candidates: {instead}")
        return Missed(ask, size, conf, iou, max_det)
    if prompts is not None:
        if not adapter.prompt_kinds:
            raise InputError(f"prompts: {model} takes no prompts: {instead}")
        return Prompted(prompts, size, adapter)
    if "mask" not in adapter.prompt_kinds:
        raise InputError(f"truth: {model} does not classify pixels: {instead}")
    return Mistakes(truth, size, adapter, max_det)
