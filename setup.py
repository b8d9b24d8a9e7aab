"""Build the optional kernels of `detcam.ops`; everything else about the package is in pyproject.toml.

`DETCAM_BUILD` selects the kernels:
    auto (default)  CPU; CUDA too if the machine has a GPU, for its architecture only. With CI=true, or with
                    TORCH_CUDA_ARCH_LIST set, CUDA is built without a GPU as well. A kernel that cannot be built is
                    left out, and the reason recorded for `detcam doctor`.
    cpu             CPU; a failure is an error
    cuda            CPU and CUDA for all architectures (the choice for wheels); a failure is an error
    none            no kernels: the PyTorch reference runs instead
`TORCH_CUDA_ARCH_LIST` ("8.0 9.0") overrides the GPU architectures in any mode. All architectures are those of CUBINS
and the newest that nvcc knows. `DETCAM_SANITIZE=1` builds the CPU kernels with AddressSanitizer and
UndefinedBehaviorSanitizer, see tests/ops/sanitized.sh. Install torch first and build with
`pip install --no-build-isolation`, or pip fetches a second torch to build against.

The kernels use torch's stable ABI alone, so compiling them needs torch's headers and ninja, and nothing else.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SANITIZED = os.environ.get("DETCAM_SANITIZE", "0") not in ("", "0")
KIND = "sanitized" if SANITIZED else "kernels"
BUILD = ROOT / "build" / f"{KIND}-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
MODE = os.environ.get("DETCAM_BUILD", "auto").lower()
WANTED = {"auto": ("cpu", "cuda"), "cpu": ("cpu",), "cuda": ("cpu", "cuda"), "none": ()}
CUBINS = {"80", "86", "89", "90", "100", "120"}  # and the newest that nvcc knows, which is also kept as PTX
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # one binary for torch 2.10 and everything after
RULES = """
rule cxx
  command = {cxx} -std=c++17 -O3 -fno-math-errno -fno-trapping-math -fPIC -fvisibility=hidden -Wall -Wextra $
    $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
rule nvcc
  command = {nvcc} -std=c++17 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden -Xptxas -v $
    --threads 0 $flags -MD -MF $out.d -c $in -o $out > $out.log 2>&1 || {{ cat $out.log; exit 1; }}
  depfile = $out.d
rule link
  command = $linker -shared $in -o $out $libs
"""


class Unavailable(Exception):
    """A kernel cannot be built here; the message says why."""


class BuildKernels(build_ext):
    """Builds one binary after the other; in auto mode a binary that fails is left out."""

    def run(self) -> None:
        """Build what `DETCAM_BUILD` asks for, and record what is missing and why."""
        if MODE not in WANTED:
            raise SystemExit(f"DETCAM_BUILD: expected {', '.join(WANTED)}, got {MODE!r}")
        target = (ROOT if self.inplace else Path(self.build_lib)) / "detcam" / "ops"
        target.mkdir(parents=True, exist_ok=True)
        facts: dict[str, str] = {}
        missing: dict[str, str] = {}
        for name, build in (("cpu", build_cpu), ("cuda", build_cuda), ("C", build_facts)):
            products: list[Path] = []
            if name in WANTED[MODE] or (name == "C" and facts):
                try:
                    products = build(facts)
                except Unavailable as reason:
                    if MODE != "auto":
                        raise SystemExit(f"detcam: no _{name}, though DETCAM_BUILD={MODE}: {reason}") from None
                    print(f"detcam: building without _{name}: {reason}", file=sys.stderr)
                    missing[name] = str(reason)
            elif name != "C":
                missing[name] = f"not asked for: built with DETCAM_BUILD={MODE}"
            for stale in {*target.glob(f"_{name}[._]*")} - {target / product.name for product in products}:
                stale.unlink()
            for product in products:  # moved into place whole, as a process may be loading the one that is there
                shutil.copy2(product, target / f"new{product.name}")
                os.replace(target / f"new{product.name}", target / product.name)
        (target / "_build.json").write_text(json.dumps({"mode": MODE, "missing": missing}, indent=2) + "\n")


def build_cpu(facts: dict[str, str]) -> list[Path]:
    """Build the C++ kernels; adds to `facts` what `_C` will report."""
    flags, libs, version = torch_build()
    if SANITIZED:
        flags, libs = f"{flags} {SANITIZERS}", f"{libs} {SANITIZERS}"
    binary = compile_binary("_cpu.so", "cxx", find_cxx(), sorted(ROOT.glob("csrc/cpu/*.cpp")), flags, libs)
    facts["TORCH"] = version
    return [binary]


def build_cuda(facts: dict[str, str]) -> list[Path]:
    """Build the CUDA kernels as a binary of their own, because they need a torch that has CUDA."""
    flags, libs, version = torch_build()
    if not (torch_folder() / "lib" / "libtorch_cuda.so").exists():
        raise Unavailable(f"torch {version} is built without CUDA")
    nvcc = find_nvcc()
    archs = architectures(re.findall(r"compute_(\d+)\b", output(nvcc, "--list-gpu-arch")))
    cubins, ptx = [f"sm_{arch}" for arch in archs], f"compute_{archs[-1]}"
    flags += "".join(f" -gencode arch=compute_{arch},code=sm_{arch}" for arch in archs)
    flags += f" -gencode arch={ptx},code={ptx} -DUSE_CUDA"
    sources = sorted(ROOT.glob("csrc/cuda/*.cu"))
    binary = compile_binary("_cuda.so", "nvcc", nvcc, sources, flags, f"-cudart shared -nodlink {libs} -ltorch_cuda")
    log = BUILD / "_cuda_ptxas.log"  # registers and spills of every kernel, which the tests read
    log.write_text("".join((BUILD / "_cuda.so.objects" / f"{s.stem}.o.log").read_text() for s in sources))
    facts["TORCH"] = version
    facts["CUDA_VERSION"] = "".join(re.findall(r"release ([\d.]+)", output(nvcc, "--version")))
    facts["ARCHS"] = " ".join([*cubins, ptx])
    return [binary, log]


def architectures(known: list[str]) -> list[str]:
    """GPU architectures to build for ("90"), oldest first, among those that nvcc knows."""
    asked = re.findall(r"(\d+)\.(\d+)", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    if asked:
        return sorted({major + minor for major, minor in asked}, key=int)
    everything = sorted({*known} & CUBINS | {max(known, key=int)}, key=int)
    if MODE == "cuda" or os.environ.get("CI") == "true":
        return everything
    gpus = visible_gpus()
    if gpus is None:
        raise Unavailable("no GPU on this machine; DETCAM_BUILD=cuda builds for all architectures")
    newest = max(known, key=int)  # a GPU that nvcc does not know yet runs the PTX of the newest it knows
    return sorted({min(gpu, newest, key=int) for gpu in gpus}, key=int) or everything


def visible_gpus() -> set[str] | None:
    """Architectures of this machine's GPUs; empty if they are unknown, None without a GPU."""
    command = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    with contextlib.suppress(Unavailable):
        if gpus := {major + minor for major, minor in re.findall(r"(\d+)\.(\d+)", output(*command))}:
            return gpus
    return set() if any(Path("/proc/driver/nvidia/gpus").glob("*")) else None


def build_facts(facts: dict[str, str]) -> list[Path]:
    """Build `_C`, which reports what was built, with which torch and compiler; it needs pybind11 but not torch."""
    pybind11 = importlib.util.find_spec("pybind11")
    if pybind11 is None or pybind11.origin is None:
        raise Unavailable("pybind11 is not installed")
    include = (Path(pybind11.origin).parent / "include", sysconfig.get_path("include"))
    flags = [f"-isystem{folder}" for folder in include]
    flags += [f'-DDETCAM_{key}="{value}"' for key, value in facts.items()]
    libs = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
    name = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    return [compile_binary(name, "cxx", find_cxx(), [ROOT / "csrc" / "module.cpp"], shlex.join(flags), libs)]


def compile_binary(name: str, rule: str, compiler: str, sources: list[Path], flags: str, libs: str) -> Path:
    """Compile and link with ninja whatever has changed since the last build."""
    lines = [RULES.format(cxx=compiler, nvcc=compiler)]
    objects = [f"{name}.objects/{source.stem}.o" for source in sources]
    flags = f"-I{shlex.quote(str(ROOT / 'csrc'))} {flags}"
    for source, compiled in zip(sources, objects, strict=True):
        escaped = str(source).replace(" ", "$ ")
        lines.append(f"build {compiled}: {rule} {escaped}\n  flags = {flags}\n")
    lines.append(f"build {name}: link {' '.join(objects)}\n  linker = {compiler}\n  libs = {libs}\n")
    script = BUILD / f"{name}.ninja"
    BUILD.mkdir(parents=True, exist_ok=True)
    script.write_text("\n".join(lines))
    command = [sys.executable, "-m", "ninja", "-C", str(BUILD), "-f", script.name]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if "error" in line.lower()]
        raise Unavailable(f"{compiler} failed: {' | '.join(errors[:3]) or done.stdout.strip()[-500:]}")
    return BUILD / name


def torch_folder() -> Path:
    """The installed torch, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise Unavailable("torch is not installed where the build runs; use pip install --no-build-isolation")
    return Path(spec.origin).parent


def torch_build() -> tuple[str, str, str]:
    """Compiler flags, linker flags and release of the installed torch."""
    folder, version = torch_folder(), importlib.metadata.version("torch")
    if not (folder / "include" / "torch" / "csrc" / "stable" / "tensor.h").exists():
        raise Unavailable(f"torch {version} has no headers of the stable ABI: install torch 2.10 or later")
    include, lib = (shlex.quote(str(folder / part)) for part in ("include", "lib"))
    return f"-isystem {include} {STABLE_ABI}", f"-L{lib} -ltorch_cpu -ltorch -lc10", version


def find_cxx() -> str:
    """The C++ compiler: `CXX`, or the first on PATH."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise Unavailable("no C++ compiler found (c++, g++, clang++, or the variable CXX)")
    return compiler


def find_nvcc() -> str:
    """The CUDA compiler of CUDA_HOME or PATH; it finds its toolkit even if PATH holds only a wrapper."""
    folder = f"{os.environ['CUDA_HOME']}/bin" if os.environ.get("CUDA_HOME") else None
    compiler = shutil.which("nvcc", path=folder)
    if compiler is None:
        raise Unavailable(f"nvcc not found {f'in {folder}' if folder else 'on PATH'}")
    return compiler


def output(*command: str) -> str:
    """The standard output of a command."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{' '.join(command)} fails: {error}") from error


FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*"))
SOURCES = [name for name in FILES if not name.endswith(".h")]
HEADERS = [name for name in FILES if name.endswith(".h")]
# The extension lists the sources that a source archive must hold; BuildKernels decides what is built from them.
setup(
    ext_modules=[Extension("detcam.ops._C", SOURCES, depends=HEADERS)],
    cmdclass={"build_ext": BuildKernels},
)
