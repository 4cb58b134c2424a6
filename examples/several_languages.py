"""Several languages in one session: they share files, and each keeps its variables.

python examples/several_languages.py                      (in this process)
python examples/several_languages.py http://127.0.0.1:8080     (on a server)
"""

from __future__ import annotations

import sys

from emberbox import Sandbox, VmExecutionError


def main(url: str | None) -> None:
    """Shell makes a file, Python computes, JavaScript reports, Rust checks."""
    with Sandbox.create(base_url=url) as sandbox:
        sandbox.run_code("seq 1 10 > numbers.txt && UNIT=apples", "bash")
        sandbox.run_code(
            "import json\n"
            "numbers = [int(line) for line in open('numbers.txt')]\n"
            "json.dump({'total': sum(numbers)}, open('total.json', 'w'))"
        )
        total = sandbox.files.read("total.json")
        print(sandbox.run_code(f"const report = {total}; report.total", "javascript").text)
        print(sandbox.run_code('echo "$(cat total.json) $UNIT"', "bash").stdout.strip())
        rust = 'fn main() { println!("rust agrees: {}", (1..=10).sum::<i32>()); }'
        print(sandbox.run_code(rust, "rust").stdout.strip())
        print(sandbox.run_code("len(numbers)").text)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
    except VmExecutionError as error:
        sys.exit(f"{error.message} {error.remediation}")
