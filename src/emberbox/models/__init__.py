"""Wire and domain types. Everything that crosses a border (SDK, CLI, HTTP, files) is one of these.

Units: `*_ms` are milliseconds, `*_mb` are MiB, `timeout*` without a suffix are seconds, offsets count characters.

They are loaded at the first use of one: pydantic is most of what a start costs. A module that is to be light says
`from emberbox import models` and writes `models.Execution`, in annotations as well, which nobody evaluates before they
are wanted.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emberbox.models import service as service
    from emberbox.models._public import *  # noqa: F403 (its __all__ is the list)
else:  # a type checker that saw these would take every name for one that is there

    def __getattr__(name: str) -> Any:
        if name == "service":  # beyond what the SDK knows: not among the names of this package
            return import_module("emberbox.models.service")
        public = import_module("emberbox.models._public")
        names = globals()
        names.update({one: getattr(public, one) for one in ("__all__", *public.__all__)})
        if name not in names:
            raise AttributeError(f"module 'emberbox.models' has no attribute {name!r}")
        return names[name]

    def __dir__() -> list[str]:
        return [*__getattr__("__all__"), "service"]
