"""Objects are checked when they are made, and selected in any order."""

from typing import Any

import pytest
import torch

from detcam import Objects
from detcam.types import image_index


def fields(n: int, **changes: Any) -> dict[str, Any]:
    return {
        "boxes": torch.rand(n, 4),
        "scores": torch.rand(n),
        "class_ids": torch.arange(n),
        "labels": tuple(f"thing {i}" for i in range(n)),
        "index": torch.randint(99, (n,)),
        "level": torch.randint(3, (n,)),
        "cells": torch.randint(9, (n, 2)),
        "network_boxes": torch.rand(n, 4),
        "mask_logits": torch.randn(n, 5, 6),
        **changes,
    }


@pytest.mark.parametrize("n", [0, 1, 7])
def test_fields_are_kept(n: int, seed: int) -> None:
    given = fields(n)
    objects = Objects(**given)
    assert len(objects) == n
    for name, value in given.items():
        assert getattr(objects, name) is value


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("boxes", (3, 5)), ("boxes", (4,)), ("scores", (4,)), ("scores", (3, 1)), ("class_ids", (2,)), ("index", ()),
        ("level", (3, 3)), ("cells", (3,)), ("network_boxes", (1, 4)), ("mask_logits", (2, 5, 5)),
        ("mask_logits", (3, 5)),
    ],
)  # fmt: skip
def test_shapes_are_checked(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name}.*got") as caught:
        Objects(**fields(3, **{name: torch.zeros(shape)}))
    assert str(shape) in str(caught.value)


def test_frozen() -> None:
    objects = Objects(**fields(1))
    with pytest.raises(AttributeError):
        objects.boxes = torch.zeros(1, 4)  # type: ignore[misc]


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("keep", [[2, 0, 3], [], [1, 1]])
def test_select_keeps_every_field_in_step(keep: list[int], with_masks: bool, seed: int) -> None:
    given = fields(4, **({} if with_masks else {"mask_logits": None}))
    chosen = Objects(**given).select(torch.tensor(keep, dtype=torch.int64))
    for name, value in given.items():
        kept = getattr(chosen, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(kept, value[keep])
        else:
            assert kept == (None if value is None else tuple(value[i] for i in keep))


def test_image_index_counts_objects_picture_by_picture() -> None:
    objects = [Objects(**fields(n)) for n in (2, 0, 3)]
    index = image_index(objects, torch.device("cpu"))
    assert index.dtype == torch.int64
    assert index.tolist() == [0, 0, 2, 2, 2]
    assert image_index([Objects(**fields(0))], torch.device("cpu")).tolist() == []
