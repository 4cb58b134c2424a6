"""matplotlib figures as results. Loads nothing: it acts once the user's code (or the warm-up) has loaded pyplot."""

from __future__ import annotations

import sys

from .results import add, safe_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    from .modules import Watcher

PYPLOT = "matplotlib.pyplot"


class Plots:
    """Shows every figure once: when `plt.show()` is called, or at the end of the execution."""

    def __init__(self, publish: Callable[[Dict[str, Any]], None], modules: Watcher) -> None:
        self._publish = publish
        self._shown: List[Any] = []
        modules.want(PYPLOT, self._patch)

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


def _png(figure: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
