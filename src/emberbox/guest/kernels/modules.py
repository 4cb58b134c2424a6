"""Acts on modules of the standard library or the image as soon as user code has loaded them, and never loads any."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Sequence

    Loaded = Callable[[Any], None]


class Watcher:
    """An import hook: lets the others find a module, then hands it to whoever wants to change it."""

    def __init__(self) -> None:
        self._wanted: Dict[str, Loaded] = {}

    def want(self, name: str, loaded: Loaded) -> None:
        """Call `loaded` with the module of that name: now, if it is there, or once its first import is done."""
        if name in sys.modules:
            loaded(sys.modules[name])
            return
        if not self._wanted:
            sys.meta_path.insert(0, self)
        self._wanted[name] = loaded

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """Find as the other finders do, with a loader that calls back."""
        loaded = self._wanted.pop(name, None)
        if loaded is None:
            return None
        if not self._wanted:
            sys.meta_path.remove(self)
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, loaded)
                return spec
        self.want(name, loaded)  # it is not there yet; it may be after `pip install`
        return None


class _Loader:
    def __init__(self, loader: Any, loaded: Loaded) -> None:
        self._loader = loader
        self._loaded = loaded

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._loaded(module)
