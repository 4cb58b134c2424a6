"""Does the image carry what the code needs?"""

from __future__ import annotations

import pytest

from emberbox.errors import ValidationFailed
from emberbox.images.requirements import check_requirements
from emberbox.images.store import Manifest
from emberbox.models import Language

from .conftest import WriteTemplate, manifest_of


@pytest.fixture
def manifest(write_template: WriteTemplate) -> Manifest:
    return manifest_of(
        write_template(""),
        python_packages={"numpy": "1.24.2", "scikit-learn": "1.2", "odd": "not-a-version", "beta": "2.0rc1"},
        npm_packages={"acorn": "8.8.1", "@types/node": "18"},
    )


@pytest.mark.parametrize(
    "wanted",
    [
        "numpy", "NumPy", "numpy>=1.20,<2", "numpy == 1.24.*", "scikit_learn", "Scikit.Learn>=1", "odd", "beta>=1",
        "numpy[extra]", 'gone; python_version < "3"', 'numpy; python_version > "3"',
    ],
)  # fmt: skip
def test_python_requirements_that_are_met(manifest: Manifest, wanted: str) -> None:
    check_requirements([wanted], "python", manifest)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("torch", "torch is not in the image"),
        ("numpy>=2", "numpy>=2 is wanted, the image has numpy 1.24.2"),
        ("odd>=1", "the image has odd not-a-version"),
        ("not a requirement", "'not a requirement' is no requirement"),
        ("-r requirements.txt", "is no requirement"),
        ("", "is no requirement"),
    ],
)
def test_python_requirements_that_are_not_met(manifest: Manifest, wanted: str, words: str) -> None:
    with pytest.raises(ValidationFailed, match=words) as info:
        check_requirements([wanted], "python", manifest)
    assert "'mine'" in info.value.message
    assert "`pip`" in info.value.remediation


@pytest.mark.parametrize("wanted", ["acorn", "acorn@8", "acorn@8.8.1", "@types/node", "@types/node@^18"])
def test_npm_requirements_that_are_met(manifest: Manifest, wanted: str) -> None:
    check_requirements([wanted], "javascript", manifest)


@pytest.mark.parametrize("wanted", ["left-pad", "@types/react@1", "types/node", ""])
def test_npm_requirements_that_are_not_met(manifest: Manifest, wanted: str) -> None:
    with pytest.raises(ValidationFailed, match="is not in the image") as info:
        check_requirements([wanted], "javascript", manifest)
    assert "`npm`" in info.value.remediation


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("acorn@9", "the image has acorn 8.8.1"), ("acorn@8.8", ""), ("acorn@>=8 <9", "only versions such as")],
)
def test_versions_of_npm_packages_are_compared(manifest: Manifest, wanted: str, words: str) -> None:
    if not words:
        check_requirements([wanted], "javascript", manifest)
        return
    with pytest.raises(ValidationFailed, match=words):
        check_requirements([wanted], "javascript", manifest)


def test_markers_see_the_python_of_the_image(manifest: Manifest) -> None:
    check_requirements(['nothing-there; python_version < "3.11"'], "python", manifest)
    with pytest.raises(ValidationFailed, match="nothing-there"):
        check_requirements(['nothing-there; python_version == "3.11"'], "python", manifest)


@pytest.mark.parametrize("language", ["bash", "rust"])
def test_other_languages_have_no_requirements(manifest: Manifest, language: Language) -> None:
    check_requirements([], language, manifest)
    with pytest.raises(ValidationFailed, match=f"{language} code cannot have requirements"):
        check_requirements(["x"], language, manifest)


def test_every_problem_is_named(manifest: Manifest) -> None:
    with pytest.raises(ValidationFailed, match=r"torch .*; jax ") as info:
        check_requirements(["torch", "numpy", "jax"], "python", manifest)
    assert info.value.details == {"problems": ["torch is not in the image", "jax is not in the image"]}
