"""Taking back single files of a sandbox in which something puts links where files and folders were."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emberbox import Sandbox
from emberbox.errors import RollbackFailed, ValidationFailed

HOME = "/home/user"


def sh(sandbox: Sandbox, script: str) -> str:
    run = sandbox.commands.run(["bash", "-euc", script])
    assert run.exit_code == 0, run.stderr
    return run.stdout


LOOK = """
cd ~; find . -not -path './.cache*' -printf '%P %y %m %l\\n' | sort; find . -type f | sort | xargs grep -H ''
"""

SETUP = """
cd ~; mkdir -p d/sub e; echo old >d/x; echo other >d/y; echo deep >d/sub/z; echo victim >e/x; echo victim >e/sub
mkdir e/deep; echo victim >e/deep/z; ln -s e legit; echo file >f; mkdir g; echo in >g/a; chmod 750 d/sub; chmod 640 d/x
ln -s f l; mkdir /tmp/out; echo out >/tmp/out/x; mkfifo pipe
"""

TAKEN_BACK = {
    "the folder is a link to another": ("mv d d2; ln -s e d", ["d", "d2"]),
    "the folder is a link out of the home": ("rm -r d; ln -s /tmp/out d", ["d"]),
    "the folder is a link to the system": ("rm -r d; ln -s /etc d", ["d"]),
    "the folder is a link to itself": ("rm -r d; ln -s d d", ["d"]),
    "links that lead to each other": ("rm -r d; ln -s d3 d; ln -s d d3", ["d", "d3"]),
    "the file is a link": ("ln -sf ../e/x d/x", ["d/x"]),
    "the file is a link to nowhere": ("ln -sf /nowhere/at/all d/x", ["d/x"]),
    "a folder below is a link": ("rm -r d/sub; ln -s ../e/deep d/sub", ["d/sub"]),
    "a link is a file": ("rm l; echo new >l", ["l"]),
    "a link leads elsewhere": ("ln -sfn d l", ["l"]),
    "a link is a folder": ("rm l; mkdir l; echo x >l/x", ["l"]),
    "a file became a folder": ("rm f; mkdir -p f/in; echo x >f/in/x", ["f"]),
    "a folder became a file": ("rm -r d; echo x >d", ["d"]),
    "an empty folder stands for a file": ("rm f; mkdir f", ["f"]),
    "a folder has gone, with its rights": ("rm -r d", ["d"]),
    "a folder has other rights": ("chmod 700 d/sub", ["d/sub"]),
    "a folder is new": ("mkdir -p n/m; echo x >n/m/o; ln -s /etc n/etc", ["n"]),
    "a file in a folder that has gone": ("rm -r d/sub", ["d/sub/z"]),
    "all of it": ("rm -r d g; ln -s e d; ln -s d g; echo >>e/x; mkdir f2; chmod 700 d", ["."]),
    "a name with two slashes": ("ln -sf ../e/x d/x", ["/" + HOME + "/d/x"]),
    "a name with dots": ("ln -sf ../e/x d/x", ["e/../d/./x"]),
}


@pytest.mark.parametrize("case", TAKEN_BACK)
def test_the_name_itself_is_taken_back(sandbox: Sandbox, case: str) -> None:
    change, paths = TAKEN_BACK[case]
    sh(sandbox, SETUP)
    point = sandbox.snapshot()
    before = sh(sandbox, LOOK)
    out = sh(sandbox, "cat /tmp/out/x /etc/hostname; ls -A /tmp/out /etc")
    sh(sandbox, f"cd ~; {change}")
    assert sh(sandbox, LOOK) != before
    answer = sandbox.rollback(point, paths=paths)
    assert sh(sandbox, LOOK) == before
    assert sh(sandbox, "cat /tmp/out/x /etc/hostname; ls -A /tmp/out /etc") == out
    assert answer.files_affected is not None
    assert sandbox.rollback(point, paths=["d", "e", "f", "g", "l"]).files_affected == []


REFUSED = {
    "the folder is a link to another": ("mv d d2; ln -s e d", ["d/x"], "/home/user/d is a link now"),
    "the folder is a link out of the home": ("rm -r d; ln -s /tmp/out d", ["d/x"], "/home/user/d is a link now"),
    "a folder farther up is a link": ("rm -r d; mkdir e/sub2; ln -s e d", ["d/sub/z"], "/home/user/d is a link now"),
    "the link leads back to the folder": ("mv d d2; ln -s d2 d", ["d/x"], "/home/user/d is a link now"),
    "the folder is a file": ("rm -r d; echo x >d", ["d/x"], "/home/user/d is a file now"),
    "the folder was a link": ("rm legit; mkdir legit; echo x >legit/x", ["legit/x"], "was a link then"),
    "the folder was a file": ("rm f; mkdir f; echo x >f/x", ["f/x"], "was a file then"),
    "it was a pipe": ("rm pipe; echo x >pipe", ["pipe"], "a pipe"),
    "one of several": ("echo new >f; rm -r d; ln -s e d", ["f", "d/x"], "/home/user/d is a link now"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_touch_more_than_was_named_is_refused_and_nothing_is_changed(sandbox: Sandbox, case: str) -> None:
    change, paths, words = REFUSED[case]
    sh(sandbox, SETUP)
    point = sandbox.snapshot()
    sh(sandbox, f"cd ~; {change}")
    before = sh(sandbox, LOOK)
    with pytest.raises(RollbackFailed, match=words) as refused:
        sandbox.rollback(point, paths=paths)
    assert "othing was changed" in refused.value.message
    assert sh(sandbox, LOOK) == before


def test_a_name_below_the_users_own_link_is_no_name(sandbox: Sandbox) -> None:
    sh(sandbox, SETUP)
    point = sandbox.snapshot()
    sh(sandbox, "echo new >~/e/x")
    with pytest.raises(ValidationFailed, match="'/home/user/legit' is a link") as refused:
        sandbox.rollback(point, paths=["legit/x"])
    assert "'e'" in refused.value.remediation
    assert sh(sandbox, "cat ~/e/x") == "new\n"
    for path in ("../../etc/passwd", "/etc/passwd", "d/../../x"):
        with pytest.raises(ValidationFailed, match="no file"):
            sandbox.rollback(point, paths=[path])


SWAPPER = """
import os
os.chdir(os.path.expanduser("~"))
while True:
    try:
        os.rename("d", "aside"); os.symlink("e", "d"); os.unlink("d"); os.rename("aside", "d")
    except OSError:
        pass
"""


def test_a_link_that_is_planted_meanwhile_leads_nowhere(sandbox: Sandbox) -> None:
    """A program swaps the folder for a link and back all the time. Whatever it wins, nothing is written through."""
    sh(sandbox, "cd ~; mkdir d e; echo old >d/x; echo victim >e/x; for n in $(seq 40); do echo $n >d/$n; done")
    point = sandbox.snapshot()
    sandbox.files.write("swap.py", SWAPPER)
    for number in range(12):
        sh(sandbox, f"cd ~; for n in $(seq 40); do echo {number} >d/$n; done; echo {number} >d/x")
        swapper = sandbox.commands.run("exec python3 ~/swap.py", background=True)
        done = False
        try:
            sandbox.rollback(point, paths=["d"])
            done = True
        except (RollbackFailed, ValidationFailed):
            pass
        swapper.kill()
        assert sh(sandbox, "cd ~/e; echo *; cat x") == "x\nvictim\n"
        if done:  # the program may have moved it since
            assert sh(sandbox, "cd ~; if [ -e d ] && [ ! -L d ]; then cat d/x; else cat aside/x; fi") == "old\n"
        sh(sandbox, "cd ~; if [ -e aside ]; then rm -rf d; mv aside d; fi; test ! -L d || { rm d; mkdir d; }")
    sandbox.rollback(point, paths=["."])
    assert sh(sandbox, "cd ~; cat d/x e/x; echo d/*; test -e swap.py || echo gone").startswith("old\nvictim\n")


def test_calls_about_files_have_the_users_rights_and_no_others(sandbox: Sandbox) -> None:
    """What the agent (root) does for the host is done as the user, also where a link leads to what is root's."""
    assert sh(sandbox, "grep ^Groups: /proc/1/status").split() == ["Groups:"]
    owned = sh(sandbox, "find / -xdev -maxdepth 2 -type d -user root -writable 2>/dev/null | grep -v '^/proc' || true")
    sh(sandbox, "ln -s /run ~/run; ln -s /run/secret ~/secret")
    calls: dict[str, Callable[[str], object]] = {
        "write": lambda path: sandbox.files.write(path + "/new", "x"),
        "make_dir": lambda path: sandbox.files.make_dir(path + "/new"),
        "rename": lambda path: sandbox.files.rename("mine", path + "/new"),
    }
    for name, call in calls.items():
        for path in ("/run", "run", "/", "/etc", "/proc/1", "/usr/bin"):
            sandbox.files.write("mine", "x")
            with pytest.raises(Exception, match=r"denied|Read-only|not permitted|cross-device|No such file") as refused:
                call(path)
            assert type(refused.value).__name__ == "GuestFileError", (name, path)
    for path in ("/etc/passwd", "/run", "/usr/bin/env", "/proc/1/status"):
        with pytest.raises(Exception, match=r"denied|Read-only|not permitted|busy"):
            sandbox.files.remove(path)
        with pytest.raises(Exception, match=r"denied|Read-only|not permitted|directory|cross-device|Invalid"):
            sandbox.files.write(path, "x")
    sandbox.files.write("a/b/c", "x")
    sandbox.files.make_dir("made/too")
    assert set(sh(sandbox, "stat -c %u:%g ~/a ~/a/b ~/a/b/c ~/made ~/made/too").split()) == {"1000:1000"}
    assert owned.split() == [] or set(owned.split()) <= {"/tmp", "/dev/shm", "/dev/mqueue", "/var/tmp"}, owned
