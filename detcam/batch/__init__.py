"""Jobs over many pictures: every object of every one, in a dataset on disk or in an object store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detcam.batch.dataset.loading import Loaded

__all__ = ["load"]


def load(folder: str | os.PathLike[str]) -> Loaded:
    """The explanations of a dataset, each made when it is asked for: see `detcam.batch.dataset.loading.Loaded`.

    Args:
        folder: what `detcam batch` wrote: a path or a URL.

    Raises:
        InputError: if there is no dataset, or it is damaged.
    """
    from detcam.batch.dataset.loading import Loaded

    return Loaded(folder)
