"""Registers that this machine's kernel does not switch between processes, and how programs are kept from them.

A kernel switches the wide vector registers (AVX) where it lists the feature. Where it does not, because the processor
has none or because the kernel cannot (kernel/README.md of Emberbox, "Test hosts whose KVM is emulated"), programs may
still find them: they ask the processor, not the kernel. What they keep there is then overwritten by others. To be told
not to use them costs a program nothing: there is nothing that it could use.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List

TUNABLES = "GLIBC_TUNABLES"
NODE_OPTIONS = ("--no-enable-avx", "--no-enable-avx2", "--no-enable-fma3")
"""For the code that V8 makes (`node --v8-options`)."""
ENVIRONMENT = {
    TUNABLES: "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-FMA,"
    "-AVX_Fast_Unaligned_Load,-ERMS,-FSRM",
    # words of cpuid: AVX, OSXSAVE, FMA and XOP of leaf 1 are switched off, and all of leaf 7
    "OPENSSL_ia32cap": "~0x1800180000000000:0",
    "SIMDUTF_FORCE_IMPLEMENTATION": "westmere",
}
"""For libraries that choose by themselves: glibc, OpenSSL, and node's simdutf."""
CPUINFO = "/proc/cpuinfo"

_known: Dict[str, bool] = {}


def are_unkept(path: str = CPUINFO) -> bool:
    """Whether the kernel leaves wide registers to whoever writes to them last; False where it cannot be told."""
    if path not in _known:
        _known[path] = _look(path)  # for good: a kernel does not learn it later
    return _known[path]


def _look(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            for line in file:
                name, _, flags = line.partition(b":")
                if name.strip() == b"flags":
                    return b"avx" not in flags.split()
    except OSError:
        pass
    return False


def environment(path: str = CPUINFO) -> Dict[str, str]:
    """What programs are to find in their environment."""
    return dict(ENVIRONMENT) if are_unkept(path) else {}


def node_options(path: str = CPUINFO) -> List[str]:
    """What node is to be started with."""
    return list(NODE_OPTIONS) if are_unkept(path) else []
