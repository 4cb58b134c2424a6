"""matplotlib figures as results. Loads nothing: it acts once the user's code (or the warm-up) has loaded pyplot."""

from __future__ import annotations

import sys

from .results import add, safe_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Sequence

PYPLOT = "matplotlib.pyplot"


class Plots:
    """Shows every figure once: when `plt.show()` is called, or at the end of the execution."""

    def __init__(self, publish: Callable[[Dict[str, Any]], None]) -> None:
        self._publish = publish
        self._shown: List[Any] = []
        if PYPLOT in sys.modules:
            self._patch(sys.modules[PYPLOT])
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """Import hook: lets the others find pyplot, then patches it as soon as it has been loaded."""
        if name != PYPLOT:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None else None
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self._patch)
                return spec
        return None

    def is_figure(self, value: Any) -> bool:
        """Whether `value` is a matplotlib figure."""
        module = sys.modules.get("matplotlib.figure")
        return module is not None and isinstance(value, getattr(module, "Figure", ()))

    def figure_bundle(self, figure: Any) -> Dict[str, Any]:
        """The result for a figure, which is closed; without a picture when that has been shown already."""
        data = {"text/plain": safe_repr(figure)}
        if not any(figure is other for other in self._shown):
            self._shown.append(figure)
            add(data, {"image/png": _png(figure)})
        pyplot = sys.modules.get(PYPLOT)
        if pyplot is not None:
            pyplot.close(figure)
        return data

    def show(self) -> None:
        """Publish what figures are open and close them."""
        pyplot = sys.modules.get(PYPLOT)
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return
        for number in pyplot.get_fignums():
            self._publish(self.figure_bundle(pyplot.figure(number)))

    def reset(self) -> None:
        """A new execution begins: what is shown again in it counts again."""
        self._shown.clear()

    def _patch(self, pyplot: Any) -> None:
        def show(*_args: Any, **_options: Any) -> None:
            """Make the open figures results of this execution."""
            self.show()

        pyplot.show = show


class _Loader:
    def __init__(self, loader: Any, loaded: Callable[[Any], None]) -> None:
        self._loader = loader
        self._loaded = loaded

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._loaded(module)


def _png(figure: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
