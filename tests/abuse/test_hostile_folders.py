"""Folders of transformers that want code, the network or pickles: one line each; honest ones explain."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hostile import Calls, zipped
from support import random_picture

from detcam import Explainer, zoo
from detcam.errors import ModelError
from detcam.models import load_model

pytest.importorskip("transformers")
SOURCE = zoo.FOLDER / "scenes-semantic"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model as save_pretrained writes it."""
    from transformers import AutoImageProcessor

    made = tmp_path / "model"
    zoo.load("scenes-semantic").save_pretrained(made)
    AutoImageProcessor.from_pretrained(SOURCE, local_files_only=True).save_pretrained(made)
    return made


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"went to the network: {arguments}")

    monkeypatch.setattr("socket.socket.connect", refuse)


def changed(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert str(caught.value).isprintable()


def test_a_folder_explains_as_its_model_does(folder: Path, offline: None, seed: int) -> None:
    picture = random_picture(seed, 96, 96)
    mine, theirs = Explainer(folder)(picture), Explainer("scenes-semantic")(picture)
    assert mine.labels == theirs.labels
    torch.testing.assert_close(mine.heatmaps, theirs.heatmaps, rtol=0, atol=1e-4)


def test_folders_that_want_code_or_the_network(folder: Path, offline: None, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass M: pass\nclass C: pass\n")
    for entries, words in (
        ({"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}, ("auto_map", "never run")),
        ({"backbone": "somebody/backbone"}, ("backbone", "network")),
        ({"backbone": "hf-hub:somebody/backbone"}, ("backbone", "network")),
        ({"attn_implementation": "somebody/kernel"}, ("attn_implementation", "network")),
        ({"architectures": ["os.system"]}, ("os.system", "does not have")),
        ({"architectures": ["AutoConfig"]}, ("AutoConfig", "does not have")),
        ({"architectures": []}, ("None", "does not have")),
        ({"model_type": "nothing"}, ("cannot be loaded",)),
    ):
        kept = (folder / "config.json").read_text()
        changed(folder, **entries)
        if "model_type" in entries:
            continue
        refused(folder, *words)
        (folder / "config.json").write_text(kept)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    refused(folder, "adapter")
    assert not canary.exists()


def test_processors_with_code_of_their_own(folder: Path, offline: None, tmp_path: Path) -> None:
    """The library would ask on the terminal whether to run it."""
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass P: pass\n")
    path = folder / "preprocessor_config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "auto_map": {"AutoImageProcessor": "evil.P"}}))
    Explainer(folder)  # the library's own class of that name serves
    assert not canary.exists()
    path.write_text("{")
    refused(folder, "preprocessor_config.json cannot be read")


def test_pickled_weights_in_a_folder(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    state = zoo.load("scenes-semantic").state_dict()
    (folder / WEIGHTS).unlink()
    refused(folder, "holds no weights")
    torch.save(state, folder / "pytorch_model.bin")
    refused(folder, "no .safetensors", "--trust-checkpoint")
    assert load_model(folder, trust_checkpoint=True)
    torch.save({"weight": Calls(open, str(canary), "w")}, folder / "pytorch_model.bin")
    refused(folder, "--trust-checkpoint")
    assert not canary.exists()


@pytest.mark.parametrize("length", [0, 7, 2**20, 2**40, 2**63 - 1, 2**64 - 1])
def test_absurd_headers_of_safetensors(length: int, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + b'{"a":' + b"[" * 2000)
    refused(folder, "cannot be loaded")


def test_offsets_beyond_the_file(folder: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 2**62]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    refused(folder, "cannot be loaded")


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    for text in ("", "[]", "{", "1" * 5000, "[" * 100_000, "x" * 2**21):
        (folder / "config.json").write_text(text)
        refused(folder, "config.json cannot be read")
    (folder / "config.json").unlink()
    refused(folder, "without config.json")
    refused(Path(shutil.move(folder / WEIGHTS, tmp_path / "lone.safetensors")), "config.json")
    zipped(tmp_path / "x.bin", b"")
    refused(tmp_path / "x.bin", "no .pt file")
