"""TensorBoard's event file read back, and what Weights & Biases makes of the dict."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from awkward import ODD
from PIL import Image

from detcam import Explanation


def images_of(folder: Path, tag: str) -> list[tuple[int, np.ndarray]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return [(e.step, np.asarray(Image.open(io.BytesIO(e.encoded_image_string)))) for e in events.Images(tag)]


@pytest.mark.nightly
def test_tensorboard_reads_back_the_sheet(odd: Explanation, nothing: Explanation, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        odd.to_tensorboard(writer, "evidence/val", 3)
        nothing.to_tensorboard(writer, "evidence/val", 4)
    (first, sheet), (second, alone) = images_of(tmp_path, "evidence/val")
    assert (first, second) == (3, 4)
    odd.save(tmp_path / "saved")
    assert np.array_equal(sheet, np.asarray(Image.open(tmp_path / "saved" / "contact.png")))
    assert alone.shape[2] == 3
    assert abs(alone.shape[1] / alone.shape[0] - 90 / 60) < 0.05


def test_wandb_boxes_by_hand(odd: Explanation) -> None:
    before = set(sys.modules)
    board = odd.to_wandb()
    assert not any(name.split(".")[0] == "wandb" for name in set(sys.modules) - before)
    predictions = board["boxes"]["predictions"]
    assert predictions["class_labels"] == dict(enumerate(ODD))
    first, *_, last = predictions["box_data"]
    assert first["position"] == pytest.approx(
        {"minX": 3.25 / 90, "minY": 4.5 / 60, "maxX": 30.75 / 90, "maxY": 40 / 60}
    )
    assert last["position"]["maxX"] == last["position"]["maxY"] == 1
    assert first["class_id"] == 0
    assert first["box_caption"] == board["captions"][0] == f"{ODD[0]} 0.90"
    assert first["scores"] == {"score": pytest.approx(0.9)}
    assert np.array_equal(board["picture"], odd.image)
    assert all(np.array_equal(overlay, odd.overlay(i)) for i, overlay in enumerate(board["overlays"]))


def test_wandb_takes_them(odd: Explanation, nothing: Explanation) -> None:
    wandb = pytest.importorskip("wandb")
    for explanation in (odd, nothing):
        board = explanation.to_wandb()
        picture = wandb.Image(board["picture"], boxes=board["boxes"])
        assert np.array_equal(np.asarray(picture.image), explanation.image)  # its boxes are checked when it is made
        each = [wandb.Image(o, caption=c) for o, c in zip(board["overlays"], board["captions"], strict=True)]
        assert len(each) == len(explanation)
