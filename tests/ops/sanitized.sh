#!/bin/sh
# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: builds a copy of the package with them in
# build/sanitized, and runs the tests of the operators and random calls there. A bad access ends the run.
set -eu
python=$(realpath -s "${1:-.venv/bin/python}")
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
DETCAM_BUILD=cpu DETCAM_SANITIZE=1 "$python" setup.py --quiet build --build-base build/sanitized --build-lib build/sanitized/lib
# Before everything else, so that the loader's tables are its own; torch and Python keep memory to the end on purpose.
LD_PRELOAD=$("${CXX:-c++}" -print-file-name=libasan.so):$("${CXX:-c++}" -print-file-name=libstdc++.so.6)
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0
UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS PYTHONPATH="$root/build/sanitized/lib"
cd build/sanitized/lib
"$python" -c "
from detcam import ops
assert ops.is_compiled('cpu') and '/sanitized/' in ops.__file__, ops.build_info()
assert 'libasan' in open('/proc/self/maps').read()"
"$python" "$root/tests/ops/random_calls.py" "${SEED:-$(date +%s)}" "${CALLS:-3000}"
# Autograd, opcheck and compile run the same kernels, slowly.
"$python" -m pytest -q -p no:cacheprovider -p no:xdist "$root/tests/ops" -k "not compile and not opcheck and not gradients and not fuzz and not disabled and not cuda and not 32_bits"
