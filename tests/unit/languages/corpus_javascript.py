"""What the JavaScript restrictions catch, and what they leave alone."""

from __future__ import annotations

CAUGHT = [
    ("const {exec:e}=require('child_'+'process')", ["javascript.child-process"]),
    ("import cp from 'node:child_process'", ["javascript.child-process"]),
    ("globalThis['ev'+'al']('x')", ["javascript.eval"]),
    ("Function('x')()", ["javascript.new-function"]),
    ("new Function('a','b')", ["javascript.new-function"]),
    ("(0,eval)('1')", ["javascript.eval"]),
    ("window.eval('x')", ["javascript.eval"]),
    ("const fs=require('fs')", ["javascript.fs"]),
    ("const m=await import('fs')", ["javascript.fs"]),
    ("const e=eval; e('x')", ["javascript.eval"]),
    ("const r=require; r('child_process')", ["javascript.child-process"]),
    ("process.mainModule.require('child_process')", ["javascript.child-process"]),
    (
        "import {createRequire as c} from 'module'; const r=c(import.meta.url); r('child_process')",
        ["javascript.child-process"],
    ),
    ("(()=>{}).constructor('x')()", ["javascript.new-function"]),
    ("[]['constructor']['constructor']('x')", ["javascript.new-function"]),
    ("setTimeout('alert(1)',1)", ["javascript.eval"]),
    ("require(`fs/promises`)", ["javascript.fs"]),
    ("['1'].map(eval)", ["javascript.eval"]),
    ("const {eval: z}=globalThis; z('x')", ["javascript.eval"]),
    ("eval.call(null,'x')", ["javascript.eval"]),
    ("eval?.('x')", ["javascript.eval"]),
    ("globalThis['\\x65val']('x')", ["javascript.eval"]),
]

LEFT_ALONE = [
    "re.exec(s)",
    "regex.exec(s)",
    "function f(){}",
    "model.eval()",
    "const evaluate=1; evaluate",
    "'eval(1)' // eval(1)",
    "x instanceof Function",
    "typeof eval",
    "const {exec}=obj",
    "import x from 'fs-extra'",
    "require('path')",
    "class A{ eval(){} }",
    "setTimeout(()=>1,5)",
    "obj.constructor('x')",
    "this.constructor(x)",
    "Function.prototype.call",
    "let functionName='Function'",
    "const o={eval:1}",
    "page.evaluate(()=>1)",
]

VALID = [
    "await f();\nimport x from 'y';\n",
    "const a = b?.c ?? d;\n",
    "class A { #x = 1; static { } }\n",
    "for await (const x of y) {}\n",
    "#!/usr/bin/env node\n1\n",
    "",
]

BROKEN = [
    ("const x = {a: 1", 1, 11, "never closed"),
    ("let 1x = 3;", 1, 5, "unexpected"),
    ("f(1);\nx = 'abc", 2, 5, "unterminated string"),
]
