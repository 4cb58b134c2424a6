"""Values to results by MIME type, as notebooks have them. Runs in the Python kernel, beside user code."""

from __future__ import annotations

import binascii
import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

    Bundle = Dict[str, Any]

TEXT_LIMIT = 200_000
JSON_CELLS = 50_000
"""Data frames with more cells than this come without their JSON form."""
FORMATS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
    "_repr_pdf_": "application/pdf",
}
PLAIN = frozenset({int, float, complex, bool, str, bytes, list, tuple, dict, set, frozenset, range, type(None)})


def bundle(value: Any, *, strict: bool = False) -> Bundle:
    """Every representation that `value` has; at least text/plain. `strict`: raises what its `repr` raises."""
    data: Bundle = {"text/plain": bounded(repr(value)) if strict else safe_repr(value)}
    kind = type(value)
    if kind in PLAIN or isinstance(value, type):
        return data
    if hasattr(kind, "_repr_mimebundle_"):
        offered = attempt(lambda: value._repr_mimebundle_(include=None, exclude=None))
        if isinstance(offered, tuple):
            offered = offered[0] if offered else None
        if isinstance(offered, dict):
            add(data, offered)
    for method, mime in FORMATS.items():
        if mime not in data and hasattr(kind, method):
            offered = attempt(getattr(value, method, None))
            add(data, {mime: offered[0] if isinstance(offered, tuple) and offered else offered})
    if "pandas" in sys.modules and "application/json" not in data:
        add(data, {"application/json": attempt(lambda: _pandas_json(value))})
    return data


def attempt(make: Callable[[], Any] | None) -> Any:
    """What `make` returns, or None: a broken representation must not fail the user's code."""
    try:
        return make() if make is not None else None
    except Exception:  # noqa: BLE001 - methods of user objects may raise anything
        return None


def safe_repr(value: Any) -> str:
    """`repr(value)`, bounded, even where it raises."""
    try:
        return bounded(repr(value))
    except Exception as exc:  # noqa: BLE001 - a __repr__ of the user may raise anything
        return f"<{type(value).__name__} object: its repr raised {type(exc).__name__}>"


def bounded(text: str) -> str:
    """`text`, cut where it is very long."""
    if type(text) is not str:
        text = str(text)
    if len(text) > TEXT_LIMIT:
        text = f"{text[:TEXT_LIMIT]}... ({len(text)} characters in all)"
    return text


def add(data: Bundle, offered: Bundle) -> None:
    """Take over what can travel: text as text, bytes as base64, JSON formats as JSON."""
    for mime, value in offered.items():
        if not isinstance(mime, str) or value is None:
            continue
        if isinstance(value, (bytes, bytearray)):
            data[mime] = binascii.b2a_base64(value, newline=False).decode()
        elif isinstance(value, str) or (mime.endswith(("/json", "+json")) and _is_json(value)):
            data[mime] = value


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _pandas_json(value: Any) -> Any:
    pandas = sys.modules["pandas"]
    if not isinstance(value, (pandas.DataFrame, pandas.Series)) or value.size > JSON_CELLS:
        return None
    return json.loads(value.to_json(orient="split", date_format="iso"))


def encode_bundle(data: Bundle) -> bytes:
    """A bundle as the payload of a result frame."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False).encode()


def fit(data: Bundle, room: int) -> tuple[bytes, bool]:
    """The payload, without the largest representations where there is not room for all; and whether that happened.

    An empty payload means that not even the smallest fits.
    """
    payload = encode_bundle(data)
    cut = False
    while len(payload) > room and data:
        cut = True
        del data[max(data, key=lambda mime: len(json.dumps(data[mime])))]
        payload = encode_bundle(data) if data else b""
    return payload, cut
