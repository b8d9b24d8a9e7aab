"""The model's own complaints about its input, as errors with the model's reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

import torch

from detcam.errors import DetcamError, ModelError

USUAL = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError)


@contextmanager
def models_reason() -> Iterator[None]:
    """Context that turns an error raised inside a module, not by code of detcam, into a ModelError."""
    try:
        yield
    except (DetcamError, torch.OutOfMemoryError):
        raise
    except USUAL as error:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        names = [str(f.f_globals.get("__name__")) for f in frames if not f.f_code.co_name.startswith("__torch_")]
        if "torch.nn.modules.module" not in names or names[-1].startswith("detcam."):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "give the imgsz or processor that it was trained with, or memory=1 for one image at a time"
        raise ModelError(f"the model refuses its input ({reason}): {advice}") from error
