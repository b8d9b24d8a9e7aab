"""A method from another package: a real one, with its metadata, in a folder on the path."""

import json
from pathlib import Path

import pytest
import torch
from sweep_settings import Setting

from detcam import cli
from detcam.errors import MethodError
from detcam.methods import METHODS, get_method, plugins

SOURCE = '''
from detcam.methods import Method


class Loudest(Method):
    """The channel that adds most."""

    name, formula, source = "loudest", "max_k g_k * A_k", "a test, 2026"

    def maps(self, acts, grads):
        return (acts * grads).amax(dim=1)


class Thief(Loudest):
    name = "odam"


nothing = 3
'''


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """What an installer leaves in site-packages."""
    (folder / "otherpackage_of_tests.py").write_text(SOURCE)
    information = folder / "otherpackage_of_tests-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: otherpackage-of-tests\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[detcam.methods]\n{entry}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_plug_in_is_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(METHODS)
    assert "loudest" not in plugins()
    install(tmp_path, monkeypatch, "loudest = otherpackage_of_tests:Loudest")
    assert list(plugins()) == ["loudest"]
    assert set(METHODS) == before
    explanation = setting.explain("loudest", layers="level")
    assert explanation.settings["method"] == "loudest"
    both = setting.explain("mean:loudest,odam")
    for one, joined in zip(explanation.maps, both.maps, strict=True):
        assert one.any()
        assert torch.isfinite(joined).all()
    with pytest.raises(MethodError, match="did you mean 'loudest'"):
        get_method("loudist")
    assert cli.run(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    assert rows["loudest"]["formula"] == "max_k g_k * A_k"
    assert rows["loudest"]["passes"] == "1 F + N B"


@pytest.mark.parametrize("what", ["Thief", "nothing"])
def test_a_plug_in_that_is_none_says_so(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, f"wrong = otherpackage_of_tests:{what}")
    with pytest.raises(MethodError, match=f"plug-in 'otherpackage_of_tests:{what}': expected a class derived"):
        get_method("something else")
    assert get_method("odam").name == "odam"  # our own never wait for others
