"""Folders of transformers that want code, the network, pickles or all memory are refused; honest folders work."""

import json
import shutil
import struct
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hostile import Calls, zipped
from support import random_picture
from torch import nn
from torch.nn.modules.module import _global_module_registration_hooks, _global_parameter_registration_hooks

from detcam import Explainer, zoo
from detcam.errors import ModelError
from detcam.models.load import load_model
from detcam.models.size_limits import bounded

pytest.importorskip("transformers")
SOURCE = zoo.FOLDER / "scenes-semantic"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as save_pretrained writes it."""
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
    """The library would ask on the terminal whether to run the code."""
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass P: pass\n")
    path = folder / "preprocessor_config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "auto_map": {"AutoImageProcessor": "evil.P"}}))
    Explainer(folder)  # uses the library's class of that name
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


MANY_LAYERS: dict[str, Any] = {"backbone_config": {"depths": [1, 10**5, 1, 1], "hidden_sizes": [1, 1, 1, 1]}}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"hidden_size": 10**9}, ("config.json has 1,000,000,000 for 'hidden_size'",)),
        ({"id2label": None, "num_labels": 10**9}, ("1,000,000,000 for 'num_labels'",)),
        ({"backbone_config": {"depths": [1, 10**9, 1, 1]}}, ("1,000,000,003 for 'depths'",)),
        ({"anchor_image_size": [2**18, 2**18]}, ("524,288 for 'anchor_image_size'", "the limit is 16,384")),
        ({"backbone_config": {"depths": [2**20, 2**20, 1, 1]}}, ("2,097,154 for 'depths'",)),
        pytest.param(MANY_LAYERS, ("16,384 layers",), marks=pytest.mark.nightly),
        ({"backbone_config": {"hidden_sizes": [24, 48, 96, 10**5]}}, ("parameters, for", "bytes of weights")),
        ({"hidden_size": 2**14}, ("parameters, for", "bytes of weights")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_configurations_of_absurd_size(entries: dict[str, Any], words: tuple[str, ...], folder: Path) -> None:
    """Refused before the memory is taken: building 10^9 layers never ends."""
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    if "backbone_config" in entries:
        entries = {"backbone_config": {**backbone, **entries["backbone_config"]}}
    changed(folder, **entries)
    before = psutil.Process().memory_info().rss
    refused(folder, *words)
    assert psutil.Process().memory_info().rss - before < 300 * 2**20
    assert not any((_global_parameter_registration_hooks, _global_module_registration_hooks))


def test_layers_are_counted_while_the_model_is_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detcam.models.size_limits.MODULES", 1024)
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    changed(folder, backbone_config={**backbone, **MANY_LAYERS["backbone_config"]})
    refused(folder, "1,024 layers")


@pytest.mark.parametrize("entry", [{"size": {"height": 10**6, "width": 10**6}}, {"pad_size": 10**5}], ids=str)
def test_processors_that_make_absurd_images(entry: dict[str, Any], folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    refused(folder, "preprocessor_config.json has", "the limit is 8,192")


def test_models_that_others_build_meanwhile_are_not_counted(seed: int) -> None:
    """Only models on the meta device count, and only in the thread that loads."""
    with bounded(0), torch.device("meta"):
        nn.Linear(1000, 1000)
        in_thread = threading.Thread(target=lambda: built.append(nn.Linear(2**13, 2**12, device="meta")))
        built: list[nn.Module] = []
        in_thread.start()
        in_thread.join()
        nn.Linear(1000, 1000, device="cpu")
        with pytest.raises(ValueError, match="more than 16,777,216 parameters, for 0 bytes"):
            nn.Linear(2**13, 2**12)
    assert len(built) == 1
    nn.Linear(2**13, 2**12, device="meta")


def test_folders_that_hold_no_model(folder: Path, tmp_path: Path) -> None:
    for text in ("", "[]", "{", "1" * 5000, "[" * 100_000, "x" * 2**21):
        (folder / "config.json").write_text(text)
        refused(folder, "config.json cannot be read")
    (folder / "config.json").unlink()
    refused(folder, "without config.json")
    refused(Path(shutil.move(folder / WEIGHTS, tmp_path / "lone.safetensors")), "config.json")
    zipped(tmp_path / "x.bin", b"")
    refused(tmp_path / "x.bin", "not a .pt file")
