"""A complaint of the model itself is told in its words, as an error of the input; detcam's own failures are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch import nn

from detcam import cli
from detcam.engine.frozen_topk import RecordTopk
from detcam.errors import LayerError, ModelError
from detcam.models.complaints import models_reason


class Picky(nn.Module):
    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error, self.conv = error, nn.Conv2d(1, 4, 3)

    def forward(self, x: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self.conv(x)


def run(error: Exception | None) -> None:
    with models_reason():
        Picky(error)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, AssertionError, TypeError])
def test_the_models_reason(kind: type[Exception]) -> None:
    with pytest.raises(ModelError, match=f"refuses its input.*{kind.__name__}: 7 pixels are too few.*imgsz") as caught:
        run(kind("7 pixels\nare too few"))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, kind)


def test_torchs_reason() -> None:
    expected = "to have 1 channels, but got 3 channels instead"
    with pytest.raises(ModelError, match=expected):
        run(None)
    with pytest.raises(ModelError, match=expected), RecordTopk():  # detcam sees each operation of the model
        run(None)


@pytest.mark.parametrize(
    "error", [LayerError("ours"), torch.OutOfMemoryError("all full"), KeyboardInterrupt(), ZeroDivisionError()]
)
def test_other_errors_pass(error: Any) -> None:
    with pytest.raises(type(error)) as caught:
        run(error)
    assert caught.value is error


def test_outside_of_a_model_nothing_changes() -> None:
    with pytest.raises(ValueError, match="elsewhere"), models_reason():
        raise ValueError("elsewhere")


def test_a_size_that_the_model_refuses_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_channels=1, num_labels=4, hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=8, depths=[1] * 4,
        num_attention_heads=[1] * 4,
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "grey")
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "grey")
    capsys.readouterr()  # progress bars of the library
    cv2.imwrite(str(tmp_path / "a.png"), torch.zeros(32, 32, 3).byte().numpy())
    assert cli.run(["explain", str(tmp_path / "a.png"), "--model", str(tmp_path / "grey"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "failure inside detcam" not in error
    assert "has 3 channels" in error
    assert "reads 1" in error
