"""Every operator under random arguments, right and wrong, in a process of its own: see `random_calls`."""

import os
import resource
import subprocess
import sys
from pathlib import Path

from random_calls import OPS, RAW
from support import NIGHTLY

MEMORY = 6 * 2**30  # bytes of addresses: some calls ask for more than a machine should give to a test
CALLS = int(float(os.environ.get("FUZZ", "100000"))) * 6 // 5 if NIGHTLY else 20


def little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def test_random_calls_are_answered_rightly_or_refused_clearly(seed: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("random_calls.py")), str(seed), str(CALLS)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=little_memory)
    assert done.returncode == 0, f"ended with {done.returncode} at {done.stdout[-60:]!r}: {done.stderr[-3000:]}"
    outcome = done.stdout.splitlines()[-1]
    print(outcome)
    assert outcome.startswith(f"{CALLS} calls")
    for name in OPS if NIGHTLY else ():
        assert f"{name}: right'" in outcome
        assert f"{name}: ValueError'" in outcome
        assert name not in RAW or f"{name}: raw answered'" in outcome
