"""An agent with a role file: code of an answer is run at once; with a question as argument, the role's model is asked.

python examples/agent.py
python examples/agent.py "How many primes are there below one million?"     (needs the model of examples/role.json)
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from emberbox import VmExecutionError
from emberbox.agent import CommandInput, CommandType, Role, TerraphimAgent

ANSWER = """I'll run this to see how fast the sum of the digits of 2**n grows:

```python
for n in (10, 100, 1000):
    print(n, sum(map(int, str(2**n))))
```
"""


async def main(question: str | None) -> int:
    """Ask the question, or run the answer above; the exit code."""
    role = Role.load(Path(__file__).with_name("role.json"))
    if question is None:
        # the code of an answer needs no model; with one, the result would be told to it
        role = role.model_copy(update={"llm_provider": None, "llm_model": None})
        command = CommandInput(command=CommandType.EXECUTE, text=ANSWER)
    else:
        command = CommandInput(command=CommandType.CHAT, text=question)
    try:
        async with TerraphimAgent(role) as agent:
            output = await agent.process_command(command)
    except VmExecutionError as error:
        print(f"{error.message} {error.remediation}", file=sys.stderr)
        return 1
    print(output.text)
    for refused in output.errors:
        print(f"not run: {refused.message} {refused.remediation}", file=sys.stderr)
    return 0 if output.succeeded else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None)))
