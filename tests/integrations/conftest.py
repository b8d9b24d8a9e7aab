"""What every partner is handed."""

import pytest
from awkward import empty_explanation, odd_explanation

from detcam import Explanation


@pytest.fixture
def odd(seed: int) -> Explanation:
    return odd_explanation(seed)


@pytest.fixture
def nothing(seed: int) -> Explanation:
    return empty_explanation(seed)
