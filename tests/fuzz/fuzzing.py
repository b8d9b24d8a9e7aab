"""Seeded mutations: every input gives a result or one of the package's errors, within time and memory limits."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from detcam.errors import DetcamError

FEWEST = 20  # inputs of each kind by default
SHARE = float(os.environ.get("FUZZ", "0")) / 1000  # thousands of inputs in all; `make nightly` sets FUZZ=100000
SLOW = float(os.environ.get("FUZZ_SECONDS", "10"))  # seconds of processor time that an input may take
HANG = 120.0  # seconds after which the process ends, with a traceback
GROWTH = 128 * 2**20  # bytes that resident memory may grow by after the first tenth
TOKENS = (
    b"nan", b"-inf", b"1e999", b"-1", b"0", b"9" * 25, b"9" * 5000, "²".encode(), "٣".encode(), b"0.5", b"\x00", b"\x1b[2J",
    b"\xff\xfe", b"\xed\xa0\x80", b"[" * 3000, b"{" * 300, b"null", b"true", b'""', b"- ", b"*a", b"&a ", b"!!python/name:os.system ",
    b"../", b"\n", b"\r", b"\t", b": ", b"'", b"\xe2\x80\xae", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00",
    b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"IHDR", b"II*\x00",
)  # fmt: skip


def fuzz(
    name: str,
    seed: int,
    thousandths: float,
    made: Callable[[random.Random], bytes],
    read: Callable[[bytes], object],
    check: Callable[[object], None] = lambda result: None,
    expected: tuple[str, ...] = ("read",),
) -> Counter[str]:
    """Read mutated inputs, each made from its own seed, and print a count of the outcomes.

    Args:
        name: Kind of input.
        seed: Seed of all inputs.
        thousandths: Share of all inputs that are of this kind.
        made: Makes an input.
        read: Reads an input; may raise errors of the package.
        check: Checks the result of `read`.
        expected: Outcomes ("read", or an error's class) that must occur; inputs are made until they have, up to 50
            times as many.
    """
    count = max(int(thousandths * SHARE), FEWEST)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    settled = 0
    for i in range(50 * count):
        if i >= count and all(outcomes[kind] for kind in expected):
            break
        data = made(random.Random(f"{name} {seed} {i}"))
        faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
        began = time.process_time()
        try:
            result = read(data)
        except DetcamError as error:
            outcomes[type(error).__name__] += 1
            line = str(error)
            assert line, f"input {i} of seed {seed}: an error without a message"
            assert line.isprintable() or "\u200c" in line or "\u200d" in line, f"input {i} of seed {seed}: {line!r}"
            assert len(line) < 3000, f"input {i} of seed {seed}: a message of {len(line)} characters"
        except Exception as error:
            raise AssertionError(f"{name}: input {i} of seed {seed}: {type(error).__name__}: {error}") from error
        else:
            outcomes["read"] += 1
            check(result)
        took = time.process_time() - began
        slowest = max(slowest, took)
        assert took < SLOW, f"{name}: input {i} of seed {seed} took {took:.1f} s"
        if i == count // 10:
            settled = resident()
    faulthandler.cancel_dump_traceback_later()
    grown = resident() - settled
    total = sum(outcomes.values())
    print(
        f"{name}: {total} inputs of seed {seed}: {dict(outcomes)}, slowest {slowest:.2f} s, {grown / 2**20:.0f} MiB more"
    )
    assert grown < GROWTH
    assert all(outcomes[kind] for kind in expected), outcomes
    return outcomes


def resident() -> int:
    """Bytes of memory that this process uses; 0 where the system does not tell.

    What was freed is given back first, where the C library can: it keeps tens of megabytes, now more and now less.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def mutated(data: bytes, random: random.Random, others: list[bytes] | None = None) -> bytes:
    """A copy of `data` with up to eight random changes."""
    changed = bytearray(data)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 8))):
        place = random.randrange(len(changed) + 1)
        length = random.choice((1, 2, 4, 16, 64))
        what = random.randrange(8)
        if what == 0 and changed:
            changed[place % len(changed)] ^= 1 << random.randrange(8)
        elif what == 1 and changed:
            changed[place % len(changed)] = random.randrange(256)
        elif what == 2:
            del changed[place:]
        elif what == 3:
            del changed[place : place + length]
        elif what == 4:
            changed[place:place] = changed[place : place + length] * random.choice((1, 2, 50))
        elif what == 5:
            changed[place : place + random.choice((0, length))] = random.choice(TOKENS)
        elif what == 6 and others:
            other = random.choice(others)
            start = random.randrange(len(other) + 1)
            changed[place:] = other[start:]
        elif what == 7:
            number = random.choice((0, 1, 0x7F, 0xFF, 0xFFFF, 30_000, 2**31 - 1, 2**31, 2**32 - 1))
            order = random.choice(("big", "little"))
            changed[place : place + 4] = number.to_bytes(4, order)  # type: ignore[arg-type]
    return bytes(changed)
