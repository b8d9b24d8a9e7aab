"""Keypoint targets: one for each keypoint of a pose model, by its number and, where it has one, by its name."""

from collections.abc import Collection
from typing import Any

PREFIX = "keypoint "
KEYPOINT = f"{PREFIX}N"  # all of them, in lists of targets: N is a number or a name
COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip


def keypoint_targets(count: int, classes: Collection[str], given: Any = None) -> dict[str, int]:
    """From each target to the number of its keypoint, of a model with `count` keypoints.

    `given` has the model's own names, class -> names, which must be the same for all classes; by default 17 keypoints
    of persons have COCO's names.
    """
    lists: set[tuple[str, ...]] = {COCO} if "person" in classes else set()
    if isinstance(given, dict) and given and all(isinstance(names, (list, tuple)) for names in given.values()):
        lists = {tuple(map(str, names)) for names in given.values()}
    names = lists.pop() if len(lists) == 1 else ()
    numbers = {f"{PREFIX}{i}": i for i in range(count)}
    return numbers | {f"{PREFIX}{name}": i for i, name in enumerate(names) if len(names) == count} | numbers
