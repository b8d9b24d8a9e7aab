"""The plan of the house, see docs/architecture.md: which room may import which, and what may stand where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
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
Sources = dict[str, str]  # path below detcam/ -> source


@dataclass(frozen=True)
class Import:
    """An import that runs; those for type checkers do not."""

    line: int
    module: str
    names: tuple[str, ...]
    function: str  # around it; "" at module level

    @property
    def rooms(self) -> list[str]:
        head, _, rest = self.module.partition(".")
        return [room for room in ([rest.split(".")[0]] if rest else self.names) if head == "detcam" and room in FLOOR]


@cache
def house() -> Sources:
    return {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def module_of(path: str) -> str:
    return "detcam." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def imports_of(source: str) -> list[Import]:
    def walk(node: ast.AST, function: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom):
                yield Import(child.lineno, child.module or "", tuple(alias.name for alias in child.names), function)
            elif isinstance(child, ast.Import):
                yield from (Import(child.lineno, alias.name, (), function) for alias in child.names)
            else:
                yield from walk(child, child.name if isinstance(child, ast.FunctionDef) else function)

    return list(walk(ast.parse(source), ""))


@cache
def names_in(source: str) -> list[tuple[int, str]]:
    """(line, name) of every name and attribute that the code uses."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Name, ast.Attribute))]
    return [(node.lineno, node.id if isinstance(node, ast.Name) else node.attr) for node in nodes]


@cache
def owners() -> dict[str, str]:
    """Class -> the room that alone may name it: the registered methods, and the adapters of one family."""
    registry = [node.value for node in ast.parse(house()["methods/__init__.py"]).body if isinstance(node, ast.Assign)]
    methods = [
        item.id for row in registry if isinstance(row, ast.Tuple) for item in row.elts if isinstance(item, ast.Name)
    ]
    trees = [ast.parse(source) for path, source in house().items() if room_of(path) == "adapters"]
    classes = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    adapters = {name for name in classes if name.endswith(("Adapter", "Classifier"))} - {"Adapter", "CallableAdapter"}
    return dict.fromkeys(methods, "methods") | dict.fromkeys(adapters, "adapters")


def complaints(files: Sources) -> Iterator[str]:
    """`path:line rule: what is wrong` for each breach."""
    graph: dict[str, set[str]] = {}
    modules = {module_of(path) for path in files}
    for path, source in files.items():
        room = room_of(path)
        for found in imports_of(source):
            place, library = f"{path}:{found.line}", found.module.split(".")[0]
            for other in set(found.rooms) - {room} if room not in ENTRANCES else ():
                if FLOOR[other] <= FLOOR[room] and not (room == "conversions" and found.function.startswith("to_")):
                    yield f"{place} {'8' if found.function else '1'}: {room} imports {other}, which is not below it"
                if other in APART.get(room, ()):
                    yield f"{place} 2: {room} imports {other}"
            if library == "detcam" and not found.function:
                known = {f"{found.module}.{name}" for name in found.names} & modules
                graph.setdefault(module_of(path), set()).update(known or {found.module})
            if library in ("typer", "rich") and room != "cli":
                yield f"{place} 4: {library} belongs to cli/"
            if library in LIBRARIES and (not found.function or room not in LIBRARY_ROOMS):
                yield f"{place} 5: {library} is imported inside functions of {', '.join(sorted(LIBRARY_ROOMS))} only"
            if library == "detcam" and any(name.startswith("_") and not name.startswith("__") for name in found.names):
                yield f"{place} 6: {', '.join(found.names)} of {found.module} is private"
        for line, name in names_in(source) if room not in ENTRANCES else ():
            if owners().get(name, room) != room:
                yield f"{path}:{line} 3: {name} is named outside {owners()[name]}/"
    loose = [path for path in files if "/" not in path and room_of(path) not in ENTRANCES]
    if len(loose) > LOOSE:
        yield f"{loose[-1]}:0 7: {len(loose)} loose modules, {LOOSE} at most"
    yield from (f"{circle[0]}:0 1: import circle {' -> '.join(circle)}" for circle in circles(graph))


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
    assert list(complaints(house())) == []


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
    broken = house() | {path: f"{house().get(path, '')}\n{line}\n"}
    assert any(breach in complaint for complaint in complaints(broken))


def undocumented(files: Sources) -> Iterator[str]:
    """`path:line Class.method` of each public method without a docstring, of its own or of a method it overrides."""
    classes: dict[str, list[tuple[str, ast.ClassDef]]] = {}
    for path, source in files.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append((path, node))

    def documented(owner: ast.ClassDef, name: str) -> bool:
        own = [node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == name]
        names = {node.id for base in owner.bases for node in ast.walk(base) if isinstance(node, ast.Name)}
        bases = [node for base in names for _, node in classes.get(base, ())]
        return any(map(ast.get_docstring, own)) or any(documented(base, name) for base in bases)

    for path, owner in (found for group in classes.values() for found in group if not found[1].name.startswith("_")):
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not documented(owner, node.name):
                yield f"{path}:{node.lineno} {owner.name}.{node.name}"


def test_public_methods_have_a_docstring_or_inherit_one() -> None:
    assert list(undocumented(house())) == []
    bare = "class Bare(Adapter):\n    def forward(self): ...\n    def other(self): ...\n"
    assert list(undocumented(house() | {"bare.py": bare})) == ["bare.py:3 Bare.other"]
