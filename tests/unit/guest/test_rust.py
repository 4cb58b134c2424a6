"""Rust, as its users see it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from .conftest import Client


def _works() -> bool:
    compiler = shutil.which("rustc")
    return (
        compiler is not None
        and subprocess.run([compiler, "--version"], capture_output=True, check=False).returncode == 0
    )


needs_rustc = pytest.mark.skipif(not _works(), reason="there is no working rustc here")


@needs_rustc
@pytest.mark.rust
def test_compile_and_run(agent: Client) -> None:
    code = (
        "use std::io::Read;\nfn main() {\n  let mut s = String::new();\n"
        '  std::io::stdin().read_to_string(&mut s).unwrap();\n  println!("{s} {}", std::env::args().nth(1).unwrap());\n'
        "  std::process::exit(3);\n}"
    )
    for _ in range(2):
        outcome = agent.code(code, "rust", b"in", args=["arg"])
        assert (outcome.stdout, outcome.stderr) == ("in arg\n", "")
        assert (outcome.final["exit_code"], outcome.final["context"]) == (3, None)


@needs_rustc
@pytest.mark.rust
def test_a_compile_error(agent: Client) -> None:
    outcome = agent.code('fn main() { let x: i32 = "a"; }', "rust")
    assert outcome.final["error"]["name"] == "CompileError"
    assert outcome.final["error"]["value"].startswith("error[E0308]")
    assert (outcome.final["exit_code"], outcome.reason) == (1, "completed")
    assert "main.rs:1:" in outcome.stderr


@pytest.mark.skipif(shutil.which("rustc") is None, reason="there is no rustc here")
def test_there_are_no_contexts(agent: Client) -> None:
    assert agent.finish(agent.begin_code("fn main() {}", "rust", context="x")).final["kind"] == "bad_request"
