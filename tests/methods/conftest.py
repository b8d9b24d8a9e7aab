"""Fixtures of the sweeping methods' tests."""

import pytest
import torch
from sweep_settings import Setting, fresh_setting


@pytest.fixture
def exact() -> Setting:
    """In double precision, so that rounding decides nothing."""
    return fresh_setting(torch.float64)


@pytest.fixture
def setting() -> Setting:
    return fresh_setting(torch.float32)
