"""Reads what the user points at, with clear errors."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import UnsupportedLanguage, ValidationFailed
from emberbox.languages import LANGUAGES
from emberbox.models import HookUse


def read_input(name: str, settings: Settings) -> str:
    """The text of a file, or of standard input for `-`.

    Raises:
        ValidationFailed: not there, not readable, not UTF-8, empty, or longer than `max_input_bytes`.
    """
    most = settings.max_input_bytes
    label = "standard input" if name == "-" else name
    try:
        if name == "-" and sys.stdin is None:
            raise ValidationFailed("Standard input is closed.", remediation="Give a file, or pipe something in.")
        if name == "-":
            data = sys.stdin.buffer.read(most + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(most + 1)
    except OSError as exc:
        raise ValidationFailed(f"Cannot read {label}: {exc.strerror}.", remediation="Check the path.") from exc
    if len(data) > most:
        raise ValidationFailed(
            f"{label} is longer than {most} bytes.", remediation="Raise max_input_bytes, or give less at once."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ValidationFailed(
            f"{label} is not UTF-8 text (byte {exc.start}).", remediation="Convert it, for example with iconv."
        ) from exc
    if not text.strip():
        raise ValidationFailed(f"{label} is empty.", remediation="Give a text with code in it.")
    return text


def read_piped(settings: Settings) -> bytes:
    """What is piped into this process; empty where standard input is a terminal, or closed. Waits for its end, and says
    so after a while: whoever started this may have left it open by mistake.

    Raises:
        ValidationFailed: it is longer than `max_input_bytes`, or cannot be read.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    most = settings.max_input_bytes
    notice = threading.Timer(_PATIENCE_SECONDS, _say_waiting)
    notice.daemon = True
    notice.start()
    try:
        data = sys.stdin.buffer.read(most + 1)
    except OSError as exc:
        raise ValidationFailed(
            f"Cannot read standard input: {exc.strerror}.", remediation="Give </dev/null if the program reads nothing."
        ) from exc
    finally:
        notice.cancel()
    if len(data) > most:
        raise ValidationFailed(
            f"Standard input is longer than {most} bytes.",
            remediation="Raise max_input_bytes; or write it into a file of a sandbox with the SDK.",
        )
    return data


_PATIENCE_SECONDS = 3.0


def _say_waiting() -> None:
    sys.stderr.write("emberbox: waiting for the end of standard input; </dev/null if the program reads nothing\n")
    sys.stderr.flush()


def language_of(file: str | None) -> str:
    """The language of a file, by its name.

    Raises:
        UnsupportedLanguage: the name does not tell.
    """
    suffix = Path(file or "").suffix
    for name, spec in LANGUAGES.items():
        if suffix and spec.config.file_extension == suffix:
            return name
    raise UnsupportedLanguage(
        f"The language of {file or 'the code'} is not clear.", remediation="Name it: --language python"
    )


def with_hooks(settings: Settings, names: Sequence[str]) -> Settings:
    """The settings with more hooks, behind those that they name."""
    uses = [*settings.hooks.use, *(HookUse(name=name) for name in names)]
    return settings.model_copy(update={"hooks": settings.hooks.model_copy(update={"use": uses})})
