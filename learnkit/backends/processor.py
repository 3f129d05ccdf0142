"""The processor of this machine: its name, its flags, the threads to use."""

import os
import platform
from functools import cache
from pathlib import Path

from learnkit.errors import OptimizeError

_BF16_OF_X86 = {"avx512_bf16", "amx_bf16"}
_BF16 = {*_BF16_OF_X86, "bf16"}  # the last on ARM
_TELLING = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp", "i8mm")
_WIDEST = ("amx_tile", "avx512f", "avx2", "asimd")
_SHOWN = {*_BF16, *_TELLING, "amx_int8", "amx_tile", "avx512_fp16"}


@cache
def processor_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """What the processor says it can do, as Linux lists it; empty where it does not."""
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":") for line in lines)
    # x86 calls the line "flags", ARM "Features"
    rows = (flags for key, _, flags in found if key.strip().lower() in {"flags", "features"})
    return frozenset(next(rows, "").split())


def telling_flags() -> tuple[str, ...]:
    """Those of the processor's flags that decide how fast networks run, sorted."""
    return tuple(sorted(processor_flags() & _SHOWN))


def instruction_set() -> str:
    """The widest vector instructions the processor has, by Linux's name; else its kind."""
    return next((one for one in _WIDEST if one in processor_flags()), platform.machine())


def has_bfloat16(*, training: bool = False) -> bool:
    """True if the processor multiplies bfloat16 itself; elsewhere it would be slower.

    With `training`, if it trains faster, too: ARM's only predict, their gradients are slow.
    """
    return bool(processor_flags() & (_BF16_OF_X86 if training else _BF16))


def n_threads(threads: int | None = None) -> int:
    """`threads`, or as many as processors are given to this process.

    Raises:
        OptimizeError: fewer than one.
    """
    if threads is None:
        # taskset and cpusets give fewer than there are; macOS and Windows have no such call
        given = getattr(os, "sched_getaffinity", None)
        return len(given(0)) if given else os.cpu_count() or 1
    if type(threads) is not int or threads < 1:
        raise OptimizeError(f"`threads` is {threads!r}; it must be a whole number of at least 1")
    return threads


def processor_name() -> str:
    """Its maker's name for it, or at least its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # 64-bit ARM's cpuinfo has no such line
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
