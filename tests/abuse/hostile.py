"""Checkpoints that write a file if anything in them runs."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Calls:
    """An object that is pickled as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


class Awakened(nn.Module):
    """A layer of no library that writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        super().__init__()
        self.canary = str(canary)

    def __setstate__(self, state: dict[str, Any]) -> None:
        open(state["canary"], "w").close()


def contents(canary: Path) -> dict[str, tuple[Any, str]]:
    """Values for "model" in a checkpoint, each with the name that its refusal must give."""
    touch = f"touch {canary}"
    write = f"open({str(canary)!r}, 'w').close()"
    system = f"{os.system.__module__}.system"
    layer = nn.Sequential(nn.Conv2d(3, 4, 1))
    layer.hook = Calls(os.system, touch)
    return {
        "os.system": (Calls(os.system, touch), system),
        "eval": (Calls(eval, f"[{write}]"), "builtins.eval"),
        "exec": (Calls(exec, write), "builtins.exec"),
        "open": (Calls(open, str(canary), "w"), f"{open.__module__}.open"),
        "nested": ([{"layers": (Calls(os.system, touch),)}], system),
        "inside a layer": (layer, system),
        "getattr": (Calls(getattr, Calls(__import__, "os"), "system"), "builtins.__import__"),
        "setstate": (Awakened(canary), f"{Awakened.__module__}.Awakened"),
        "compile": (Calls(builtins.compile, write, "x", "exec"), "builtins.compile"),
    }


def zipped(path: Path, pickled: bytes, folder: str = "archive", compression: int = zipfile.ZIP_STORED) -> Path:
    """A file as torch.save writes it, around these pickled bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", pickled)
        archive.writestr(f"{folder}/version", "3\n")
        archive.writestr(f"{folder}/byteorder", "little")
    return path


def legacy(path: Path, content: Any) -> Path:
    """A file as torch.save wrote it before version 1.6."""
    buffer = io.BytesIO()
    torch.save({"model": content}, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue())
    return path


def bare(path: Path, content: Any, protocol: int) -> Path:
    """A pickle that torch did not write."""
    path.write_bytes(pickle.dumps({"model": content}, protocol))
    return path


def opcodes(*, function: str, arguments: bytes) -> bytes:
    """The pickle `{"model": function(arguments)}` of protocol 2; no honest pickler writes it."""
    module, _, name = function.rpartition(".")
    model = b"c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R"
    return b"\x80\x02}X\x05\x00\x00\x00model" + model + b"s."


def text(value: str) -> bytes:
    """The opcode of a string."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data
