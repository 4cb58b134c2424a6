"""Unified diffs in bounded time, whatever the two texts are.

Both come out of a sandbox, and whoever wrote them may have made them expensive: `difflib` needs minutes for 256 KiB of
short lines that repeat. Here common ends and lines that only one side has are set aside in linear time; lines that each
side has once are matched next (as `git diff --patience` does); between these the algorithm of Myers (An O(ND)
Difference Algorithm, 1986) looks for the shortest way, and gives up after a number of steps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

CONTEXT = 3
"""Lines before and after each change."""
MOST_STEPS = 1_000_000
"""Of the search for one diff: about half a second. Two texts of n lines that differ in d take about n + d² of them."""


class TooDifferent(Exception):
    """The texts differ by more than was looked for."""


class Effort:
    """Steps that are left for the diffs of one request.

    Args:
        steps: of all of them together.
    """

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Raises TooDifferent: there are not so many left."""
        self.left -= steps
        if self.left < 0:
            raise TooDifferent


def unified_diff(old: str, new: str, old_name: str, new_name: str, effort: Effort | None = None) -> str:
    """What diff(1) -u prints, empty where the texts are the same. A line ends with a newline and nothing else.

    Args:
        effort: the steps it may take; None: `MOST_STEPS`.

    Raises:
        TooDifferent: it took more.
    """
    if old == new:
        return ""
    effort = effort or Effort(MOST_STEPS)
    effort.spend(old.count("\n") + new.count("\n") + 2)
    a, b = _lines(old), _lines(new)
    blocks = _changes(a, b, effort)
    parts = [f"--- {old_name}\n+++ {new_name}\n"]
    for hunk in _hunks(blocks):
        parts.extend(_hunk(a, b, hunk))
    return "".join(parts)


def _lines(text: str) -> list[str]:
    """Not those of str.splitlines, which also ends them at form feeds and the like: no other program would."""
    lines = text.split("\n")
    last = lines.pop()
    return [f"{line}\n" for line in lines] + ([last] if last else [])


Block = tuple[int, int, int, int]
"""Lines [i, j) of the old text became lines [k, l) of the new one."""


def _changes(a: Sequence[str], b: Sequence[str], effort: Effort) -> list[Block]:
    """What differs, in order."""
    start, end_a, end_b = 0, len(a), len(b)
    while start < end_a and start < end_b and a[start] == b[start]:
        start += 1
    while end_a > start and end_b > start and a[end_a - 1] == b[end_b - 1]:
        end_a -= 1
        end_b -= 1
    in_a, in_b = set(a[start:end_a]), set(b[start:end_b])
    rows = [i for i in range(start, end_a) if a[i] in in_b]
    columns = [j for j in range(start, end_b) if b[j] in in_a]
    numbers: dict[str, int] = {}
    left = [numbers.setdefault(a[i], len(numbers)) for i in rows]
    right = [numbers.setdefault(b[j], len(numbers)) for j in columns]
    blocks: list[Block] = []
    i, j = start, start
    for row, column, length in _same(left, right, rows, columns, effort):
        if row > i or column > j:
            blocks.append((i, row, j, column))
        i, j = row + length, column + length
    if i < end_a or j < end_b:
        blocks.append((i, end_a, j, end_b))
    return blocks


def _same(
    left: Sequence[int], right: Sequence[int], rows: Sequence[int], columns: Sequence[int], effort: Effort
) -> Iterator[tuple[int, int, int]]:
    """What is the same, as position in both texts and number of lines."""
    for x, y, length in _matches(left, right, effort):
        for step in range(length):  # lines that only one side has may lie between
            yield rows[x + step], columns[y + step], 1


def _matches(a: Sequence[int], b: Sequence[int], effort: Effort) -> Iterator[tuple[int, int, int]]:
    """Runs of what is the same (position in a, position in b, length), in order."""
    x = y = 0
    for next_x, next_y in [*_anchors(a, b), (len(a), len(b))]:
        if next_x > x and next_y > y:
            for row, column, length in _shortest(a[x:next_x], b[y:next_y], effort):
                yield x + row, y + column, length
        if next_x < len(a):
            yield next_x, next_y, 1
        x, y = next_x + 1, next_y + 1


def _anchors(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """The most lines that both have once and in the same order, by their positions."""
    in_a, in_b = Counter(a), Counter(b)
    place = {line: y for y, line in enumerate(b)}
    pairs = [(x, place[line]) for x, line in enumerate(a) if in_a[line] == 1 == in_b[line]]
    # the longest rising sequence of the second positions: for each length the one that ends lowest
    lowest: list[int] = []
    ends: list[int] = []
    previous: list[int | None] = []
    for number, (_, y) in enumerate(pairs):
        at = bisect_left(lowest, y)
        previous.append(ends[at - 1] if at else None)
        lowest[at : at + 1] = [y]
        ends[at : at + 1] = [number]
    chosen: list[tuple[int, int]] = []
    last = ends[-1] if ends else None
    while last is not None:
        chosen.append(pairs[last])
        last = previous[last]
    chosen.reverse()
    return chosen


def _shortest(a: Sequence[int], b: Sequence[int], effort: Effort) -> list[tuple[int, int, int]]:
    """A longest common subsequence, as runs in order; raises TooDifferent."""
    trace = _search(a, b, effort)
    x, y = len(a), len(b)
    runs: list[tuple[int, int, int]] = []
    for distance in range(len(trace) - 1, 0, -1):
        before, k = trace[distance - 1], x - y
        at = (k + distance) // 2
        down = _goes_down(before, distance, k)
        # `before` holds the diagonals from -(distance - 1) to distance - 1, in steps of two
        before_x = before[at if down else at - 1]
        before_y = before_x - (k + 1 if down else k - 1)
        came_x, came_y = (before_x, before_y + 1) if down else (before_x + 1, before_y)
        if x > came_x:
            runs.append((came_x, came_y, x - came_x))
        x, y = before_x, before_y
    if x:
        runs.append((0, 0, x))
    runs.reverse()
    return runs


def _goes_down(before: Sequence[int], distance: int, k: int) -> bool:
    """Whether the farthest way to diagonal `k` comes from the one above it (an insertion), not from the one below."""
    if k == -distance:
        return True
    if k == distance:
        return False
    at = (k + distance) // 2
    return before[at - 1] < before[at]


def _search(a: Sequence[int], b: Sequence[int], effort: Effort) -> list[list[int]]:
    """For each distance how far one gets on each diagonal, up to the distance that reaches both ends.

    Raises:
        TooDifferent: that takes too many steps.
    """
    height, width = len(a), len(b)
    trace: list[list[int]] = []
    for distance in range(height + width + 1):
        reached: list[int] = []
        before = trace[-1] if trace else []
        steps = distance + 1
        for k in range(-distance, distance + 1, 2):
            if distance == 0:
                x = 0
            elif _goes_down(before, distance, k):
                x = before[(k + distance) // 2]
            else:
                x = before[(k + distance) // 2 - 1] + 1
            y, begun = x - k, x
            while x < height and y < width and a[x] == b[y]:
                x += 1
                y += 1
            steps += x - begun
            if steps > effort.left:  # many diagonals may have a long way in one round
                effort.spend(steps)
            reached.append(x)
            if x >= height and y >= width:
                trace.append(reached)
                return trace
        effort.spend(steps)
        trace.append(reached)
    raise AssertionError  # at a distance of height + width everything is reached


def _hunks(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Changes that are so near to each other that they share their context."""
    hunk: list[Block] = []
    for block in blocks:
        if hunk and block[0] - hunk[-1][1] > 2 * CONTEXT:
            yield hunk
            hunk = []
        hunk.append(block)
    if hunk:
        yield hunk


def _hunk(a: Sequence[str], b: Sequence[str], blocks: Sequence[Block]) -> Iterator[str]:
    before = min(CONTEXT, blocks[0][0])
    after = min(CONTEXT, len(a) - blocks[-1][1])
    start_a, start_b = blocks[0][0] - before, blocks[0][2] - before
    end_a, end_b = blocks[-1][1] + after, blocks[-1][3] + after
    yield f"@@ -{_range(start_a, end_a)} +{_range(start_b, end_b)} @@\n"
    at = start_a
    for i, j, k, end in blocks:
        yield from (_marked(" ", line) for line in a[at:i])
        yield from (_marked("-", line) for line in a[i:j])
        yield from (_marked("+", line) for line in b[k:end])
        at = j
    yield from (_marked(" ", line) for line in a[at:end_a])


def _range(start: int, end: int) -> str:
    """Of lines, as a hunk's head has it: counted from one; of none, the line before."""
    if end - start == 1:
        return f"{start + 1}"
    return f"{start + 1 if end > start else start},{end - start}"


def _marked(mark: str, line: str) -> str:
    return f"{mark}{line}" if line.endswith("\n") else f"{mark}{line}\n\\ No newline at end of file\n"
