"""What every question does: select the objects to explain, and annotate them."""

from abc import ABC, abstractmethod
from typing import Any

from detcam.adapters import Adapter
from detcam.explanation import Explanation
from detcam.geometry import Geometry
from detcam.types import Objects


class Question(ABC):
    """Selects the objects to explain in an image, and annotates them."""

    @abstractmethod
    def objects(self, adapter: Adapter, outputs: Any, geometry: Geometry) -> Objects:
        """The objects to explain, from the model's raw outputs for one image."""

    def answered(self, explanation: Explanation) -> Explanation:
        """The explanation of these objects with the answer in its notes and settings, if the question adds one."""
        return explanation
