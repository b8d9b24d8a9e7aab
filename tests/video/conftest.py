"""The explainer of the random detector, for all tests of videos."""

import pytest
from torch import nn

from detcam import Explainer


@pytest.fixture
def explainer(detector: nn.Module) -> Explainer:
    return Explainer(detector, "odam", imgsz=160)
