"""Filters of several hooks, one behind the other."""

from __future__ import annotations

from emberbox.hooks.contract import Hook, OutputFilter, PreToolContext, Stream
from emberbox.hooks.filters import FilterChain
from emberbox.hooks.manager import HookManager
from emberbox.models import Result


class Lines:
    """Holds back what has no line end yet, and changes each line."""

    def __init__(self, mark: str) -> None:
        self._mark, self._kept = mark, {"stdout": "", "stderr": ""}

    def feed(self, stream: Stream, text: str) -> str:
        whole = self._kept[stream] + text
        lines, dot, rest = whole.rpartition("\n")
        self._kept[stream] = rest
        return "".join(f"{self._mark}{line}\n" for line in lines.split("\n")) if dot else ""

    def idle(self, stream: Stream) -> str:
        rest, self._kept[stream] = self._kept[stream], ""
        return rest

    def finish(self, stream: Stream) -> str:
        return self.idle(stream)

    def result(self, result: Result) -> Result:
        return Result(text=f"{self._mark}{result.text}")


class Breaks(Lines):
    def feed(self, stream: Stream, text: str) -> str:
        if "x" in text:
            raise RuntimeError("cannot")
        return super().feed(stream, text)


def chain(*filters: OutputFilter) -> FilterChain:
    made = FilterChain()
    for number, one in enumerate(filters):
        made.add(f"hook-{number}", lambda one=one: one)  # type: ignore[misc]
    return made


def test_text_goes_through_every_filter_in_turn() -> None:
    both = chain(Lines("a"), Lines("b"))
    assert [both.feed("stdout", "1\n2"), both.feed("stderr", "e\n"), both.feed("stdout", "\n3")] == [
        "ba1\n",
        "bae\n",
        "ba2\n",
    ]
    assert both.idle("stdout") == "3"
    assert both.feed("stdout", "4\n5") == "ba4\n"
    assert both.finish("stdout") == "5"
    assert both.finish("stderr") == ""
    assert both.result(Result(text="r")) == Result(text="bar")


def test_after_a_failure_nothing_comes_out_and_it_is_known_whose_it_was() -> None:
    broken = chain(Lines("a"), Breaks("b"))
    assert broken.feed("stdout", "1\n") == "ba1\n"
    assert broken.feed("stdout", "x\n") == ""
    assert broken.failed == ("hook-1", "raised RuntimeError: cannot")
    assert [broken.feed("stderr", "2\n"), broken.idle("stdout"), broken.finish("stdout")] == ["", "", ""]
    assert broken.result(Result(text="r")) is None


class NoFilter(Hook):
    def output_filter(self, context: PreToolContext) -> OutputFilter | None:
        return None


class CannotMakeOne(Hook):
    def output_filter(self, context: PreToolContext) -> OutputFilter | None:
        raise OSError("no")


def test_a_hook_that_cannot_make_its_filter_lets_nothing_through() -> None:
    context = PreToolContext(code="x", language="python")
    assert HookManager([Hook(), NoFilter()]).output_filters(context) is None
    closed = HookManager([CannotMakeOne()]).output_filters(context)
    assert closed is not None
    assert closed.feed("stdout", "text\n") == ""
    assert closed.failed == ("cannot-make-one", "raised OSError: no")
