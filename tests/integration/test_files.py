"""`files` of a real sandbox."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from emberbox import Sandbox
from emberbox.errors import GuestFileError, ValidationFailed
from emberbox.models import EntryInfo
from waiting import until

CONTRACT = True
"""On gVisor, here and on a server; what is marked so on every back end (conftest.py)."""
TEMPLATE = "minimal"


def errno_of(error: pytest.ExceptionInfo[GuestFileError]) -> str:
    return str(error.value.details["errno"])


@pytest.mark.every_backend
def test_text_and_bytes_come_back_as_written(sandbox: Sandbox) -> None:
    entry = sandbox.files.write("notes/día.txt", "héllo\n世界")
    assert (entry.path, entry.name, entry.type) == ("/home/user/notes/día.txt", "día.txt", "file")
    assert sandbox.files.read("notes/día.txt") == "héllo\n世界"
    sandbox.files.write("b", bytes(range(256)), mode=0o750)
    assert sandbox.files.read("b", "bytes") == bytes(range(256))
    assert sandbox.files.get_info("b").mode == 0o750
    assert sandbox.commands.run("stat -c '%U %a' b").stdout == "user 750\n"


def test_empty_files_exist(sandbox: Sandbox) -> None:
    sandbox.files.write("empty", "")
    assert sandbox.files.read("empty", "bytes") == b""
    assert list(sandbox.files.read("empty", "stream")) == []


def test_writing_replaces_the_whole_file(sandbox: Sandbox) -> None:
    sandbox.files.write("f", "long content")
    sandbox.files.write("f", "short")
    assert sandbox.files.read("f") == "short"
    assert [e.name for e in sandbox.files.list()] == ["f"], "no temporary file is left beside it"


@pytest.mark.every_backend(heavy=True)
def test_open_files_and_iterables_are_streamed(sandbox: Sandbox, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"from a file" * 100_000)
    with local.open("rb") as file:
        sandbox.files.write("copy", file)
    assert sandbox.files.read("copy", "bytes") == local.read_bytes()
    sandbox.files.write("pieces", (b"%d," % n for n in range(3)))
    assert sandbox.files.read("pieces") == "0,1,2,"
    sandbox.files.write("text", io.StringIO("text stream"))
    assert sandbox.files.read("text") == "text stream"


def test_500_mb_pass_without_being_held_in_memory(own_sandbox: Sandbox) -> None:
    piece, count = bytes(range(256)) * 4096, 500

    def pieces() -> Iterator[bytes]:
        for _ in range(count):
            yield piece

    before = psutil.Process().memory_info().rss
    peak = before
    own_sandbox.files.write("big", pieces())
    assert own_sandbox.files.get_info("big").size == count * len(piece)
    digest = hashlib.sha256()
    for part in own_sandbox.files.read("big", "stream"):
        digest.update(part)
        peak = max(peak, psutil.Process().memory_info().rss)
    assert digest.hexdigest() == hashlib.sha256(piece * count).hexdigest()
    assert peak - before < 100 << 20


def test_list_get_info_exists(sandbox: Sandbox) -> None:
    sandbox.files.write("a/b/c.txt", "x")
    sandbox.commands.run("ln -s b a/link; touch a/.hidden")
    assert [(e.name, e.type) for e in sandbox.files.list("a")] == [
        (".hidden", "file"),
        ("b", "dir"),
        ("link", "symlink"),
    ]
    assert sandbox.files.get_info("a/link").target == "b"
    assert "/home/user/a/b/c.txt" in [e.path for e in sandbox.files.list("a", depth=2)]
    assert sandbox.files.exists("a/b/c.txt")
    assert not sandbox.files.exists("a/b/d.txt")
    assert not sandbox.files.exists("a/b/c.txt/below-a-file")
    info = sandbox.files.get_info("a/b/c.txt")
    assert info.size == 1
    assert info.modified is not None


def test_large_directories(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkdir many && cd many && seq 1 20000 | xargs touch")
    assert len(sandbox.files.list("many")) == 20000


def test_names_that_are_not_utf_8_are_names_like_others(sandbox: Sandbox) -> None:
    """In Python they are what `os.fsdecode` makes of them; JSON has U+0000 and two digits for each such byte."""
    made = r"""cd ~; echo byte >$'caf\xe9'; echo text >'caf\xe9'; echo line >$'a\nb'; ln -s $'\xff' link
        mkdir $'d\xfe'; echo in >$'d\xfe/c'"""
    assert sandbox.commands.run(made).exit_code == 0
    entries = {entry.path.removeprefix("/home/user/"): entry for entry in sandbox.files.list(depth=2)}
    assert set(entries) == {"caf\udce9", r"caf\xe9", "a\nb", "link", "d\udcfe", "d\udcfe/c"}
    assert entries["link"].target == "\udcff"
    written = entries["caf\udce9"].model_dump_json()
    assert r'"path":"/home/user/caf\u0000e9"' in written
    assert EntryInfo.model_validate_json(written) == entries["caf\udce9"]
    contents = {name: sandbox.files.read(name) for name, entry in entries.items() if entry.type == "file"}
    assert contents == {"caf\udce9": "byte\n", r"caf\xe9": "text\n", "a\nb": "line\n", "d\udcfe/c": "in\n"}
    assert sandbox.files.exists("caf\udce9")
    assert not sandbox.files.exists("caf\udcea")
    assert sandbox.files.write("d\udcfe/n\udc80", "new").name == "n\udc80"
    assert sandbox.files.make_dir("x\udcff/y")
    assert sandbox.files.rename("caf\udce9", "x\udcff/y/z\udc81").path == "/home/user/x\udcff/y/z\udc81"
    sandbox.files.remove("d\udcfe")
    sandbox.files.remove(r"caf\xe9")
    left = sandbox.commands.run("find x* -mindepth 1 | od -An -c", cwd="/home/user").stdout
    assert "z 201" in " ".join(left.split()), "the byte itself is in the name"
    assert sorted(entry.name for entry in sandbox.files.list()) == ["a\nb", "link", "x\udcff"]


def test_odd_names_can_be_compared_and_taken_back(sandbox: Sandbox) -> None:
    sandbox.files.write("d/caf\udce9", "old")
    sandbox.files.write("d/a\nb", "old")
    point = sandbox.snapshot()
    sandbox.files.write("d/caf\udce9", "new")
    sandbox.files.write("d/n\udc80", "new")
    run = sandbox.run_code(r"open(b'/home/user/d/\xff', 'w').close()")
    assert [change.path for change in run.changed_files or []] == [r"/home/user/d/\xff"]
    changed = {diff.path.removeprefix("/home/user/d/"): diff.change for diff in sandbox.diff(point)}
    assert changed == {"caf\udce9": "changed", "n\udc80": "created", "\udcff": "created"}
    answer = sandbox.rollback(point, paths=[diff.path for diff in sandbox.diff(point)])
    assert sorted(answer.files_affected or []) == sorted(f"/home/user/d/{name}" for name in changed)
    assert sandbox.diff(point) == []
    assert sandbox.files.read("d/caf\udce9") == "old"
    assert sandbox.history()[0].changed_files == run.changed_files


def test_what_is_wrong_with_odd_names_is_told_in_text(sandbox: Sandbox) -> None:
    for name in ("gone\udce9", "gone\udce9/x"):
        with pytest.raises(GuestFileError, match=r"gone\\xe9") as error:
            sandbox.files.read(name)
        assert errno_of(error) == "ENOENT"
        assert error.value.message.isprintable()
    with pytest.raises(ValidationFailed, match="half of a surrogate pair"):
        sandbox.files.read("\ud800")


def test_a_file_that_says_it_has_terabytes_is_read_in_pieces_or_not_at_all(sandbox: Sandbox) -> None:
    sandbox.commands.run("truncate -s 1T hole; echo -n end | dd of=hole bs=1 seek=4096 conv=notrunc")
    with pytest.raises(GuestFileError, match="the most that is read at once") as error:
        sandbox.files.read("hole", "bytes")
    assert "stream" in error.value.remediation
    piece = next(iter(sandbox.files.read("hole", "stream")))
    assert piece[4096:4099] == b"end"


def test_a_tree_that_is_deeper_than_any_path_is_removed(sandbox: Sandbox) -> None:
    code = "import os\nfor _ in range(3000): os.mkdir('deep'); os.chdir('deep')\nopen('f', 'w').close()"
    assert sandbox.run_code(code).error is None
    with pytest.raises(GuestFileError, match="name too long"):
        sandbox.files.list("/home/user/deep", depth=1000)
    sandbox.run_code("os.chdir('/')")
    sandbox.files.remove("/home/user/deep")
    assert not sandbox.files.exists("/home/user/deep")


def test_work_on_files_is_not_of_the_execution_beside_it(own_sandbox: Sandbox) -> None:
    """What ends with an execution is what that has started, and no look at a large folder."""
    own_sandbox.commands.run("mkdir many && cd many && seq 1 25000 | xargs touch")
    beside = [own_sandbox.commands.run("read line", background=True) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        listing = threads.submit(own_sandbox.files.list, "many")
        for command in beside:
            command.kill()
            command.wait()
        assert len(listing.result(60)) == 25_000


def test_make_dir_remove_rename(sandbox: Sandbox) -> None:
    assert sandbox.files.make_dir("d/e/f")
    assert not sandbox.files.make_dir("d/e/f")
    sandbox.files.write("d/x", "content")
    assert sandbox.files.rename("d/x", "d/y").path == "/home/user/d/y"
    assert sandbox.files.read("d/y") == "content"
    sandbox.files.remove("d")
    assert not sandbox.files.exists("d")


def test_missing_files_are_named(sandbox: Sandbox) -> None:
    for work in (sandbox.files.read, sandbox.files.remove, sandbox.files.get_info, sandbox.files.list):
        with pytest.raises(GuestFileError, match="nothing-here") as error:
            work("nothing-here")
        assert errno_of(error) == "ENOENT"


@pytest.mark.every_backend
def test_what_is_no_regular_file_is_refused_at_once(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkfifo fifo")
    for path in ("fifo", "/dev/zero", "/home/user"):
        with pytest.raises(GuestFileError):
            sandbox.files.read(path)


@pytest.mark.every_backend
def test_host_requests_have_only_the_users_rights(sandbox: Sandbox) -> None:
    with pytest.raises(GuestFileError) as error:
        sandbox.files.write("/etc/passwd", "x")
    assert errno_of(error) in ("EACCES", "EROFS", "EPERM")
    with pytest.raises(GuestFileError) as error:
        sandbox.files.read("/etc/shadow")
    assert errno_of(error) == "EACCES"


@pytest.mark.every_backend(heavy=True)
def test_a_full_disk_is_an_error_and_leaves_nothing(sandbox: Sandbox) -> None:
    with pytest.raises(GuestFileError) as error:
        sandbox.files.write("/tmp/large", (b"x" * (1 << 20) for _ in range(300)))
    assert errno_of(error) == "ENOSPC"
    assert sandbox.files.list("/tmp") == []


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000])
def test_impossible_paths_are_refused(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(ValidationFailed, match="no path"):
        sandbox.files.read(path)


def test_a_failing_source_leaves_no_file(sandbox: Sandbox) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * 1_000_000
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        sandbox.files.write("half", pieces())
    until(lambda: sandbox.files.list() == [], "the half file to go: a server notices that its client has left")


def test_a_file_replaced_while_it_is_read_is_noticed(own_sandbox: Sandbox) -> None:
    own_sandbox.files.write("f", b"a" * 1_000_000)
    stream = own_sandbox.files.read("f", "stream")
    next(stream)
    own_sandbox.files.write("f", b"b" * 1_000_000)
    with pytest.raises(GuestFileError) as error:
        list(stream)
    assert errno_of(error) == "ESTALE"
