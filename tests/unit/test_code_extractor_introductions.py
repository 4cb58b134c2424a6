"""What the words in front of a block introduce: a program that runs, its output, a change, something not to be run."""

from __future__ import annotations

import pytest

from emberbox.code_extractor import CodeBlockExtractor
from emberbox.models import CodeBlock

EXTRACTOR = CodeBlockExtractor()
PROGRAM = "values = [3, 5, 7]\ntotal = sum(values)\nprint(total)\n"

INTRODUCTIONS = """\
Here's a Python script that adds the numbers and prints the result:
Here is the code:
Sure! Here's a simple example:
Below is a small program that reads the values and displays the output:
You can run this code to see the output:
Execute this to get the output:
Run the following script to print the sum:
This script computes the total and writes the result to standard output:
Here's the corrected version:
Here is the fixed code, which no longer shows the error message:
This fixes the error:
The following code fixes the error and returns the right result:
Certainly! The program below calculates the sum and outputs it:
Let's compute it in Python:
I'll calculate this with a short script:
To get the sum, use the built-in function:
Here's how you can do it:
Here's one way to do this in Python:
A possible solution:
Solution:
The complete program:
Here is a complete example that you can copy and paste:
Here's an example of how to add the values and show the result:
Example:
For example, this adds three numbers:
Try this:
Give this a try and let me know what it prints:
The simplest approach is a call of `sum`:
Here's a more Pythonic version:
Here's an improved version without the bug:
This version handles the incorrect code path as well:
The function `sum` returns the total of a list. Here is a program that shows it:
Let me verify the result with code:
We can check the answer with a few lines of Python:
Now let's put it all together:
Putting everything together, the final script looks as follows:
Save this as `total.py` and run it:
Create a file named `total.py` with the following content:
Here's a demo that illustrates how the result is computed:
To illustrate, here is a program that prints each step's result:
The code is for educational purposes, but it is complete:
Here's a script which logs the results to the console:
Here's the Python code to solve the problem and print the answer:
The program that produces the expected output is:
Here's a one-liner style script whose output is the total:
Below you'll find the implementation:
As requested, here is the script:
In Python you would write:
Here's a quick test of the calculation:
Here's a basic implementation using a list:
I wrote a short program that tells you the total:
The answer can be computed with:
This code snippet demonstrates how to total the values and display the result:
Step 1: compute the total
First, we define the values and print their sum:
Finally, print the result:
Here's a safe way to do it that avoids the wrong result:
You don't need to install anything to run this:
Instead of adding by hand, let Python do it. Here's the program:
This renders no template, it just adds the numbers and prints the result:
"""


def one(text: str) -> CodeBlock:
    (block,) = EXTRACTOR.extract_code_blocks(text)
    return block


def runs(text: str) -> bool:
    return one(text).execution_confidence >= 0.7


def test_ordinary_introductions_hold_no_complete_program_back() -> None:
    lines = INTRODUCTIONS.splitlines()
    assert len(lines) == 60
    held = [line for line in lines if not runs(f"{line}\n\n```python\n{PROGRAM}```\n")]
    assert len(held) <= 2, held


@pytest.mark.parametrize(
    "line",
    [
        "Output:",
        "Expected output:",
        "The output is:",
        "The output will be:",
        "Sample output",
        "**Output:**",
        "Here is the output:",
        "Here's what the result looks like:",
        "This prints:",
        "It will print the following:",
        "The script prints:",
        "You should see:",
        "You will see the following output:",
        "When I run it I get this error:",
        "The resulting log:",
        "which gives:",
        "And the result of running the script:",
    ],
)
def test_what_introduces_output_holds_it_back_and_is_named(line: str) -> None:
    block = one(f"{line}\n\n```python\n{PROGRAM}```\n")
    (reason,) = [entry for entry in block.metadata["why"] if entry["rule"] == "output"]
    assert block.execution_confidence < 0.7
    assert reason["detail"].strip("*: ") in line
    assert reason["detail"]


@pytest.mark.parametrize(
    "warning",
    [
        "Note: don't run this on Python 2.",
        "Don't run pip as root.",
        "Never run untrusted code with eval.",
        "Do not run this with sudo.",
        "Avoid running Docker on the same port.",
        "You should not run it twice at the same time.",
        "Don't run this in a notebook; it is a script.",
    ],
)
def test_a_warning_about_something_else_forbids_nothing(warning: str) -> None:
    assert runs(f"Here is the solution:\n\n```python\n{PROGRAM}```\n\n{warning}\n")
    assert runs(f"{warning}\n\nHere is the solution:\n\n```python\n{PROGRAM}```\n")


@pytest.mark.parametrize(
    ("before", "code", "rule"),
    [
        (
            "The comprehension below is equivalent to:",
            "squares = []\nfor n in range(4):\n    squares.append(n)\n",
            "same-as",
        ),
        ("Change `total` to:", "def total(values):\n    return sum(values)\n", "edit"),
        ("Replace this line:", "print(1)\n", "edit"),
        ("I fixed the bug. Verified with:", "print(1)\n", "report"),
        ("In the class you need", "def pop(self):\n    return self.items.pop()\n", "no-class"),
        ("It asks for your name:", 'print(input("Name: "))\n', "interactive"),
        ("The general form:", "for item in collection:\n    process(item)\n", "undefined"),
        ("The signature:", "def solve(n: int) -> int:\n    pass\n", "stub"),
        ("In the app:", "from .models import Product\nprint(Product)\n", "project"),
        ("Read your data:", 'print(open("my_notes.txt").read())\n', "files"),
    ],
)
def test_what_cannot_run_as_it_stands_is_held_back_with_its_reason(before: str, code: str, rule: str) -> None:
    block = one(f"{before}\n\n```python\n{code}```\n")
    assert block.execution_confidence < 0.7
    assert rule in [entry["rule"] for entry in block.metadata["why"]]


@pytest.mark.parametrize(
    ("language", "code", "rule", "word"),
    [
        ("javascript", "document.title = 'x';\n", "browser", "document"),
        ("javascript", "const a = <b>hi</b>;\n", "browser", "JSX"),
        ("javascript", "test('adds', () => { expect(1).toBe(1); });\n", "test-suite", "expect"),
        ("javascript", "const sum = require('./sum');\nconsole.log(sum(1));\n", "files", "./sum"),
        ("javascript", "const app = require('express')();\napp.listen(1);\n", "project", "express"),
        ("javascript", "items.forEach((item) => console.log(item));\n", "undefined", "items"),
        ("bash", "git push origin main\n", "machine", "git push"),
        ("bash", "sudo systemctl restart nginx\n", "machine", "systemctl"),
        ("bash", "python app.py\n", "files", "app.py"),
        ("bash", "cd my-project\nls\n", "files", "my-project"),
        ("bash", 'read -p "Name: " name\necho "$name"\n', "interactive", "read"),
        ("bash", "curl http://localhost:3000/users\n", "machine", "localhost"),
        ("bash", "curl -X POST localhost:5000/todos -d 'a=1'\n", "machine", "localhost"),
        ("bash", "awk -F, '{ sum += $3 } END { print sum }' data.csv\n", "files", "data.csv"),
        ("bash", 'for f in *.jpeg; do mv -- "$f" "${f%.jpeg}.jpg"; done\n', "files", "*.jpeg"),
    ],
)
def test_reasons_name_what_is_missing(language: str, code: str, rule: str, word: str) -> None:
    block = one(f"To do that, use:\n\n```{language}\n{code}```\n")
    (reason,) = [entry for entry in block.metadata["why"] if entry["rule"] == rule]
    assert block.execution_confidence < 0.7
    assert word in reason["detail"]


@pytest.mark.parametrize(
    "text",
    [
        "Let me look at the repository:\n\n```bash\ngit log --oneline | head\n```\n",
        "I'll run the tests:\n\n```bash\npytest -q\n```\n",
        "Start with a new repository:\n\n```bash\ngit init demo && cd demo && git commit --allow-empty -m first\n```\n",
        "Count:\n\n```bash\nprintf 'a,1\\n' > data.csv\nawk -F, '{ print $2 }' data.csv\nls *.csv\n```\n",
        'Pack them:\n\n```bash\nfor f in *.log; do [ -e "$f" ] || continue; gzip "$f"; done\n```\n',
        "Which version is it?\n\n```bash\ngit --version\n```\n",
        "Use typeof for that:\n\n```js\nconsole.log(typeof window === 'undefined');\n```\n",
        "Files:\n\n```python\nopen('a.txt', 'w').write('x')\nprint(open('a.txt').read())\n```\n",
        "Run:\n\n```python\n%matplotlib inline\nprint(1)\n```\n",
        "Run:\n\n```python\n!pip install -q numpy\nimport numpy as np\nprint(np.mean([1, 2, 3]))\n```\n",
        "Run:\n\n```python\nimport asyncio\nprint(await asyncio.sleep(0, 1))\n```\n",
    ],
)
def test_what_has_all_that_it_needs_runs(text: str) -> None:
    assert runs(text), one(text).metadata["why"]


# --- blocks of one answer ---------------------------------------------------------------------------------------------


def in_order(text: str) -> list[CodeBlock]:
    return sorted(EXTRACTOR.extract_code_blocks(text), key=lambda block: block.start_pos)


def why(block: CodeBlock) -> dict[str, str]:
    return {entry["rule"]: entry.get("detail", "") for entry in block.metadata["why"]}


DEFINITION = "```python\ndef is_prime(n):\n    return n > 1 and all(n % d for d in range(2, n))\n```\n"
USE = "```python\nprint([n for n in range(9) if is_prime(n)])\n```\n"


def test_an_example_runs_with_the_function_that_it_uses() -> None:
    define, use = in_order(f"The function:\n\n{DEFINITION}\nExample usage:\n\n{USE}")
    assert "is_prime" in why(use)["uses"]
    assert use.execution_confidence >= 0.7
    assert why(define)["defines"] == "defines `is_prime`; nothing was called"


def test_what_uses_a_held_back_block_is_held_back_too() -> None:
    define, use = in_order(f"Do not run this, it is slow:\n\n{DEFINITION}\nAn example:\n\n{USE}")
    assert define.execution_confidence < 0.7
    assert use.execution_confidence < 0.7
    assert "is_prime" in why(use)["held-back"]


def test_a_stream_knows_what_earlier_blocks_defined() -> None:
    extractor = CodeBlockExtractor()
    blocks = extractor.feed(f"The function:\n\n{DEFINITION}\n")
    blocks += extractor.feed("So much for that. " * 400 + "\n")
    blocks += extractor.feed(f"\nExample usage:\n\n{USE}\n")
    assert "uses" in why(blocks[1])


def test_a_draft_gives_way_to_the_version_that_corrects_it() -> None:
    draft, final = in_order(f"Let me try:\n\n{DEFINITION}\nWait, that is slow. Corrected version:\n\n{DEFINITION}\n")
    assert "draft" in why(draft)
    assert draft.execution_confidence < 0.7 <= final.execution_confidence


def test_alternatives_are_no_drafts() -> None:
    first, second = in_order(f"Method 1:\n\n{DEFINITION}\nAlternatively, method 2:\n\n{DEFINITION}\n")
    assert "draft" not in why(first)
    assert "draft" not in why(second)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Save this as `area.py`:\n\n```python\nx = 1\n```\n", "area.py"),
        ("Save the following code in a file called area.py:\n\n```python\nx = 1\n```\n", "area.py"),
        ("```python:area.py\nx = 1\n```\n", "area.py"),
        ('```python title="src/area.py"\nx = 1\n```\n', "src/area.py"),
        ("**area.py**\n\n```python\nx = 1\n```\n", "area.py"),
        ("### `area.py`\n\n```python\nx = 1\n```\n", "area.py"),
        ("area.py\n```python\nx = 1\n```\n", "area.py"),
        ("Run it:\n\n```python\n# filename: area.py\nx = 1\n```\n", "area.py"),
        ("Create a file named `data.json`:\n\n```json\n{}\n```\n", "data.json"),
        ("```python:../area.py\nx = 1\n```\n", None),
        ("```python:/etc/area.py\nx = 1\n```\n", None),
        ("Save this as `../../area.py`:\n\n```python\nx = 1\n```\n", None),
        ("This is like area.py, but shorter:\n\n```python\nx = 1\n```\n", None),
    ],
)
def test_the_name_under_which_a_block_is_saved(text: str, name: str | None) -> None:
    assert one(text).metadata.get("file") == name


def test_a_file_of_the_answer_is_there_for_the_blocks_below() -> None:
    _, use = in_order(
        "Save this as `area.py`:\n\n```python\nprint(6 * 7)\n```\n\nThen:\n\n```bash\npython area.py\n```\n"
    )
    assert use.execution_confidence >= 0.7


def test_the_members_of_a_type_that_stands_elsewhere_are_no_program() -> None:
    program = "type Shape =\n  | { kind: 'circle'; radius: number };\nconst number = 1;\nconsole.log(number);\n"
    text = f"Run:\n\n```ts\n{program}```\n\nAnother variant:\n\n```ts\n  | {{ kind: 'hexagon'; side: number }}\n```\n"
    assert [block.execution_confidence >= 0.7 for block in in_order(text)] == [True, False]
