"""Taking back single files of every kind: each comes back exactly, or is refused before anything has changed."""

from __future__ import annotations

import pytest

from emberbox import MachineLimits, Sandbox
from emberbox.errors import RollbackFailed, SnapshotFailed

TEMPLATE = "minimal"
LOOK = """
cd /; export TMPDIR=/dev/shm
find ~ /tmp -maxdepth 250 -not -path "$HOME/.cache*" -printf '%p %y %m %l\\n' | sort | cat -v
find ~ /tmp -maxdepth 250 -type f -size -2000k -readable -print0 | sort -z | xargs -0r sha1sum | cut -c1-12
"""


def sh(sandbox: Sandbox, script: str) -> str:
    run = sandbox.commands.run(["bash", "-euc", script], cwd="/")
    assert run.exit_code == 0, run.stderr
    return run.stdout


SOCKET = "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"d/s\")'"
DEEP = """python3 -c '
import os
os.chdir("d")
for _ in range({}):
    os.mkdir("x"); os.chdir("x")
open("f", "w").write("a")'"""

TAKEN_BACK = {
    "a pipe is new": ("mkdir d; echo a >d/a", "mkfifo d/p; echo b >d/a", ["d"]),
    "a socket is new": ("mkdir d; echo a >d/a", SOCKET, ["d"]),
    "a file is a pipe": ("echo a >a", "rm a; mkfifo a", ["a"]),
    "a folder is a pipe": ("mkdir d; echo a >d/a", "rm -r d; mkfifo d", ["d"]),
    "a folder cannot be written to now": (
        "mkdir -p d/e; echo a >d/a; echo c >d/c; echo e >d/e/e",
        "echo b >d/a; rm d/c; echo n >d/n; echo x >d/e/e; chmod 555 d d/e",
        ["d"],
    ),
    "a new folder cannot be written to": ("mkdir d", "mkdir -p d/e; echo a >d/e/a; chmod 555 d/e", ["d"]),
    "a folder could not be written to then": ("mkdir d; echo a >d/a; chmod 555 d", "chmod 755 d; echo b >d/n", ["d"]),
    "folders that could not be written to have gone": (
        "mkdir -p d/e; echo a >d/e/a; chmod 555 d d/e", "chmod 755 d d/e; rm -r d", ["d"],
    ),
    "a file cannot be read now": ("echo a >a", "echo b >a; chmod 0 a", ["a"]),
    "rights that are not of everyday": (
        "echo a >a; chmod 6755 a; mkdir d; chmod 3770 d", "rm a; echo b >a; chmod 700 d", ["a", "d"],
    ),
    "a file is far larger than the disk": ("echo a >a", "truncate -s 1T a", ["a"]),
    "a file with a hole": ("truncate -s 40M a; echo x >>a", "echo b >a", ["a"]),
    "several names of one file": ("mkdir d; echo a >d/a; ln d/a d/b", "echo b >d/a", ["d"]),
    "names with line ends": ("echo a >$'a\\nb'; mkdir $'d\\n'; echo x >$'d\\n/x'", "echo b >$'a\\nb'; rm -r d*", ["."]),
    "names that are not UTF-8": (
        "mkdir d; echo a >d/$'caf\\xe9'; ln -s $'\\xff' d/l; mkdir d/$'\\xfe'; echo y >d/$'\\xfe'/y",
        "echo b >d/$'caf\\xe9'; ln -sfn x d/l; echo q >d/$'\\xfd'; rm -r d/$'\\xfe'",
        ["d"],
    ),
    "one name that is not UTF-8": ("echo a >$'caf\\xe9'", "echo b >$'caf\\xe9'", ["caf\udce9"]),
    "rights of the home directory": ("echo a >a", "chmod 711 ~", ["."]),
    "a deep tree has gone": ("mkdir d; " + DEEP.format(150), "rm -r d", ["d"]),
    "a tree without end elsewhere": ("mkdir d; echo z >z; " + DEEP.format(3000), "echo y >z", ["z"]),
    "the folder of caches is a link": ("mkdir .cache; echo a >.cache/a", "mv .cache c; ln -s c .cache", ["."]),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN_BACK)
def test_every_kind_comes_back_exactly(sandbox: Sandbox, case: str) -> None:
    made, change, paths = TAKEN_BACK[case]
    sh(sandbox, f"cd ~; {made}")
    point = sandbox.snapshot()
    before = sh(sandbox, LOOK)
    sh(sandbox, f"cd ~; {change}")
    assert sh(sandbox, LOOK) != before
    sandbox.rollback(point, paths=paths)
    assert sh(sandbox, LOOK) == before


REFUSED = {
    "a socket has gone": ("mkdir d; echo a >d/a; " + SOCKET, "rm d/s; echo b >d/a", ["d"], "was a pipe, a socket"),
    "a folder is closed now": ("mkdir d; echo a >d/a; echo z >z", "echo y >z; echo b >d/a; chmod 0 d", ["z", "d"],
                               "d cannot be looked into, with mode 0000 now"),
    "a folder is closed now, a file in it is named": (
        "mkdir d; echo a >d/a", "echo b >d/a; chmod 0 d", ["d/a"], "d cannot be looked into, with mode 0000 now"),
    "a folder can be listed, not entered": ("mkdir d; echo a >d/a", "echo b >d/a; chmod 600 d", ["d"], "mode 0600 now"),
    "a folder was closed then": ("mkdir d; echo a >d/a; chmod 0 d", "chmod 700 d; echo b >d/a", ["d"], "0000 then"),
    "the home directory is closed": ("echo a >a", "echo b >a; chmod 0 ~", ["a"], "user cannot be looked into"),
    "the folder of a named file cannot be written to": (
        "mkdir d; echo a >d/a; echo z >z", "echo b >d/a; echo y >z; chmod 555 d", ["z", "d/a"],
        "its folder /home/user/d cannot be written to, with mode 0555"),
    "a file could not be read then": ("echo a >a; chmod 200 a; echo z >z", "rm -f a; echo y >z", ["z", "a"],
                                      "a could not be read then, with mode 0200"),
    "a file is far larger than the disk": ("truncate -s 1T a; echo z >z", "rm a; echo y >z", ["a", "z"],
                                           "no room for its 1,099,511,627,776 bytes"),
    "there is no room any more": ("head -c 40M /dev/zero >/tmp/a; echo z >z",
                                  "rm /tmp/a; echo y >z; head -c 40M /dev/zero >/tmp/other", ["z", "/tmp/a"],
                                  "no room for its 41,943,040 bytes"),
    "a tree without end": ("mkdir d; echo z >z; " + DEEP.format(300), "echo y >z", ["z", "d"], "200 folders deep"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_back_is_refused_before_anything_has_changed(sandbox: Sandbox, case: str) -> None:
    made, change, paths, words = REFUSED[case]
    sh(sandbox, f"cd ~; {made}")
    point = sandbox.snapshot()
    sh(sandbox, f"cd ~; {change}")
    script = LOOK.replace("find ~", "chmod 755 ~; find ~") if "home" in case else LOOK
    with pytest.raises(RollbackFailed, match=words) as refused:
        sandbox.rollback(point, paths=paths)
    assert "Nothing was changed" in refused.value.message
    assert refused.value.remediation
    after = sh(sandbox, script)
    sandbox.rollback(point)
    sh(sandbox, f"cd ~; {change}")
    assert sh(sandbox, script) == after


WRITER = """
import os
while True:
    with open("/home/user/d/x", "r+") as file:
        file.write("new")
"""


def test_what_is_written_again_meanwhile_is_not_called_done(sandbox: Sandbox) -> None:
    """The file has the same size and rights all the time, so that only its content tells."""
    sh(sandbox, "cd ~; mkdir d; echo -n old >d/x; for n in $(seq 30); do echo $n >d/$n; done")
    point = sandbox.snapshot()
    sandbox.files.write("write.py", WRITER)
    sh(sandbox, "cd ~; for n in $(seq 30); do echo new >d/$n; done; echo -n new >d/x")
    writer = sandbox.commands.run("exec python3 ~/write.py", background=True)
    try:
        with pytest.raises(RollbackFailed, match="d/x was changed by something in the sandbox"):
            sandbox.rollback(point, paths=["d"])
    finally:
        writer.kill()
    sandbox.rollback(point, paths=["d"])
    assert sh(sandbox, "cat ~/d/x") == "old"


def test_more_files_than_a_snapshot_has_memory_for_are_told_and_the_sandbox_goes_on(nothing_left: None) -> None:
    with Sandbox.create("minimal", limits=MachineLimits(memory_mb=256)) as sandbox:
        sandbox.run_code("import os\nos.mkdir('m')\nfor n in range(25_000): open(f'm/{n}', 'w').close()", timeout=60)
        with pytest.raises(SnapshotFailed, match="25,001 files and folders") as refused:
            sandbox.snapshot()
        assert "limits.memory_mb" in refused.value.remediation
        assert sandbox.run_code("len(os.listdir('m'))").text == "25000"
