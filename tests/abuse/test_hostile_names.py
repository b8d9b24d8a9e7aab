"""Names of files and classes that would move the cursor, break a line or leave the output folder."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support import explanation_of, random_picture

import detcam.cli
from detcam.cli.explain import folders_of
from detcam.errors import DependencyError, DetcamError, InputError, plain
from detcam.images import read_image

EVIL = (
    "\x1b[2J\x1b]0;owned\x07.png",
    "two\nlines.png",
    "back\rover.png",
    "\x9b31m.png",
    "\u202egnp.exe",
    "\udcff.png",
    "\x7f",
)
LABELS = (
    "../../outside",
    "/etc/passwd",
    "a\0b",
    "\x1b[31mred",
    "..",
    "",
    "CON",
    "x" * 500,
    "日本",
    "\u202eevil",
    "a/b\\c",
)


def harmless(text: str) -> bool:
    return all(c == "\n" or c.isprintable() or c in "\u200c\u200d" for c in text)


@pytest.mark.parametrize("name", EVIL)
def test_control_characters_do_not_reach_the_terminal(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert harmless(str(caught.value))
    assert "\n" not in str(caught.value)
    for arguments in (
        ["explain", str(path)], ["layers", str(path)], ["video", str(path), "--model", "scenes"],
        ["layers", "scenes-yolo", "--image", str(path)],
        ["explain", "--config", str(path)], ["evaluate", "--model", name, "--images", str(path), "--labels", str(path)],
    ):  # fmt: skip
        assert detcam.cli.app.run(arguments) == 2, arguments
        said = capsys.readouterr()
        assert harmless(said.out + said.err), (arguments, said)
        assert said.err.count("\n") == 1, said.err


def test_a_picture_with_such_a_name_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "\x1b[2J\nok.png"
    path.write_bytes(cv2.imencode(".png", random_picture(1, 64, 64))[1].tobytes())
    assert (
        detcam.cli.app.run(["explain", "--model", "scenes", str(path), "--out", str(tmp_path / "out"), "--conf", "0.9"])
        == 0
    )
    said = capsys.readouterr()
    assert harmless(said.out)
    assert said.out.count("\n") == 1
    assert json.loads((tmp_path / "out" / "explanation.json").read_text())


def test_plain_keeps_what_is_text() -> None:
    for text in ("café", "日本語", "👩\u200d🚀", "می\u200cخواهم", "a  b"):
        assert plain(text) == text
    assert plain("a\x1b[2J\n\u202e") == "a\\x1b[2J\\n\\u202e"
    assert str(DetcamError("a\nb")) == "a\\nb"
    assert isinstance(DependencyError("x"), ImportError)


def test_labels_do_not_leave_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    maps = [torch.rand(4, 4) for _ in LABELS]
    explanation = explanation_of(random_picture(2, 40, 60), maps, labels=LABELS)
    explanation.save(out)
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all(path.parts[:2] == ("deep", "out") and len(path.parts) == 3 for path in written), written
    assert len([p for p in written if p.name.startswith("overlay_")]) == len(LABELS)
    assert all(p.name.isascii() and p.name.isprintable() for p in written)


def test_an_earlier_document_cannot_name_files_to_delete(tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "overlay_000_x.png"
    out.mkdir()
    victim.write_bytes(b"mine")
    names = ["../overlay_000_x.png", str(victim), "overlay_000_../../x.png", 7, None]
    (out / "explanation.json").write_text(json.dumps({"objects": [{"overlay": name} for name in names]}))
    explanation_of(random_picture(3, 40, 60), [torch.rand(4, 4)]).save(out)
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "names", [["...png", "a.png"], ["a/..", "b/.."], ["..png", ".png"], ["a.png", "b/a.png"], ["..", "."]]
)
def test_names_of_pictures_do_not_leave_the_folder(names: list[str], tmp_path: Path) -> None:
    folders = folders_of([Path(name) for name in names], tmp_path)
    assert all(folder.resolve().parent == tmp_path.resolve() for folder in folders), folders
    assert len(set(folders)) == len(names)


def test_names_in_label_files_do_not_leave_the_folder(tmp_path: Path) -> None:
    """A COCO file may give its images any name: only the last part counts."""
    from detcam.evaluate.labels.read import read_labels

    document = {
        "images": [{"id": 1, "file_name": "../../etc/a.jpg"}], "categories": [{"id": 1, "name": "\x1b[31m"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(document))
    labels = read_labels(tmp_path / "x.json").of(Path("a.jpg"), 9, 9)
    assert np.array_equal(labels[0].box, [0, 0, 5, 5])
