#!/bin/sh
# Build, test and time the CUDA kernels on a machine with a GPU: sh benchmarks/gpu.sh
#
# Takes the python of $PYTHON (default: .venv/bin/python if there is one, else python3), which needs torch with CUDA,
# pytest, pybind11, ninja and the package's own dependencies; nvcc must be on PATH, or CUDA_HOME set. Builds for the
# GPU at hand unless TORCH_CUDA_ARCH_LIST says otherwise. Figures go to benchmarks/results/ops_cuda.json.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
capability='import torch; print("%d.%d" % torch.cuda.get_device_capability())'
: "${TORCH_CUDA_ARCH_LIST:=$("$PYTHON" -c "$capability")}"
export TORCH_CUDA_ARCH_LIST

echo "== build for $TORCH_CUDA_ARCH_LIST"
DETCAM_BUILD=cuda "$PYTHON" setup.py --quiet build_ext --inplace

echo "== tests"
export FAIL_WITHOUT_CUDA=1
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -o addopts= --confcutdir tests/ops tests/ops tests/test_build.py

echo "== compute-sanitizer"
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$PYTHON" -m pytest -q -o addopts= --confcutdir tests/ops \
            tests/ops -k "cuda and (many_objects or more_cells or (extreme_shapes and 129))"
    done
else
    echo "not installed: skipped"
fi

echo "== timings"
mkdir -p benchmarks/results
"$PYTHON" benchmarks/ops.py --device cuda --out benchmarks/results/ops_cuda.json
