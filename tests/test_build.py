"""The binaries that were built are the ones that were asked for, hold what they should, and load."""

import importlib.util
import os
import re
import runpy
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detcam import ops
from detcam.ops import loading

FOLDER = Path(loading.__file__).parent
INFO = ops.build_info()
KERNELS = {  # entry functions that each CUDA stem compiles
    "cam_maps": ("sum_cells", "write_maps"),
    "elementwise_maps": ("sum_channels", "sum_cells"),
    "overlay": ("paint",),
}
OPERATORS = tuple(KERNELS)


def binary(device: str) -> Path:
    path = FOLDER / f"_{device}.so"
    if not path.exists():
        pytest.skip(f"not built for {device}: {INFO['missing'].get(device)}")
    return path


def test_every_operator_has_a_stem_everywhere() -> None:
    """One schema, one test, and where the sources are at hand one file for each device."""
    root = Path(__file__).parent.parent
    for op in OPERATORS:
        assert callable(getattr(ops, op))
        assert (root / "tests" / "ops" / f"test_{op}.py").exists()
        assert (root / "csrc" / "cpu" / f"{op}.cpp").exists()
        assert (root / "csrc" / "cuda" / f"{op}.cu").exists()
    assert {path.stem for path in (root / "csrc" / "cpu").glob("*.cpp")} == set(OPERATORS)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("op", [*OPERATORS, "cam_maps.out"])
def test_a_loaded_binary_brings_every_kernel(op: str, device: str) -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"detcam::{op}", device.upper())
    assert registered == INFO[device]
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"detcam::{op}", "CompositeExplicitAutograd")


def dynamic_symbols(path: Path, which: str) -> set[str]:
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    listing = subprocess.run(["nm", "-D", which, path], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in listing.splitlines()}


def test_every_device_is_compiled_or_says_why() -> None:
    for device in ("cpu", "cuda"):
        assert INFO[device] == ops.is_compiled(device) == (device not in INFO["missing"])
        assert INFO[device] or INFO["missing"][device]
    assert not ops.is_compiled("meta")


def test_what_was_built_loads() -> None:
    for device in ("cpu", "cuda"):
        if (FOLDER / f"_{device}.so").exists() and "DETCAM_DISABLE_COMPILED" not in os.environ:
            assert INFO[device], INFO["missing"][device]


def test_a_compiler_means_a_cpu_kernel() -> None:
    if INFO["mode"] in ("none", None):
        pytest.skip(f"built with mode {INFO['mode']}")
    assert binary("cpu")


def test_nvcc_means_a_cuda_kernel() -> None:
    """Where CUDA was wanted: on a machine with a GPU, in CI, or by DETCAM_BUILD=cuda."""
    nvcc = shutil.which("nvcc", path=f"{os.environ['CUDA_HOME']}/bin" if "CUDA_HOME" in os.environ else None)
    wanted = INFO["mode"] == "cuda" or (INFO["mode"] == "auto" and "no GPU" not in INFO["missing"].get("cuda", ""))
    if nvcc is None or torch.version.cuda is None or not wanted:
        pytest.skip(f"nvcc {nvcc}, torch CUDA {torch.version.cuda}, mode {INFO['mode']}, {INFO['missing'].get('cuda')}")
    assert (FOLDER / "_cuda.so").exists(), INFO["missing"]
    assert INFO["cuda_version"] in subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout


def test_facts_are_of_this_build() -> None:
    binary("cpu")
    release = tuple(int(part) for part in INFO["torch"].split(".")[:2])
    assert release >= (2, 10)
    assert re.match(r"(GCC|Clang) \d+\.\d+", INFO["compiler"])
    cuda = (FOLDER / "_cuda.so").exists()
    assert bool(INFO["cuda_version"]) == bool(INFO["archs"]) == cuda


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_the_stable_abi_is_used(device: str) -> None:
    """No mangled at:: or c10:: symbol is needed, so one binary serves every torch from 2.10 on."""
    needed = dynamic_symbols(binary(device), "--undefined-only")
    assert not {symbol for symbol in needed if re.match(r"_ZN?K?(2at|3c10|5torch)", symbol)}
    assert "torch_library_impl" in needed
    assert ("aoti_torch_get_current_cuda_stream" in needed) == (device == "cuda")
    assert any(symbol.startswith("__cuda") for symbol in needed) == (device == "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_of_ours_is_exported(device: str) -> None:
    assert not {symbol for symbol in dynamic_symbols(binary(device), "--defined-only") if "detcam" in symbol}


def embedded_architectures(path: Path) -> set[str]:
    """Read the headers of the fat binaries: what cuobjdump lists, which not every toolkit brings."""
    data, found = path.read_bytes(), set()
    for start in (match.start() for match in re.finditer(rb"\x50\xed\x55\xba\x01\x00\x10\x00", data)):
        end = start + 16 + struct.unpack_from("<Q", data, start + 8)[0]
        entry = start + 16
        while entry < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, entry)
            arch = struct.unpack_from("<I", data, entry + 28)[0]
            found.add(f"{'compute' if kind == 1 else 'sm'}_{arch}")
            entry += header + size
    return found


def test_architectures() -> None:
    path = binary("cuda")
    assert embedded_architectures(path) == set(INFO["archs"])
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        assert any(int(arch.partition("_")[2]) <= 10 * major + minor for arch in INFO["archs"])
    elif "TORCH_CUDA_ARCH_LIST" not in os.environ:  # built without a GPU: for all
        assert {"sm_80", "sm_86", "sm_89", "sm_90"} <= set(INFO["archs"])
    assert sum(arch.startswith("compute_") for arch in INFO["archs"]) == 1


def test_no_kernel_spills() -> None:
    """A register that spills to memory is the first thing to look at when a kernel is slow."""
    binary("cuda")
    log = (FOLDER / "_cuda_ptxas.log").read_text()
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(sm_\d+)'", log)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert {arch for _, arch in kernels} == {arch for arch in INFO["archs"] if arch.startswith("sm_")}
    assert len(spills) >= len(kernels) > 0
    assert {int(count) for row in spills for count in row[1:]} == {0}
    for op, names in KERNELS.items():
        for name in names:
            found = {arch for entry, arch in kernels if f"_{op}_cu_" in entry and f"{len(name)}{name}I" in entry}
            assert found == {arch for _, arch in kernels}, f"{name} of {op}"


Chosen = Callable[..., list[str]]


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """The architectures that setup.py builds for, given the output of nvidia-smi and environment variables."""

    def choose(smi: str, **variables: str) -> list[str]:
        for name in ("CI", "DETCAM_BUILD", "TORCH_CUDA_ARCH_LIST"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("setuptools.setup", lambda **options: None)
        script = runpy.run_path(str(Path(__file__).parents[1] / "setup.py"))
        script["visible_gpus"].__globals__["Path"] = lambda path: tmp_path / "no driver"
        try:
            archs: list[str] = script["architectures"](["75", "80", "86", "90", "121"])
        except script["Unavailable"] as error:
            return [str(error)]
        return archs

    return choose


@pytest.mark.parametrize(
    ("smi", "variables", "expected"),
    [
        ("echo 9.0", {}, ["90"]),
        ("printf '8.6\\n8.0\\n8.6\\n'", {}, ["80", "86"]),
        ("echo 13.0", {}, ["121"]),
        ("echo 9.0", {"CI": "true"}, ["80", "86", "90", "121"]),
        ("echo 9.0", {"DETCAM_BUILD": "cuda"}, ["80", "86", "90", "121"]),
        ("exit 1", {"DETCAM_BUILD": "cuda"}, ["80", "86", "90", "121"]),
        ("exit 1", {"CI": "true"}, ["80", "86", "90", "121"]),
        ("exit 1", {"TORCH_CUDA_ARCH_LIST": "8.9 7.5+PTX"}, ["75", "89"]),
        ("exit 1", {}, ["no GPU on this machine; DETCAM_BUILD=cuda builds for all architectures"]),
    ],
)
def test_the_gpu_decides_what_is_built(
    smi: str, variables: dict[str, str], expected: list[str], chosen: Chosen
) -> None:
    assert chosen(smi, **variables) == expected


def test_a_broken_binary_is_a_reason_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(loading.DISABLE_VARIABLE, raising=False)

    def reason() -> str:
        """Why a copy of the loader, in a folder of its own, loads no CPU kernels."""
        shutil.copy(str(loading.__file__), tmp_path / "loading.py")
        spec = importlib.util.spec_from_file_location("copied_loading", tmp_path / "loading.py")
        assert spec is not None
        assert spec.loader is not None
        copied: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copied)
        copied.load_kernels()
        assert not copied.is_compiled("cpu")
        return str(copied.build_info()["missing"]["cpu"])

    assert reason() == "not built"
    (tmp_path / "_build.json").write_text('{"mode": "auto", "missing": {"cpu": "no compiler"}}')
    assert reason() == "no compiler"
    (tmp_path / "_cpu.so").write_text("not a library")
    assert "_cpu.so does not load" in reason()
