"""What `!command` and `%magic` do, as in a notebook, as far as it makes sense without one."""

from __future__ import annotations

import builtins
import os
import re
import sys
import time

from .magic_lines import SHELL_LINES, CellMagic, Magic, find, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

_frame = sys._getframe  # noqa: SLF001 - there is no other way to the variables of a function that has a magic
NAME = "__magic__"
"""Under which cells reach the object, beside `get_ipython()`."""
IGNORED = frozenset(
    {
        "matplotlib",
        "load_ext",
        "reload_ext",
        "unload_ext",
        "autoreload",
        "config",
        "pylab",
        "xmode",
        "colors",
        "precision",
        "pdb",
        "gui",
        "aimport",
        "pprint",
        "automagic",
        "autosave",
        "notebook",
    }
)
SHOWN = {
    "html": "text/html",
    "markdown": "text/markdown",
    "latex": "text/latex",
    "svg": "image/svg+xml",
    "javascript": "application/javascript",
    "js": "application/javascript",
}
EXPRESSION = re.compile(r"\$\$|\$([A-Za-z_]\w*)|\{\{|\}\}|\{([^{}]*)\}")
MEASURED = 0.2
"""Seconds that one measurement of `%timeit` takes at least."""


class UsageError(Exception):
    """A magic that does not exist here, or is used wrongly."""


UsageError.__module__ = "builtins"  # in tracebacks its name is all that counts


class Lines(list):  # type: ignore[type-arg]
    """What a command printed, line by line; `n` and `s` join them, as IPython's SList does."""

    @property
    def n(self) -> str:
        """With line breaks between."""
        return "\n".join(self)

    @property
    def s(self) -> str:
        """With spaces between."""
        return " ".join(self)


class Magics:
    """The magics of one context.

    Args:
        run: runs source in the context and gives the value of its last expression.
        namespace: of the context.
        show: publishes a MIME bundle.
    """

    def __init__(
        self, run: Callable[[str], Any], namespace: Dict[str, Any], show: Callable[[Dict[str, Any]], None]
    ) -> None:
        self._run = run
        self._namespace = namespace
        self._show = show
        self.config: Dict[str, Any] = {}
        setattr(builtins, NAME, self)
        builtins.get_ipython = lambda: self  # type: ignore[attr-defined]

    @property
    def user_ns(self) -> Dict[str, Any]:
        """The variables of the context."""
        return self._namespace

    # -- from source to calls ---------------------------------------------------------------------------------------

    @staticmethod
    def translate(source: str) -> str | None:
        """The source with its magics as calls; None if there are none."""
        magics = find(source)
        return replace(source, magics, _call) if magics else None

    def cell(self, magic: CellMagic, number_of_lines: int) -> Any:
        """Do what a cell that begins with `%%` says. `number_of_lines` stand before its body."""
        import shlex

        name, line = magic.name, magic.line
        if name in ("bash", "sh", "script", "!", "sx", "system", "python", "python3"):
            argv = {"script": shlex.split(line), "python": [sys.executable], "python3": [sys.executable]}.get(name)
            self._script(argv or (["bash"] if name != "sh" else ["sh"]), magic.body)
        elif name in ("writefile", "file"):
            self._write(line, magic.body)
        elif name in SHOWN:
            self._show({SHOWN[name]: magic.body, "text/plain": magic.body})
        elif name == "time":
            return self._time("\n" * number_of_lines + magic.body)
        elif name == "timeit":
            self._timeit(line + "\n", "\n" * number_of_lines + magic.body)
        elif name == "capture":
            self._capture(line, "\n" * number_of_lines + magic.body)
        else:
            known = ["bash", "capture", "file", "python", "script", "sh", "time", "timeit", "writefile", *SHOWN]
            raise UsageError(f"there is no cell magic %%{name} here; there are: {', '.join(sorted(known))}")
        return None

    # -- what cells call --------------------------------------------------------------------------------------------

    def system(self, command: str) -> None:
        """`!command`: its output goes where `print` goes; its exit code to `_exit_code`."""
        self._system(command, _frame(1))

    def getoutput(self, command: str) -> Lines:
        """`lines = !command`."""
        return self._getoutput(command, _frame(1))

    def run_line_magic(self, name: str, line: str = "") -> Any:
        """`%name line`."""
        return self._line(name, line, _frame(1))

    def magic(self, text: str) -> Any:
        """`%name line`, in one text."""
        name, _, line = text.lstrip("%").partition(" ")
        return self._line(name, line.strip(), _frame(1))

    def run_cell_magic(self, name: str, line: str, body: str) -> Any:
        """`%%name line` with a body."""
        return self.cell(CellMagic(name, line, body, 0), 0)

    def _line(self, name: str, line: str, frame: Any) -> Any:
        if name in IGNORED:
            if name not in ("matplotlib", "config", "autoreload", "load_ext", "pylab"):
                print(f"%{name} has no effect here.", file=sys.stderr)
            return None
        if name in ("sx", "system", "sh", "bash"):
            return self._getoutput(line, frame) if name in ("sx", "system") else self._system(line, frame)
        if name in SHELL_LINES:
            return self._system(f"{name if name != 'll' else 'ls -l'} {line}", frame)
        method = getattr(self, "_line_" + name, None)
        if method is None:
            known = [word[6:] for word in dir(self) if word.startswith("_line_")]
            raise UsageError(f"there is no magic %{name} here; there are: {', '.join(sorted([*known, *SHELL_LINES]))}")
        return method(_filled(line, frame, self._namespace) if name not in ("time", "timeit", "prun") else line)

    # -- commands ---------------------------------------------------------------------------------------------------

    def _system(self, command: str, frame: Any) -> None:
        argv = ["bash", "-c", _filled(command, frame, self._namespace)]
        self._namespace["_exit_code"] = self._spawn(argv)
        _find_new_packages()

    def _getoutput(self, command: str, frame: Any) -> Lines:
        import subprocess

        argv = ["bash", "-c", _filled(command, frame, self._namespace)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self._namespace["_exit_code"] = done.returncode
        _find_new_packages()
        return Lines(done.stdout.decode("utf-8", "replace").splitlines())

    def _spawn(self, argv: List[str]) -> int:
        """Run a program; its output goes where `print` goes."""
        import subprocess

        sys.stdout.flush()
        sys.stderr.flush()
        if sys.stdout is sys.__stdout__:
            return subprocess.run(argv, check=False).returncode
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        sys.stdout.write(done.stdout.decode("utf-8", "replace"))
        return done.returncode

    def _script(self, argv: List[str], body: str) -> None:
        import subprocess

        code = self._spawn([*argv, "-c", body])
        if code:
            raise subprocess.CalledProcessError(code, argv[0])

    def _write(self, line: str, body: str) -> None:
        import shlex

        words = shlex.split(line)
        append = "-a" in words or "--append" in words
        names = [word for word in words if word not in ("-a", "--append")]
        if len(names) != 1:
            raise UsageError("%%writefile wants the name of one file: %%writefile [-a] FILE")
        path = os.path.expanduser(names[0])
        verb = "Appending to" if append else "Overwriting" if os.path.exists(path) else "Writing"
        with open(path, "a" if append else "w", encoding="utf-8") as file:
            file.write(body)
        print(verb, names[0])

    def _line_pip(self, line: str) -> None:
        import shlex

        self._namespace["_exit_code"] = self._spawn([sys.executable, "-m", "pip", *shlex.split(line)])
        _find_new_packages()

    def _line_cd(self, line: str) -> None:
        target = line.strip().strip("'\"") or "~"
        before = os.getcwd()
        os.chdir(self._namespace.get("_oldpwd", before) if target == "-" else os.path.expanduser(target))
        self._namespace["_oldpwd"] = before
        print(os.getcwd())

    def _line_pwd(self, _line: str) -> str:
        return os.getcwd()

    def _line_env(self, line: str) -> Any:
        name, sign, value = line.strip().partition("=" if "=" in line else " ")
        if not name:
            return dict(os.environ)
        if not sign:
            return os.environ.get(name)
        os.environ[name.strip()] = value.strip()
        print(f"env: {name.strip()}={value.strip()}")
        return None

    _line_set_env = _line_env

    # -- variables --------------------------------------------------------------------------------------------------

    def _names(self) -> List[str]:
        return sorted(name for name in self._namespace if not name.startswith("_"))

    def _line_who(self, _line: str) -> None:
        print("\t ".join(self._names()) or "Interactive namespace is empty.")

    def _line_who_ls(self, _line: str) -> List[str]:
        return self._names()

    def _line_whos(self, _line: str) -> None:
        for name in self._names():
            value = self._namespace[name]
            text = repr(value).replace("\n", " ")
            print(f"{name:<16} {type(value).__name__:<14} {text if len(text) < 80 else text[:77] + '...'}")

    def _line_reset(self, _line: str) -> None:
        for name in self._names():
            del self._namespace[name]

    def _line_pinfo(self, line: str) -> None:
        help(eval(line, self._namespace))

    def _line_run(self, line: str) -> None:
        import runpy
        import shlex

        words = shlex.split(line)
        if not words:
            raise UsageError("%run wants the name of a file")

        before, sys.argv = sys.argv, words
        try:
            self._namespace.update(runpy.run_path(os.path.expanduser(words[0]), run_name="__main__"))
        finally:
            sys.argv = before

    # -- time -------------------------------------------------------------------------------------------------------

    def _line_time(self, line: str) -> Any:
        return self._time(line)

    def _line_timeit(self, line: str) -> None:
        self._timeit(line, "")

    def _line_prun(self, line: str) -> None:
        import cProfile

        cProfile.runctx(line, self._namespace, self._namespace)

    def _time(self, source: str) -> Any:
        cpu, wall = os.times(), time.perf_counter()
        try:
            return self._run(source)
        finally:
            now, took = os.times(), time.perf_counter() - wall
            user, system = now[0] - cpu[0], now[1] - cpu[1]
            print(f"CPU times: user {_span(user)}, sys: {_span(system)}, total: {_span(user + system)}")
            print(f"Wall time: {_span(took)}")

    def _timeit(self, line: str, body: str) -> None:
        import timeit

        found = re.match(r"((?:-[nr]\s*\d+\s+|-[a-zA-Z]+\s+)*)(.*)", line, re.DOTALL)
        options, rest = found.groups() if found else ("", line)
        given = {name: int(count) for name, count in re.findall(r"-([nr])\s*(\d+)", options)}
        setup, statement = (rest.strip() or "pass", body) if body else ("pass", rest)
        timer = timeit.Timer(statement.strip("\n") or "pass", setup, globals=self._namespace)
        number = given.get("n", 0)
        if not number:
            number = 1
            while timer.timeit(number) < MEASURED and number < 10**9:
                number *= 10
        repeat = given.get("r", 7)
        runs = [took / number for took in timer.repeat(repeat, number)]
        mean = sum(runs) / len(runs)
        deviation = (sum((run - mean) ** 2 for run in runs) / len(runs)) ** 0.5
        print(f"{_span(mean)} ± {_span(deviation)} per loop (mean ± std. dev. of {repeat} runs, {number:,} loops each)")

    def _capture(self, line: str, source: str) -> None:
        import contextlib
        import io
        import types

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self._run(source)
        names = [word for word in line.split() if not word.startswith("-")]
        if names:
            self._namespace[names[0]] = types.SimpleNamespace(
                stdout=out.getvalue(), stderr=err.getvalue(), show=lambda: print(out.getvalue(), end="")
            )


def _call(magic: Magic) -> str:
    begin = f"{magic.indent}{magic.target}{NAME}"
    text = magic.text.replace("\\\n", " ") if magic.name else magic.text
    if not magic.name:
        return f"{begin}.{'getoutput' if magic.target else 'system'}({text!r})"
    return f"{begin}.run_line_magic({magic.name!r}, {text.rstrip()!r})"


def _filled(text: str, frame: Any, namespace: Dict[str, Any]) -> str:
    """`{expression}` and `$name` with their values; what has none stays as it is, for the shell."""
    names = frame.f_locals

    def value(match: Any) -> str:
        name, expression = match.groups()
        whole: str = match.group()
        if whole in ("$$", "{{", "}}"):
            return whole[0] if whole == "$$" else whole
        try:
            if name is not None:
                return str(names[name] if name in names else namespace[name])
            return str(eval(expression, namespace, names))
        except Exception:  # noqa: BLE001 - it is for the shell, then
            return whole

    return EXPRESSION.sub(value, text)


def _find_new_packages() -> None:
    """A command may have installed something."""
    import importlib
    import site

    importlib.invalidate_caches()
    folder = site.getusersitepackages()
    if os.path.isdir(folder) and folder not in sys.path:
        site.addsitedir(folder)


def _span(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
