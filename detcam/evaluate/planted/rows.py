"""Rows of planted scenes, in the format of `detcam.evaluate.judge.Judge.row`."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from detcam.evaluate.metrics.localisation import Measure
from detcam.evaluate.planted import judge as planted
from detcam.scenes.planted import VARIANTS

CHUNK = 20  # scenes judged with the same contenders


def measures() -> list[Measure]:
    """A column for each variant of scene and measure."""
    return [
        replace(measure, name=f"{variant} {measure.name}", group=f"scenes: {variant}")
        for variant in VARIANTS
        for measure in planted.MEASURES
    ]


def names(scenes: int, seed: int = 0) -> list[tuple[str, int]]:
    """(variant, seed) of every scene."""
    return [(variant, number) for variant in VARIANTS for number in planted.seeds_of(scenes, seed)]


def rows(
    wanted: Sequence[tuple[str, int]],
    methods: Sequence[str],
    layers: Sequence[str],
    left_out: dict[str, str],
    quick: bool = False,
    done: Collection[str] = (),
    family: str = "rcnn",
) -> Iterator[dict[str, Any]]:
    """One row for each scene that is not `done`, see `Judge.row`, with the models of a family of `interventions`.

    Contenders that cannot explain the models are added to `left_out`, with the reason.
    """
    for variant in dict.fromkeys(variant for variant, _ in wanted):
        seeds = [seed for kind, seed in wanted if kind == variant and f"{variant}/{seed}" not in done]
        for start in range(0, len(seeds), CHUNK):
            chunk = seeds[start : start + CHUNK]
            table = planted.judge(variant, chunk, methods, layers, quick=quick, family=family)
            left_out.update(table.left_out)
            for place, seed in enumerate(chunk):
                yield {"picture": f"{variant}/{seed}", "objects": _objects(variant, table, place)}


def _objects(variant: str, table: planted.Table, place: int) -> list[dict[str, Any]]:
    columns = [f"{variant} {measure.name}" for measure in planted.MEASURES]
    return [
        {
            "label": variant,
            "maps": {
                name: {c: float(v) for c, v in zip(columns, values[i], strict=True) if v == v}
                for name, values in table.values.items()
            },
        }
        for i in (table.scenes == place).nonzero()[0].tolist()
    ]
