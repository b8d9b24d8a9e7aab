"""Every block of Python and every command in README and docs runs, page by page, as a reader would run them."""

import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from detr_models import random_detr
from pages import PAGES, arguments, blocks, furnish
from recipe_models import install
from sam_models import random_sam
from support import random_picture
from text_prompted_models import random_prompted
from torchvision_models import small

from detcam import cli

# Commands that do not run here, by their beginning, and why.
ELSEWHERE = {
    "make ": "builds an environment: a task for a clean clone",
    "pip install": "changes the environment",
    "python benchmarks/": "measures for an hour",
    "python -m pytest": "the tests run it",
    "detcam evaluate --scenes": "minutes a scene; tests/evaluate judges planted scenes",
    "ray start": "starts a cluster",
    "detcam batch s3://": "needs a bucket and a cluster, which tests/batch has",
    "detcam video rtsp://": "needs a camera in the network",
    "detcam video 0": "needs a camera",
}
# Commands that run smaller than the page says.
SMALLER = {
    "detcam demo --out demo": "detcam demo --out demo --scenes 1",
    "detcam batch photos": "detcam batch photos --workers 1",
    "--methods odam,fused,layercam": "--methods odam --layers level --pictures 1 --objects 1 --quick",
    "--methods odam,layercam": "--methods odam --layers level --pictures 1 --objects 1",
    "--methods search,odam": "--methods odam --layers level --pictures 1 --objects 1 --quick --conf 0.25",
    "--methods all": "--methods odam --layers level --pictures 1 --objects 1",
    "--config configs/blackbox.yaml": "--config configs/blackbox.yaml --imgsz 64",
}


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models with random weights where a page takes pretrained ones, which would have to be downloaded."""
    import torchvision.models.detection as detection
    import transformers

    picture = random_picture(0, 120, 160)

    checkpoints = {
        "facebook/sam-vit-base": ("SamModel", "SamProcessor", random_sam("sam", 0)),
        "PekingU/rtdetr_r50vd": ("AutoModelForObjectDetection", "AutoImageProcessor", random_detr("rt_detr", 0)),
        "IDEA-Research/grounding-dino-tiny": (
            "AutoModelForZeroShotObjectDetection", "AutoProcessor", random_prompted("grounding-dino", 0),
        ),
    }  # fmt: skip

    install(monkeypatch)

    def stand_in(kind: str, name: str, substitute: object) -> None:
        real = getattr(transformers, kind).from_pretrained

        def from_pretrained(given: object, **options: object) -> object:
            return substitute if given == name else real(given, **options)

        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", from_pretrained)

    for name, (model, processor, pair) in checkpoints.items():
        stand_in(model, name, pair[0])
        stand_in(processor, name, pair[1])
    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn", lambda weights: small("faster", 0, picture))


@pytest.fixture
def desk(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the furnished folder, as the working directory."""
    folder = tmp_path / "desk"
    shutil.copytree(furnished, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(command.startswith(start) for start in ELSEWHERE):
        return
    for stated, smaller in SMALLER.items():
        command = command.replace(stated, smaller)
    words = arguments(command)
    if words[:2] == ["python", words[1]] and words[1].startswith("examples/"):
        monkeypatch.setattr("sys.argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "detcam", f"{command}: neither runs here nor is listed as running elsewhere"
    if ">" in words:
        words = words[: words.index(">")]
    assert cli.run(words[1:]) == 0, command


# Pages of more than some seconds, and pages that need libraries of the nightly tier.
NIGHTLY = ("batch.md", "evaluation.md", "index.md", "looks.md", "options.md", "pages.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.nightly if page.name in NIGHTLY else (), id=page.name) for page in PAGES],
)
@pytest.mark.usefixtures("desk", "pretrained")
def test_the_code_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if block.language == "python":
            # The blank lines make a traceback name the line of the page.
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
        for command in block.commands:
            run_command(command, monkeypatch)
