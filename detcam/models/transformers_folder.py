"""A folder of the transformers library as a model: `config.json` beside `model.safetensors`, read from disk only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detcam.errors import DependencyError, ModelError
from detcam.models.checkpoint import TRUST
from detcam.models.size_limits import SIDE, bounded, check_counts
from detcam.models.versions import require

CONFIG = "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
LARGEST = 2**20  # bytes of a config


def read_folder(folder: Path, trust: bool = False) -> Any:
    """The model of a folder that `save_pretrained` wrote, of the class that its config names, in eval mode.

    Its adapter takes the folder's image processor, or processor with tokenizer, too. No code of the folder's own is
    ever run, and nothing is downloaded.

    Args:
        folder: with `config.json` and `model.safetensors`, or the parts of one and their index.
        trust: take weights from `pytorch_model.bin` and the like, too.

    Raises:
        ModelError: if it is none, is damaged, names a class that transformers lacks, describes a model much larger
            than its weights, or holds pickled weights only.
        DependencyError: if transformers is not installed.
    """
    document = _config(folder)
    _check(folder, document, trust)
    try:
        import transformers
    except ImportError:
        raise DependencyError(
            f'{folder} is a folder of transformers, which is not installed: pip install "detcam[transformers]"'
        ) from None
    require("transformers")
    name = (document.get("architectures") or [None])[0]
    kind = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ModelError(f"model {folder}: {CONFIG} names the class {name!r}, which transformers does not have")
    try:
        with _silent(), bounded(_weight(folder)):
            model: Any = kind.from_pretrained(
                str(folder.absolute()),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=not trust or None,
            )
    except Exception as error:  # a config or a file's header may say anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".:")
        raise ModelError(f"model {folder} cannot be loaded ({reason}): get a whole copy") from None
    return model.eval()


@contextmanager
def _silent() -> Iterator[None]:
    """Without the library's own progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ModelError(f"model {folder} is a folder without {name}: give a .pt file, or what save_pretrained wrote")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"longer than {LARGEST} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"a {type(document).__name__} where keys and values belong")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model {folder}: {name} cannot be read ({error}): get a whole copy") from None
    return document


def _check(folder: Path, document: dict[str, Any], trust: bool) -> None:
    """Refuse what would run code of the folder's own, go to the network, unpickle, or count without end."""
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
                f"model {folder} needs code of its own ({CONFIG}: auto_map), which is never run: load it in Python "
                "yourself and give the model to Explainer"
            )
        for key in ("backbone", "attn_implementation", "_attn_implementation"):
            if any(mark in str(part.get(key) or "") for mark in "/:"):
                raise ModelError(f"model {folder}: {CONFIG} wants {key} {part[key]!r} from the network: save it whole")
    if not any(folder.glob("*.safetensors")) and not trust:
        pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"model {folder} has no .safetensors, and {pickled[0]} is a pickle that could run any code: convert "
                f"it, or {TRUST}"
            )
        raise ModelError(f"model {folder} holds no weights: put model.safetensors beside {CONFIG}")


def _weight(folder: Path) -> int:
    """Bytes of all weights in a folder."""
    return sum(path.stat().st_size for pattern in ("*.safetensors", *PICKLES) for path in folder.glob(pattern))


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """The config and each config inside it."""
    rest = [value]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            yield part
            rest += part.values()
        elif isinstance(part, list):
            rest += part
