"""Mutated presets give options or an error."""

import random
from pathlib import Path

from fuzzing import fuzz, mutated
from test_fuzz_labels import VALUES

from detcam.config import Preset, read_preset

LINES = (
    "model: scenes", "method: odam", "layers: [model.9, model.12]", "layers: level", "target: class", "conf: 0.4", "iou: 1",
    "max_det: 20", "imgsz: 640", "device: cpu", "segments: component", "# a remark",
)  # fmt: skip


def test_mutated_presets(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"

    def made(random: random.Random) -> bytes:
        lines = random.sample(LINES, random.randrange(len(LINES)))
        if lines and random.random() < 0.4:
            place = random.randrange(len(lines))
            lines[place] = f"{lines[place].partition(':')[0]}: {random.choice(VALUES)!r}"
        data = "\n".join(lines).encode()
        return mutated(data, random) if random.random() < 0.7 else data

    def read(data: bytes) -> tuple[Preset, Path]:
        path.write_bytes(data)
        return read_preset(path), path

    def check(result: object) -> None:
        preset, path = result  # type: ignore[misc]
        path.write_text(preset.to_yaml(), encoding="utf-8")
        assert read_preset(path) == preset

    fuzz("presets", seed, 150, made, read, check, expected=("read", "InputError"))
