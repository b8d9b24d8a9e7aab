"""Reader of the folders of the transformers library: `config.json` and `model.safetensors`, from disk only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detcam.errors import ModelError, needing
from detcam.models.checkpoint import TRUST, reason
from detcam.models.size_limits import SIDE, bounded, check_counts
from detcam.models.versions import require

CONFIG = "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
LARGEST = 2**20  # bytes: limit for a config


def read_folder(folder: Path, trust: bool = False) -> Any:
    """The model of a `save_pretrained` folder, with the class that its config names, in eval mode.

    The folder has `config.json` and `model.safetensors`, or its parts and their index; with `trust` also weights in
    `pytorch_model.bin` and other pickles are accepted. The adapter takes the folder's image processor, or processor
    with tokenizer. Code in the folder is never run, and nothing is downloaded.

    Raises a ModelError if the folder is not of this kind, is damaged, names a class that transformers lacks, describes
    a model much larger than its weights, or holds pickled weights only; a DependencyError if transformers is not
    installed.
    """
    document = _config(folder)
    _check(folder, document, trust)
    with needing(f'{folder} is a folder of transformers, which is not installed: pip install "detcam[transformers]"'):
        import transformers
        from transformers.utils import logging
    require("transformers")
    name = (document.get("architectures") or [None])[0]
    kind: Any = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not known:
        raise ModelError(f"model {folder}: {CONFIG} names the class {name!r}, which transformers does not have")
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        weights = (path for pattern in ("*.safetensors", *PICKLES) for path in folder.glob(pattern))
        with bounded(sum(path.stat().st_size for path in weights)):
            model: Any = kind.from_pretrained(
                str(folder.absolute()),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=not trust or None,
            )
    except Exception as error:  # configs and file headers are untrusted
        raise ModelError(f"model {folder} cannot be loaded ({reason(error)}): get a complete copy") from None
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    return model.eval()


def _config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ModelError(f"model {folder} is a folder without {name}: give a .pt file, or a folder of save_pretrained")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"longer than {LARGEST} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"expected keys and values, got a {type(document).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model {folder}: {name} cannot be read ({error}): get a complete copy") from None
    return document


def _check(folder: Path, document: dict[str, Any], trust: bool) -> None:
    """Refuse folders that would run their code, access the network, unpickle, or exceed size limits."""
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"model {folder} is an adapter to another model: merge them and save the result")
    for name in PROCESSORS:  # the adapter reads them later
        if (folder / name).exists():
            for part in _parts(_config(folder, name)):
                check_counts(part, f"model {folder}: {name}", SIDE)
    for part in _parts(document):
        check_counts(part, f"model {folder}: {CONFIG}")
        if "auto_map" in part:
            raise ModelError(
                f"model {folder} needs code in the folder ({CONFIG}: auto_map), which is never run: load the model in "
                "Python and give it to Explainer"
            )
        for key in ("backbone", "attn_implementation", "_attn_implementation"):
            if any(mark in str(part.get(key) or "") for mark in "/:"):
                raise ModelError(
                    f"model {folder}: {CONFIG} needs {key} {part[key]!r} from the network: save the whole model"
                )
    if not any(folder.glob("*.safetensors")) and not trust:
        if pickled := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
            raise ModelError(
                f"model {folder} has no .safetensors, and {pickled[0]} is a pickle that could run any code: convert "
                f"it, or {TRUST}"
            )
        raise ModelError(f"model {folder} holds no weights: put model.safetensors beside {CONFIG}")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """The config and all configs inside it."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending += part.values()
        elif isinstance(part, list):
            pending += part
