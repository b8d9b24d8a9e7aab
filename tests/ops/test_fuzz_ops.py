"""Every operator under random arguments, right and wrong, in a process of its own: see `random_calls`."""

import os
import subprocess
import sys
from pathlib import Path

from oracle import fresh_seed

CALLS = max(int(float(os.environ.get("FUZZ", "5000")) / 8), 200)  # `make fuzz` gives FUZZ=100000


def test_random_calls_are_answered_rightly_or_refused_clearly() -> None:
    command = [sys.executable, str(Path(__file__).with_name("random_calls.py")), str(fresh_seed()), str(CALLS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode} at {done.stdout[-60:]!r}: {done.stderr[-3000:]}"
    outcome = done.stdout.splitlines()[-1]
    print(outcome)
    assert outcome.startswith(f"{CALLS} calls")
    for name in ("cam_maps", "elementwise_maps", "overlay", "region_windows"):
        assert f"{name}: right'" in outcome
        assert f"{name}: ValueError'" in outcome
        assert name == "region_windows" or f"{name}: raw answered'" in outcome
