"""Batch jobs: explain every object of many images, into a dataset on disk or in an object store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detcam.batch.dataset.loading import Loaded

__all__ = ["load"]


def load(folder: str | os.PathLike[str]) -> Loaded:
    """The explanations of a dataset, read lazily: see `detcam.batch.dataset.loading.Loaded`.

    Args:
        folder: path or URL that `detcam batch` wrote to.

    Raises:
        InputError: if there is no dataset, or it is damaged.
    """
    from detcam.batch.dataset.loading import Loaded

    return Loaded(folder)
