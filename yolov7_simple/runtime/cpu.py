"""What this processor can do."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path('/proc/cpuinfo')


def has_vnni() -> bool:
    """Whether products of 8 bits are added up in 32 bits: x86 with VNNI, or ARM. False where nobody says."""
    if platform.machine().lower() in ('arm64', 'aarch64'):
        return True
    try:
        words = set(CPUINFO.read_text().split())
    except OSError:
        return False
    return bool(words & {'avx512_vnni', 'avx_vnni'})
