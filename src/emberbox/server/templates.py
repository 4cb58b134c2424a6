"""Templates by the names that clients may give."""

from __future__ import annotations

import structlog

from emberbox.config import Settings
from emberbox.errors import ConfigError, ImageError, ValidationFailed
from emberbox.images.template import Template, list_templates, read_template, template_path


def named(name: str, settings: Settings) -> Template:
    """A template that the operator has made available: a built-in one, or one of `templates_dir`. Blocks.

    Raises:
        ValidationFailed: there is none of this name. What it says does not depend on other files of the host.
        ImageError: the file of the template is wrong. How is not for clients: it is in the log.
    """
    path = template_path(name, settings)
    if path is None:
        raise ValidationFailed(
            f"vm_type: this server has no template {name!a:.80}.",
            remediation=f"One of {', '.join(list_templates(settings))}. The operator adds others to templates_dir.",
        )
    try:
        return read_template(path)
    except ConfigError as exc:
        log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
        log.error("a template cannot be read", template=name, reason=exc.message)  # noqa: TRY400 (it says it all)
        raise ImageError(
            f"The template {name!r} of this server is wrong.", remediation="The server's log says what in it is."
        ) from exc
