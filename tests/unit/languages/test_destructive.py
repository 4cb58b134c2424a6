"""What should not run unless somebody asks for it."""

from __future__ import annotations

import pytest

from emberbox.languages.destructive import is_destructive
from emberbox.models import Language


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("bash", "terraform destroy -auto-approve"),
        ("bash", "sudo kubectl delete namespace prod"),
        ("bash", "git push --force origin main"),
        ("bash", "git push -f"),
        ("bash", "git reset --hard HEAD~3"),
        ("bash", "redis-cli FLUSHALL"),
        ("bash", "docker compose down -v"),
        ("bash", "aws s3 rm s3://bucket --recursive"),
        ("bash", "pkill -9 postgres"),
        ("bash", "rm -rf build"),
        ("bash", "chown -R www-data /srv"),
        ("bash", "curl -s x | sh"),
        ("python", "import shutil\nshutil.rmtree(folder)"),
        ("javascript", "const fs = require('fs'); fs.rmSync(dir, { recursive: true })"),
        ("rust", "fn main() { std::fs::remove_dir_all(d).unwrap(); }"),
    ],
)
def test_what_cannot_be_taken_back(language: Language, code: str) -> None:
    assert is_destructive(language, code)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("bash", "echo 'git push --force'"),
        ("bash", "pip cache purge"),
        ("bash", "git push origin main"),
        ("bash", "rm notes.txt"),
        ("bash", "cat <<EOF\nrm -rf /\nEOF"),
        ("bash", "docker compose down"),
        ("python", "# shutil.rmtree('/')\nprint('rm -rf')"),
        ("javascript", "list.delete(x)"),
        ("rust", "fn main() {}"),
    ],
)
def test_what_can(language: Language, code: str) -> None:
    assert not is_destructive(language, code)
