"""The binaries that were built are the ones that were asked for, hold what they should, and load."""

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from detcam import ops
from detcam.ops import loading

FOLDER = Path(loading.__file__).parent
INFO = ops.build_info()
OPERATORS = ("cam_maps", "elementwise_maps", "overlay")
KERNELS = {  # entry functions that each CUDA stem compiles
    "cam_maps": ("sum_cells", "write_maps"),
    "elementwise_maps": ("sum_channels", "sum_cells"),
    "overlay": ("paint",),
}


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
    nvcc = shutil.which("nvcc", path=f"{os.environ['CUDA_HOME']}/bin" if "CUDA_HOME" in os.environ else None)
    if nvcc is None or torch.version.cuda is None or INFO["mode"] not in ("auto", "cuda"):
        pytest.skip(f"nvcc {nvcc}, torch CUDA {torch.version.cuda}, build mode {INFO['mode']}")
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
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
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


def test_a_broken_binary_is_a_reason_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_HERE", tmp_path)
    monkeypatch.delenv("DETCAM_DISABLE_COMPILED", raising=False)
    assert loading._load("cpu") == "not built"
    (tmp_path / "_build.json").write_text('{"mode": "auto", "missing": {"cpu": "no compiler"}}')
    assert loading._load("cpu") == "no compiler"
    (tmp_path / "_cpu.so").write_text("this is no library")
    assert "_cpu.so does not load" in str(loading._load("cpu"))
