"""Whether a text can be parsed with bounded work.

Tree-sitter takes time and memory that grow with the square of some texts: 100,000 characters of `a|a|a…` took more than
20 GiB. Nothing stops it from inside, so a process of its own tries first.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

FROM_BYTES = 8_000
"""Shorter texts are parsed at once: the worst that is known takes 0.4 s and 200 MB by then."""
_CPU_SECONDS = 2
_WALL_SECONDS = 20.0
"""On a host that is busy with something else."""
_MEMORY = 1 << 30
_MEMORY_EACH = 2_000
"""Bytes for each byte of the text besides: ordinary code takes some 300."""
_BYTES_PER_SECOND = 250_000
_REMEMBERED = 256
_PROGRAM = """
import resource, sys
from importlib import import_module
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path += sys.argv[4:]
from tree_sitter import Language, Parser
Parser(Language(import_module(sys.argv[3]).language())).parse(sys.stdin.buffer.read())
"""

_known: OrderedDict[bytes, bool] = OrderedDict()
_lock = Lock()


def is_bearable(grammar: str, text: bytes) -> bool:
    """Whether the grammar's parser ends with this text. Blocks: some 50 ms where the text is long and new."""
    if len(text) < FROM_BYTES:
        return True
    key = hashlib.sha256(grammar.encode() + b"\0" + text).digest()
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
    verdict = _tried(grammar, text)
    with _lock:
        _known[key] = verdict
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
    return verdict


def _tried(grammar: str, text: bytes) -> bool:
    specs = [spec for spec in map(find_spec, ("tree_sitter", grammar)) if spec is not None]
    folders = {str(Path(spec.origin).parents[1]) for spec in specs if spec.origin is not None}
    seconds = _CPU_SECONDS + len(text) // _BYTES_PER_SECOND
    memory = _MEMORY + _MEMORY_EACH * len(text)
    argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(seconds), str(memory), grammar, *sorted(folders)]
    try:
        done = subprocess.run(
            argv, input=text, timeout=_WALL_SECONDS + 10 * seconds, check=False, env={},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
