"""Templates: TOML files that say what a machine's root file system holds and how its machines start."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import tomllib
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from emberbox.config import Settings
from emberbox.errors import ConfigError, ImageError
from emberbox.images import randomness
from emberbox.models import Language, MachineLimits, Model
from emberbox.models.base import TEMPLATE_NAME, TemplateName

BUILD_FORMAT = 3
"""Raised whenever the builder makes something else of the same template, so that caches are built anew."""

PackageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
"""Debian Policy 5.6.1."""
NpmPackage = Annotated[
    str, StringConstraints(pattern=r"^(@[a-z0-9~][a-z0-9._~-]*/)?[a-z0-9~][a-z0-9._~-]*(@[\w.^~<>=*-]+)?$")
]
WritableFolder = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9_][A-Za-z0-9_-]*){1,4}$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


_TAKEN = frozenset({
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "node_modules", "proc", "root", "run",
    "sbin", "sys", "tmp", "usr", "var",
})  # fmt: skip
"""What stands at the top of a Debian system (hier(7)) and in images."""


class TemplateFile(Model):
    """A file to put into the image: its text, or a file beside the template."""

    path: str
    content: str | None = None
    source: Path | None = None
    mode: int = Field(default=0o644, ge=0, le=0o777)

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
            raise ValueError("must be an absolute path without '..'")
        return "/" + "/".join(path.parts[1:])  # POSIX lets a path begin with two slashes

    @model_validator(mode="after")
    def _one_origin(self) -> TemplateFile:
        if (self.content is None) == (self.source is None):
            raise ValueError("give either `content` or `source`")
        return self

    def data(self, directory: Path) -> bytes:
        """The file's bytes; `source` is relative to the template's own folder."""
        if self.content is not None:
            return self.content.encode()
        path = directory / (self.source or "")
        try:
            return path.read_bytes()
        except OSError as exc:
            raise ImageError(f"Cannot read {path}, which a template puts at {self.path}: {exc.strerror}.") from exc


_BOUND = r"(?:==|>=|<=|<|>)[0-9]+(?:\.[0-9]+)*"
_PLAIN_REQUIREMENT = re.compile(rf"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:{_BOUND}(?:,{_BOUND})*)?")
"""A name with or without plain bounds: the usual part of PEP 508."""


class Template(Model):
    """A template file. `name` and `directory` come from where it was found."""

    name: TemplateName
    directory: Path
    description: str = ""
    suite: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")] = "bookworm"
    packages: list[PackageName] = Field(default_factory=list)
    pip: list[str] = Field(default_factory=list)
    npm: list[NpmPackage] = Field(default_factory=list)
    files: list[TemplateFile] = Field(default_factory=list)
    links: dict[str, str] = Field(default_factory=dict, description="symbolic links: path in the image to its target")
    run: list[Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=list, description="programs of the image, run in it as root at the end of its build"
    )
    env: dict[EnvName, str] = Field(default_factory=dict)
    workdir: str = "/home/user"
    writable: list[WritableFolder] = Field(
        default_factory=list, max_length=16, description="folders besides that the user may write to"
    )
    limits: MachineLimits = MachineLimits()
    languages: list[Language] = Field(default=["python", "bash"])
    warm: list[Literal["python", "javascript", "bash"]] = Field(default_factory=list)
    warmup: str | None = Field(default=None, description="Python source that runs once before any user code")

    @field_validator("pip")
    @classmethod
    def _requirements(cls, value: list[str]) -> list[str]:
        for line in value:
            if _PLAIN_REQUIREMENT.fullmatch(line):
                continue  # without the import of what reads the others
            from packaging.requirements import InvalidRequirement, Requirement

            try:
                requirement = Requirement(line)
            except InvalidRequirement as exc:
                raise ValueError(f"{line!r} is no requirement (PEP 508): {exc}") from exc
            if requirement.url:
                raise ValueError(f"{line!r}: direct references are not supported, name a release")
        return value

    @field_validator("links")
    @classmethod
    def _absolute_links(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value:
            if not PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{path!r} must be an absolute path without '..'")
        return value

    @field_validator("writable")
    @classmethod
    def _of_no_other_use(cls, value: list[str]) -> list[str]:
        for path in value:
            if path.split("/")[1] in _TAKEN or path == "/opt" or path.startswith("/opt/emberbox"):
                raise ValueError(f"{path!r} is used by the system; choose another, such as /data")
        return value

    @field_validator("workdir")
    @classmethod
    def _in_home(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not re.match(r"^/home/user(/|$)", value) or ".." in path.parts:
            raise ValueError("must be /home/user or below it: everything else is read-only")
        return str(path)

    def key(self) -> str:
        """Cache key: a digest of everything that the image is built from."""
        inputs = {
            "format": BUILD_FORMAT,
            "machine": platform.machine(),
            "randomness": randomness.fingerprint(),
            "suite": self.suite,
            "packages": sorted(self.packages),
            "pip": sorted(self.pip),
            "npm": sorted(self.npm),
            "writable": sorted(self.writable),
            "links": sorted(self.links.items()),
            "run": self.run,
            "files": [
                [f.path, f.mode, hashlib.sha256(f.data(self.directory)).hexdigest()]
                for f in sorted(self.files, key=lambda f: f.path)
            ],
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:20]


def template_folders(settings: Settings) -> list[Path]:
    """Where templates are looked for, the user's first."""
    own = settings.templates_dir or Path.home() / ".config/emberbox/templates"
    return [own, Path(str(resources.files("emberbox.images") / "templates"))]


def list_templates(settings: Settings) -> list[str]:
    """Names of all templates that can be found."""
    return sorted(
        {
            path.stem
            for folder in template_folders(settings)
            if folder.is_dir()
            for path in folder.glob("*.toml")
            if re.fullmatch(TEMPLATE_NAME, path.stem)
        }
    )


def load_template(name: str, settings: Settings) -> Template:
    """Read a template by name, or by the path of its file (`./mine.toml`): for the operator's own process only.

    Raises:
        ConfigError: unknown, unreadable or wrong; the message names file and key.
    """
    return read_template(Path(name)) if name.endswith(".toml") else find_template(name, settings)


def find_template(name: str, settings: Settings) -> Template:
    """Read one of the templates that the operator has made available: the built-in ones, and those of `templates_dir`.
    What is no name of a template never becomes a path.

    Raises:
        ConfigError: unknown, unreadable or wrong; the message names file and key.
    """
    path = template_path(name, settings)
    if path is None:
        raise ConfigError(
            f"There is no template {name!r:.80}.",
            remediation=f"Known templates: {', '.join(list_templates(settings))}. A path must end in .toml.",
        )
    return read_template(path)


def template_path(name: str, settings: Settings) -> Path | None:
    """The file of a template that is named, where there is one."""
    if re.fullmatch(TEMPLATE_NAME, name) is None:
        return None
    paths = [folder / f"{name}.toml" for folder in template_folders(settings)]
    return next((path for path in paths if path.is_file()), None)


def read_template(path: Path) -> Template:
    """Read one template file."""
    found = {"name": path.stem, "directory": path.resolve().parent}
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"Cannot read the template {path}: {exc.strerror}.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"The template {path} is not valid TOML: {exc}.") from exc
    for key in fields.keys() & found.keys():
        raise ConfigError(f"The template {path} is wrong: {key}: comes from the file's place and cannot be set.")
    try:
        return Template(**fields, **found)
    except ValidationError as exc:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        raise ConfigError(f"The template {path} is wrong: {problems}.") from exc
