"""What the Python restrictions catch, and what they leave alone."""

from __future__ import annotations

CAUGHT = [
    ("import subprocess as sp", ["python.subprocess"]),
    ("from os import system as s; s('x')", ["python.os-system"]),
    ("import os\ngetattr(os, 'system')('x')", ["python.os-system"]),
    ("__builtins__['eval']('1')", ["python.eval"]),
    ("__import__('os').system('x')", ["python.os-system"]),
    ("import os\nos.system('x')", ["python.os-system"]),
    ("e = eval\ne('1')", ["python.eval"]),
    ("f\"{eval('1')}\"", ["python.eval"]),
    ("import importlib\nimportlib.import_module('sub'+'process')", ["python.subprocess"]),
    ("from os import *\nsystem('x')", ["python.os-system"]),
    ("import builtins\nbuiltins.exec('1')", ["python.exec"]),
    ("map(eval, x)", ["python.eval"]),
    ("import os as o\nf=o.popen", ["python.os-system"]),
    ("import sys\nsys.modules['os'].system('x')", ["python.os-system"]),
    ("globals()['ev'+'al']('1')", ["python.eval"]),
    ("class A:\n  def f(self):\n    return eval('1')", ["python.eval"]),
    ("vars(__builtins__)['exec']('')", ["python.exec"]),
    ("import os\nos.__dict__['system']('x')", ["python.os-system"]),
    ("n='sys'+'tem'\nimport os\ngetattr(os,n)('x')", ["python.os-system"]),
    ("import os\nos.execv('a',[])", ["python.os-system"]),
    ("(eval)('1')", ["python.eval"]),
    ("getattr(__import__('o'+'s'),'metsys'[::-1])('x')", ["python.os-system"]),
]

LEFT_ALONE = [
    "executor.exec_plan()",
    "model.eval()",
    "df.eval('a+b')",
    "re.compile('eval(')",
    "x='eval(1)' # eval(1)",
    "import ast\nast.literal_eval('1')",
    "pd.eval('1')",
    "def evaluate(x): pass\nevaluate(1)",
    "import os\nos.path.join('a')\nos.environ['system']",
    "class M:\n  def eval(self): pass\n  def exec(self): self.eval()",
    "def f(eval): return eval(1)",
    "f(exec=1)",
    "import os\nos.getpid()",
    "def eval(x):\n  return x\neval(1)",
    "subprocess_count = 1",
    "platform.system()",
    "from platform import system\nsystem()",
    "cursor.execute('x')",
    "x.subprocess = 1",
    "import torch\nmodel.eval(); net.train()",
    "getattr(obj,'system')",
    "session.exec(q)",
    "exec = 5\nprint(exec)",
    "lambda eval: eval(1)",
]

VALID = [
    "await x()\nasync for y in z:\n    pass\n",
    "x = '\\d'\n",
    "def f(a, /, *, b): return a\n",
    "match x:\n    case 1: pass\n",
    "print(f'{x!r:>{w}}')\n",
    "",
    "type X = int\n",
    "def f[T](x: T) -> T:\n    return x\n",
]

BROKEN = [
    ("x = (1,\n", 1, 5, "never closed"),
    ("def f(:\n    pass", 1, 7, "invalid syntax"),
    ("a = 1\nreturn a", 2, 1, "outside function"),
    ("print('a", 1, 7, "unterminated string"),
    ("x = 1\n  y = 2", 2, 3, "indent"),
    ("a\x00b", 1, 2, "null"),
    ("x = '\ud800'", 1, 6, "surrogate"),
]
