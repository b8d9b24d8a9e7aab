"""Report of an evaluation: means with intervals, differences on identical objects, flags."""

import math
import platform
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detcam.errors import DependencyError
from detcam.evaluate.contenders import BASELINES
from detcam.evaluate.metrics.bootstrap import LEAST, Interval, Values, bootstrap
from detcam.evaluate.metrics.localisation import Measure
from detcam.evaluate.metrics.stability import PASSED
from detcam.evaluate.plots import draw
from detcam.evaluate.store import write
from detcam.files import write_whole
from detcam.models.versions import installed

REFERENCE = "odam @ level"  # contender to take differences from, if present
PACKAGES = ("detcam", "torch", "numpy", "opencv-python", "ultralytics", "transformers", "torchvision")


@dataclass(frozen=True)
class Results:
    """All values of a run."""

    names: list[str]  # of the contenders, in the order of the rows
    pictures: NDArray[np.int64]  # [n] int64, the image of each of the n objects
    values: dict[str, dict[str, Values]]  # contender -> measure -> [n] float64; NaN for undefined values

    def mean(self, name: str, measure: str) -> Interval:
        """A contender's mean and its interval."""
        return bootstrap(self.values[name][measure], self.pictures)

    def difference(self, name: str, other: str, measure: str) -> Interval:
        """The mean of `name` - `other` over objects with both values, and its interval."""
        return bootstrap(self.values[name][measure] - self.values[other][measure], self.pictures)

    def wins(self, name: str, other: str, measure: Measure) -> int:
        """1 if `name` is better than `other` over the whole interval, -1 if worse, else 0."""
        return self.difference(name, other, measure.name).sign * (1 if measure.better == "higher" else -1)


def collect(rows: Iterable[dict[str, Any]], measures: Sequence[Measure]) -> Results:
    """The rows of a run as arrays; see `Judge.row`."""
    objects = [(place, entry["maps"]) for place, row in enumerate(rows) for entry in row["objects"]]
    names = list(dict.fromkeys(name for _, maps in objects for name in maps))
    values = {
        name: {m.name: np.array([maps.get(name, {}).get(m.name, math.nan) for _, maps in objects]) for m in measures}
        for name in names
    }
    return Results(names, np.array([place for place, _ in objects], dtype=np.int64), values)


def summarise(rows: Sequence[dict[str, Any]], measures: Sequence[Measure], settings: dict[str, Any]) -> dict[str, Any]:
    """The report as plain JSON values; undefined numbers are None."""
    results = collect(rows, measures)
    present = [m for m in measures if any(not np.isnan(results.values[n][m.name]).all() for n in results.names)]
    reference = REFERENCE if REFERENCE in results.names else next(iter(results.names), "")
    others = [name for name in results.names if name != reference]
    failed: dict[str, list[str]] = {}
    for row in rows:
        for name, why in row.get("failed", {}).items():
            failed.setdefault(name, []).append(f"{row['picture']}: {why}")
    return {
        "report": "detcam evaluate",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": versions(),
        "settings": settings,
        "pictures": len({int(p) for p in results.pictures}),
        "objects": len(results.pictures),
        "measures": [{**asdict(m), **judged(results, m)} for m in present],
        "intervals": f"mean over objects; 95 % bootstrap over images, from {LEAST} images on",
        "contenders": {n: {m.name: _plain(results.mean(n, m.name)) for m in present} for n in results.names},
        "reference": reference,
        "differences": {n: {m.name: _plain(results.difference(n, reference, m.name)) for m in present} for n in others},
        "unchanged_by_randomised_weights": flagged(results),
        "agreement": _agreement(rows, results.names),
        "cascade": _cascade(rows),
        "undefined": undefined(results, measures, rows),
        "failed": failed,
    }


def judged(results: Results, measure: Measure) -> dict[str, int]:
    """The numbers of objects and images that a measure rests on, of the contender with the most objects."""
    defined = max((~np.isnan(results.values[name][measure.name]) for name in results.names), key=np.count_nonzero)
    return {"objects": int(defined.sum()), "pictures": len(np.unique(results.pictures[defined]))}


def flagged(results: Results) -> list[str]:
    """Contenders with unchanged maps under randomised weights: mean rank correlation of .3 or more, of either sign.

    A map that comes out negated has the same pattern. No verdict rests on fewer than `LEAST` objects.
    """
    tested = [name for name in results.names if "randomised" in results.values[name]]
    means = {name: results.mean(name, "randomised") for name in tested}
    return [name for name, found in means.items() if found.count >= LEAST and abs(found.mean) >= PASSED]


def undefined(results: Results, measures: Sequence[Measure], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Measure -> reason -> contenders without any value; the last reason counts."""
    reasons: dict[str, dict[str, str]] = {}
    for row in rows:
        for measure, whys in row.get("undefined", {}).items():
            reasons.setdefault(measure, {}).update(whys)
    without: dict[str, dict[str, list[str]]] = {}
    for measure in measures:
        for name in results.names:
            if np.isnan(results.values[name][measure.name]).all() and (why := reasons.get(measure.name, {}).get(name)):
                without.setdefault(measure.name, {}).setdefault(why, []).append(name)
    return without


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {package: version for package in PACKAGES if (version := installed(package))}
    return {"python": platform.python_version(), **found}


def _plain(interval: Interval) -> dict[str, float | int | None]:
    return {k: v if isinstance(v, int) else _number(v) for k, v in asdict(interval).items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def _agreement(rows: Sequence[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """The mean over images of the rank correlation between the maps of every two contenders."""
    total = np.full((len(rows), len(names), len(names)), np.nan)
    for i, row in enumerate(rows):
        agreement = row.get("agreement", {"names": [], "matrix": []})
        places = [names.index(name) for name in agreement["names"]]
        if places:
            total[i][np.ix_(places, places)] = np.array(agreement["matrix"], dtype=float)
    return {"names": names, "matrix": [_means_over(total[:, i]) for i in range(len(names))]}


def _cascade(rows: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    """For each contender the mean rank correlation after each stage of randomisation."""
    stages: dict[str, list[list[float | None]]] = {}
    for row in rows:
        for name, values in row.get("cascade", {}).items():
            stages.setdefault(name, []).append(values)
    return {name: _means_over(np.array(lists, dtype=float)) for name, lists in stages.items()}


def _means_over(table: Values) -> list[float | None]:
    """The means of the columns of [n, k] without NaN; None for a column of NaN."""
    counts = (~np.isnan(table)).sum(axis=0)
    means = np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
    return [_number(float(mean)) for mean in means]


def markdown(document: dict[str, Any]) -> str:
    """The document of `summarise` as a Markdown page."""
    counts = f"{document['objects']} objects, {document['pictures']} images"
    packages = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    lines = ["# Are the maps true?", "", f"{document['date']}: {counts}; {document['intervals']}. {packages}."]
    if said := document.get("published"):
        lines += ["", f"## Protocol {said['name']}", "", f"{said['source']}.", ""]
        lines += [f"- {setting}." for setting in said["settings"]]
        lines += [f"- Corrected: {correction}." for correction in said["corrections"]]
    groups: dict[str, list[dict[str, str]]] = {}
    for measure in document["measures"]:
        groups.setdefault(measure["group"], []).append(measure)
    for group, measures in groups.items():
        lines += ["", f"## {group.capitalize()}", "", *_means(document, measures)]
    if document["unchanged_by_randomised_weights"]:
        flags = ", ".join(document["unchanged_by_randomised_weights"])
        lines += ["", f"**Not to be trusted as explanations**: {flags}. Their maps hardly change when the weights "
                  "are randomised: they show the image, or the box, not what the model learned."]  # fmt: skip
    lines += ["", f"## Differences from {document['reference']}", ""]
    baselines = ", ".join(name for name in BASELINES if name in document["differences"])
    lines += ["On identical objects. `+` is better and `-` is worse, with the whole interval on the same side of 0. "
              f"Baselines ignore the model and are not marked: {baselines}."]  # fmt: skip
    for measures in groups.values():
        lines += ["", *_differences(document, measures)]
    lines += ["", "## Columns", ""]
    lines += [f"- `{m['name']}` ({m['better']} is better): {m['text']}." for m in document["measures"]]
    if document.get("undefined"):
        lines += ["", "## Not defined", ""]
        lines += [
            f"- `{measure}`: {why}: {', '.join(names) if len(names) < len(document['contenders']) else 'all'}."
            for measure, whys in document["undefined"].items()
            for why, names in whys.items()
        ]
    if document.get("left_out"):
        lines += ["", "## Left out", "", *(f"- {name}: {why}" for name, why in document["left_out"].items())]
    if document["failed"]:
        lines += ["", "## Failed on some images", ""]
        lines += [f"- {name}: {len(why)}, first {why[0]}" for name, why in document["failed"].items()]
    return "\n".join(lines) + "\n"


def _means(document: dict[str, Any], measures: list[dict[str, str]]) -> list[str]:
    head = ["", *(f"{m['name']} {'↑' if m['better'] == 'higher' else '↓'}" for m in measures)]
    numbers = ["objects, images", *(f"{m['objects']}, {m['pictures']}" for m in measures)]
    contenders = document["contenders"].items()
    return _table(head, [numbers, *([name, *(_cell(row[m["name"]]) for m in measures)] for name, row in contenders)])


def _differences(document: dict[str, Any], measures: list[dict[str, str]]) -> list[str]:
    differences = document["differences"].items()
    body = [
        [name, *(_verdict(row[m["name"]], m["better"], name in BASELINES) for m in measures)]
        for name, row in differences
    ]
    return _table(["", *(m["name"] for m in measures)], body)


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]]


def _cell(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:.3g}"
    return f"{value['mean']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"


def _verdict(value: dict[str, Any], better: str, baseline: bool) -> str:
    """A difference, with a mark where it is sure; a baseline ignores the model, so it does not win by being better."""
    if value["mean"] is None:
        return "-"
    sign = 0 if value["low"] is None or baseline else (value["low"] > 0) - (value["high"] < 0)
    mark = {0: "", 1: " +", -1: " -"}[sign if better == "higher" else -sign]
    return f"{value['mean']:+.3g}{mark}"


def save(folder: Path, document: dict[str, Any]) -> list[Path]:
    """Write `report.json`, `report.md` and, with matplotlib, the plots; return their paths."""
    write(folder / "report.json", document)
    write_whole(folder / "report.md", markdown(document).encode())
    paths = [folder / "report.json", folder / "report.md"]
    try:
        return paths + draw(folder, document)
    except DependencyError as error:
        warnings.warn(f"the report has no plots: {error}", stacklevel=2)
        return paths
