"""The plan of the house, see docs/architecture.md: which room may import which, and what may stand where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "detcam"
FLOORS = """
    cli
    report video
    batch
    analysis
    evaluate
    integrations
    layers
    explainer
    runners
    questions config
    options
    methods adapters
    explanation
    conversions
    engine
    models
    saved zoo
    render scenes
    ops images
    boxes types
    geometry files errors
"""  # from top to bottom: a room imports only rooms on lines below its own
FLOOR = {room: number for number, line in enumerate(FLOORS.split("\n")) for room in line.split()}
ENTRANCES = {"__init__", "__main__"}  # they may import any room
APART = {"ops": {"engine", "adapters"}, "engine": {"ops", "adapters"}, "adapters": {"ops", "engine"},
         "methods": {"ops", "adapters"}}  # fmt: skip
LIBRARIES = {"ultralytics", "torchvision", "transformers", "segmentation_models_pytorch", "timm", "rfdetr"}
LIBRARY_ROOMS = {"adapters", "models", "zoo"}  # they explain, load and ship the libraries' models
LOOSE = 13
Trees = dict[str, ast.Module]  # path below detcam/ -> syntax tree


@cache
def house() -> Trees:
    files = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in files}


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def module_of(path: str) -> str:
    return "detcam." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(node: ast.AST, within: str = "") -> Iterator[tuple[ast.stmt, str, list[str], str]]:
    """(statement, module, names, function around it) of each import that runs; those for type checkers do not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom):
            yield child, child.module or "", [alias.name for alias in child.names], within
        elif isinstance(child, ast.Import):
            for alias in child.names:
                yield child, alias.name, [], within
        else:
            function = child.name if isinstance(child, ast.FunctionDef) else within
            yield from imports(child, function)


def rooms_of(module: str, names: list[str]) -> list[str]:
    """The rooms that an import of detcam reaches."""
    parts = module.split(".")
    if parts[0] != "detcam":
        return []
    return [room for room in (parts[1:2] or names) if room in FLOOR]


def concrete(files: Trees) -> dict[str, str]:
    """Class -> the room that alone may name it: the registered methods, and all adapters of one family."""
    found = {}
    for path, tree in files.items():
        if path == "methods/__init__.py":
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                    found |= {item.id: "methods" for item in node.value.elts if isinstance(item, ast.Name)}
        elif room_of(path) == "adapters":
            classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
            found |= {name: "adapters" for name in classes if name.endswith(("Adapter", "Classifier"))}
    return {name: room for name, room in found.items() if name not in ("Adapter", "CallableAdapter")}


def complaints(files: Trees) -> list[str]:
    """`path:line rule: what is wrong` for each breach."""
    found: list[str] = []
    owners = concrete(files)
    graph: dict[str, set[str]] = {}
    for path, tree in files.items():
        room = room_of(path)

        def complain(node: ast.AST, rule: str, path: str = path) -> None:
            found.append(f"{path}:{getattr(node, 'lineno', 0)} {rule}")

        for node, module, names, function in imports(tree):
            for other in rooms_of(module, names):
                if room in ENTRANCES or other == room:
                    continue
                if FLOOR[other] <= FLOOR[room] and not (room == "conversions" and function.startswith("to_")):
                    complain(node, f"{'8' if function else '1'}: {room} imports {other}, which is not below it")
                if other in APART.get(room, ()):
                    complain(node, f"2: {room} imports {other}")
            if not function and module.startswith("detcam"):
                known = {f"{module}.{name}" for name in names} & {module_of(p) for p in files}
                graph.setdefault(module_of(path), set()).update(known or {module})
            library = module.split(".")[0]
            if library in ("typer", "rich") and room != "cli":
                complain(node, f"4: {library} belongs to cli/")
            if library in LIBRARIES and (not function or room not in LIBRARY_ROOMS):
                complain(node, f"5: {library} is imported inside functions of {', '.join(sorted(LIBRARY_ROOMS))} only")
            if library == "detcam" and any(name.startswith("_") and not name.startswith("__") for name in names):
                complain(node, f"6: {', '.join(names)} of {module} is private")
        for name in ast.walk(tree):
            if isinstance(name, (ast.Name, ast.Attribute)):
                named = name.id if isinstance(name, ast.Name) else name.attr
                if owners.get(named, room) != room and room not in ENTRANCES:
                    complain(name, f"3: {named} is named outside {owners[named]}/")
    loose = [path for path in files if "/" not in path and room_of(path) not in ENTRANCES]
    if len(loose) > LOOSE:
        found.append(f"{loose[-1]}:0 7: {len(loose)} loose modules, {LOOSE} at most")
    found += [f"{circle[0]}:0 1: import circle {' -> '.join(circle)}" for circle in circles(graph)]
    return found


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """The first circle from each module that lies on one; a package and what its __init__ imports count as one."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str] | None:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return None
        for other in sorted(graph.get(module, ())):
            if other != module and (circle := walk(other, [*way, module])):
                return circle
        done.add(module)
        return None

    for module in sorted(graph):
        if circle := walk(module, []):
            yield circle
            return


def test_the_house_stands_as_planned() -> None:
    assert complaints(house()) == []


def test_every_room_is_on_the_plan() -> None:
    assert {room_of(path) for path in house()} - ENTRANCES == set(FLOOR)


BREACHES = {
    "1: engine imports runners": ("engine/capture.py", "import detcam.runners.base"),
    "1: types imports explanation": ("types.py", "from detcam.explanation import Explanation"),
    "1: import circle": ("engine/window.py", "import detcam.engine.window_gradients"),
    "2: engine imports ops": ("engine/capture.py", "from detcam import ops"),
    "2: methods imports adapters": ("methods/finer.py", "from detcam.adapters import Adapter"),
    "3: ODAM is named outside methods/": ("runners/dispatch.py", "from detcam import methods\nmethods.ODAM"),
    "3: YoloAdapter is named outside adapters/": ("explainer.py", "YoloAdapter = None"),
    "4: rich belongs to cli/": ("batch/job.py", "from rich.console import Console"),
    "5: ultralytics is imported inside": ("adapters/ultralytics/yolo.py", "from ultralytics import YOLO"),
    "5: timm is imported inside": ("render/overlay.py", "def draw():\n    import timm"),
    "6: _seed of detcam.runners.windowed is private": ("explainer.py", "from detcam.runners.windowed import _seed"),
    "7: 14 loose modules": ("more.py", ""),
    "8: explanation imports report": ("explanation.py", "def page():\n    import detcam.report"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_each_rule_complains_when_it_is_broken(breach: str) -> None:
    path, line = BREACHES[breach]
    source = (PACKAGE / path).read_text("utf-8") if path in house() else ""
    files = house() | {path: ast.parse(f"{source}\n{line}\n")}
    assert any(breach in complaint for complaint in complaints(files))
