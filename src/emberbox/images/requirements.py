"""Does an image carry the packages that a caller's code needs? Machines have no network, so nothing can be fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence

from emberbox.errors import ValidationFailed
from emberbox.images.store import Manifest
from emberbox.models import Language

_MOST = 200
_LONGEST = 500
"""Characters of one: each is parsed while nobody else is served."""


def check_requirements(requirements: Sequence[str], language: Language, manifest: Manifest) -> None:
    """Return if the image has them all.

    Raises:
        ValidationFailed: one is missing, has another version, or cannot be had for this language at all.
    """
    if not requirements:
        return
    if len(requirements) > _MOST or any(len(one) > _LONGEST for one in requirements):
        raise ValidationFailed(
            f"Requirements: more than {_MOST}, or one that is longer than {_LONGEST} characters.",
            remediation="Name only what the code needs.",
        )
    if language == "python":
        problems = [p for r in requirements if (p := _python_problem(r, manifest)) is not None]
        where = "pip"
    elif language in {"javascript", "typescript"}:
        problems = [p for r in requirements if (p := _npm_problem(r, manifest)) is not None]
        where = "npm"
    else:
        problems, where = [f"{language} code cannot have requirements"], "packages"
    if problems:
        raise ValidationFailed(
            f"Requirements are not met by template {manifest.name!r}: {'; '.join(problems)}.",
            remediation=f"Sandboxes have no network: add them to the list `{where}` of the template and build it.",
            details={"problems": problems},
        )


def _python_problem(text: str, manifest: Manifest) -> str | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(text)
    except InvalidRequirement:
        return f"{text!r:.100} is no requirement (PEP 508)"
    if wanted.marker is not None and not wanted.marker.evaluate(_environment(manifest)):
        return None
    version = manifest.python_packages.get(re.sub(r"[-_.]+", "-", wanted.name).lower())
    if version is None:
        return f"{wanted.name} is not in the image"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"{text} is wanted, the image has {wanted.name} {version}"
    return None


def _environment(manifest: Manifest) -> dict[str, str]:
    """What environment markers (PEP 508) see: the image's Python, not the host's."""
    return {
        "python_version": manifest.python_version,
        "python_full_version": f"{manifest.python_version}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


def _npm_problem(text: str, manifest: Manifest) -> str | None:
    at = text.find("@", 1)
    name, wanted = (text, "") if at < 0 else (text[:at], text[at + 1 :])
    version = manifest.npm_packages.get(name)
    if version is None:
        return f"{name} is not in the image"
    numbers = wanted.lstrip("^~=v")
    if numbers and not re.fullmatch(r"[\d.]+", numbers):
        return f"{text}: only versions such as 7, ^7 or 7.0.0 can be checked, the image has {name} {version}"
    if numbers and f"{version}.".startswith(f"{numbers}."):
        return None
    return f"{text} is wanted, the image has {name} {version}" if numbers else None
