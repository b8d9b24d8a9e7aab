"""What every question does: select the objects to explain, and annotate them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from detcam.adapters import Adapter
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.types import Objects


class Question(ABC):
    """A question about one picture: it chooses the objects to explain, and has a word on each."""

    @abstractmethod
    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """The objects that answer it, from what the model put out."""

    @abstractmethod
    def answered(self, explanation: Explanation) -> Explanation:
        """The explanation of these objects with what the answer says beside their maps."""
