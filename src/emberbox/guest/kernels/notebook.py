"""IPython's `display` and its relatives as those of this kernel, once user code has loaded them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

    from .modules import Watcher

    Show = Callable[[Dict[str, Any]], None]


def listen(modules: Watcher, display: Callable[..., None], show: Show) -> None:
    """Connect them. `display` shows values, `show` a MIME bundle."""
    modules.want("IPython.core.display_functions", lambda module: _connect(module, display, show))


def _connect(module: Any, display: Callable[..., None], show: Show) -> None:
    class DisplayHandle:
        """What `display(..., display_id=True)` gives. What was shown stays; an update is shown below it."""

        def __init__(self, display_id: Any = None) -> None:
            self.display_id = display_id if isinstance(display_id, str) else "display"

        def display(self, value: Any, **_options: Any) -> None:
            """Show a value."""
            display(value)

        update = display

    def show_values(*values: Any, raw: bool = False, display_id: Any = None, **_options: Any) -> Any:
        """Show values in the richest form they have."""
        for value in values:
            if raw:
                show(dict(value))
            else:
                display(value)
        return DisplayHandle(display_id) if display_id else None

    def publish(data: Dict[str, Any], *_values: Any, **_options: Any) -> None:
        """Show a MIME bundle."""
        show(dict(data))

    def update(value: Any, **_options: Any) -> None:
        """Show a value below what it is to replace."""
        display(value)

    def clear(wait: bool = False) -> None:
        """Do nothing: what was printed is with the caller already."""

    module.display, module.publish_display_data = show_values, publish
    module.update_display, module.clear_output = update, clear
    module.DisplayHandle = DisplayHandle
