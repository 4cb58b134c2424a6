"""The hook that adds forgotten imports: which names get one, and which do not."""

from __future__ import annotations

from importlib import import_module

import pytest

from emberbox.hooks import _imports_python

from .test_dependency_injector import added_to, changed

# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("json.dumps({})", ["import json"]),
        ("def f():\n    return os.path.join(sys.argv[0], 'x')", ["import os", "import sys"]),
        (
            "print(np.zeros(3), pd.DataFrame())\nplt.plot([1])",
            ["import matplotlib.pyplot as plt", "import numpy as np", "import pandas as pd"],
        ),
        ("numpy.zeros(3)", ["import numpy"]),
        ("f'{math.pi:.2f}'", ["import math"]),
        ("await asyncio.sleep(1)", ["import asyncio"]),
        ("async with asyncio.Lock():\n    pass", ["import asyncio"]),
        ("time.sleep(1)\nt = time.time()", ["import time"]),
        ("random.choice(string.ascii_letters)", ["import random", "import string"]),
        # One name, two meanings: the uses tell.
        ("datetime.now()", ["from datetime import datetime"]),
        (
            "datetime(2024, 1, 1) + timedelta(days=1)",
            ["from datetime import datetime", "from datetime import timedelta"],
        ),
        ("def f(x: datetime):\n    return x", ["from datetime import datetime"]),
        ("datetime.datetime.now() - datetime.timedelta(1)", ["import datetime"]),
        ("import datetime\ntimedelta(1)", ["from datetime import timedelta"]),
        ("date.today()", ["from datetime import date"]),
        ("datetime.now(timezone.utc)", ["from datetime import datetime", "from datetime import timezone"]),
        ("pprint({})", ["from pprint import pprint"]),
        ("pprint.pprint({})", ["import pprint"]),
        # Modules in packages.
        ("urllib.request.urlopen(urllib.parse.quote('x'))", ["import urllib.parse", "import urllib.request"]),
        ("xml.etree.ElementTree.parse('x')", ["import xml.etree.ElementTree"]),
        ("ET.fromstring('<a/>')", ["import xml.etree.ElementTree as ET"]),
        ("logging.handlers.SysLogHandler(), logging.info('x')", ["import logging.handlers"]),
        # Bare names.
        ("Path('x').read_text()", ["from pathlib import Path"]),
        (
            "d = defaultdict(list)\nc = Counter()",
            ["from collections import Counter", "from collections import defaultdict"],
        ),
        (
            "@dataclass\nclass A:\n    x: List[int] = field(default_factory=list)",
            ["from dataclasses import dataclass", "from dataclasses import field", "from typing import List"],
        ),
        (
            "class A(ABC):\n    @abstractmethod\n    def f(self): ...",
            ["from abc import ABC", "from abc import abstractmethod"],
        ),
        ("class C(Enum):\n    A = auto()", ["from enum import Enum", "from enum import auto"]),
        ("@lru_cache(maxsize=None)\ndef f(x): return x", ["from functools import lru_cache"]),
        ("@cache\ndef f(x): return x", ["from functools import cache"]),
        ("list(product([1], [2]))", ["from itertools import product"]),
        ("list(chain.from_iterable(x for x in [[1]]))", ["from itertools import chain"]),
        (
            "def f(x: Optional[int]) -> Dict[str, Any]: ...",
            ["from typing import Any", "from typing import Dict", "from typing import Optional"],
        ),
        # Missing where it is used, whatever goes by that name elsewhere.
        ("def f(json):\n    return json\njson.dumps(1)", ["import json"]),
        ("def f():\n    import json\ndef g():\n    return json.dumps(1)", ["import json"]),
        ("[time for time in range(3)]\ntime.sleep(1)", ["import time"]),
        ("if True:\n    class A:\n        x = re.compile('a')", ["import re"]),
    ],
)
def test_python_gets_what_it_forgot(code: str, expected: list[str]) -> None:
    assert added_to(code, "python") == expected


@pytest.mark.parametrize(
    "code",
    [
        "",
        "print(1)",
        "import json\njson.dumps(1)",
        "import numpy as np\nnp.zeros(1)",
        "json.dumps(",
        "%matplotlib inline\nplt.plot()",
        "\ufeffjson.dumps(1)",
        "json.dumps('\0')",
        "json.dumps('\udc80')",
        # Defined, though not by an import at the top.
        "time = 5\nprint(time.real)",
        "def f(json):\n    return json.dumps(1)",
        "f = lambda os: os.getcwd()",
        "[re.x for re in []]",
        "try:\n    import json\nexcept ImportError:\n    json = None\njson.dumps(1)",
        "def f():\n    global json\n    json = 1\ndef g():\n    return json.dumps(1)",
        "global json\njson.dumps(1)",
        "for os in []:\n    os.getcwd()",
        "with open('x') as io:\n    io.StringIO()",
        "import sys\ndel sys\nsys.exit()",
        "try:\n    1/0\nexcept Exception as time:\n    pass\ntime.sleep(1)",
        "if (re := 5):\n    re.compile",
        "match 5:\n    case {'a': os}:\n        os.getcwd()",
        "class json:\n    dumps = str\njson.dumps(1)",
        "from os.path import *\njson.dumps(1)",
        "try:\n    json.x\nexcept NameError:\n    pass",
        "__file__, __name__, __builtins__",
        # Python never looks at these.
        "from __future__ import annotations\ndef f(x: Optional[int]) -> List[Path]:\n    y: Dict = {}\n",
        "from __future__ import annotations\nclass A:\n    x: Optional[int] = None",
        "def f(x: 'Optional[int]') -> 'List':\n    y: Dict[str, int] = {}\n    return y",
        "# json.dumps(1)\n'json.dumps(1)'",
        # Too many things that it may be, or not what the module has.
        "sqrt(2), sleep(1), randint(1, 2), pi, urlopen('x'), mean([1])",
        "json['x']",
        "time()",
        "print(random)",
        "string.upper(), json.get('x'), queue.append(1), copy.x, collections.append(2), warnings.append(3)",
        "datetime.now() + datetime.timedelta(1)",
        "product([1, 2])",
        "combinations(5, 2)",
        "for x in field: pass",
        "cache['x'] = auto",
        "date - 1",
        "sns.load_dataset('x'), tf.zeros(1), requests.get('x'), xml.x, urllib.x",
        "'''doc'''; json.dumps(1)",
    ],
)
def test_python_gets_nothing_else(code: str) -> None:
    assert changed(code, "python") == code


def test_every_import_in_the_tables_works() -> None:
    for name, (module, _) in _imports_python._BARE.items():
        assert hasattr(import_module(module), name), name
    inner = [module for modules in _imports_python._PACKAGES.values() for module in modules]
    for module in [*_imports_python._MODULES, *inner]:
        if not module.startswith(("numpy", "pandas", "matplotlib")):
            import_module(module)


# --- JavaScript -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("console.log(path.join('a'))", ["path"]),
        ("const f = () => fs.readFileSync('x'); f(os.EOL)", ["fs", "os"]),
        (
            "util.inspect(1) + url.parse('x') + zlib.gzipSync('x') + querystring.stringify({})",
            ["util", "url", "zlib", "querystring"],
        ),
        ("assert(1 === 1); assert.strictEqual(1, 1)", ["assert"]),
        ("http.createServer(); https.get('x'); readline.createInterface({})", ["http", "https", "readline"]),
        ("child_process.execSync('ls')", ["child_process"]),
        ("class A extends EventEmitter {}\nnew EventEmitter()", ["EventEmitter"]),
        ("const sleep = promisify(setTimeout)", ["promisify"]),
        ("crypto.createHash('md5'); crypto.randomUUID()", ["crypto"]),
        ("const { join } = path; path.sep", ["path"]),
        ("x = { fs, os: 1 }; fs.existsSync('x')", ["fs"]),
        ("path?.join('a')", ["path"]),
        # What has the name elsewhere is not what is used here.
        ("function f(path) { return path.join() }\npath.join('a')", ["path"]),
        ("files.map(path => path.length); path.join('a')", ["path"]),
        ("if (x) { const fs = 1 }\nfs.statSync('x')", ["fs"]),
        ("try {} catch (os) {}\nos.cpus()", ["os"]),
        ("path: for (;;) { path.join('a'); break path }", ["path"]),
        ("const f = function path() {}; path.join('a')", ["path"]),
        ("x.path = { path: 1, path() {} }; path.join(x.path)", ["path"]),
        ("'fs' in globalThis; globalThis.x; fs.statSync('x')", ["fs"]),
    ],
)
def test_javascript_gets_what_it_forgot(code: str, expected: list[str]) -> None:
    assert [statement.split()[1] for statement in added_to(code, "javascript")] == expected


@pytest.mark.parametrize(
    "code",
    [
        "",
        "1 + 1",
        "const path = require('path'); path.join('a')",
        "path.join(",
        "var path; path.join('a')",
        "if (x) { var path = 1 }\npath.join('a')",
        "path.join('a'); let path = 1",
        "import path from 'path'; path.join('a')",
        "import * as fs from 'fs'; fs.statSync('x')",
        "import { promises as fs } from 'fs'; fs.stat('x')",
        "const { path } = x; path.join('a')",
        "const { a: { path = 1 } } = x; path.join('a')",
        "const [path, ...os] = x; path.join('a'); os.cpus()",
        "({ path } = x); path.join('a')",
        "path = x; path.join('a')",
        "for (const path of x) path.join('a')",
        "for (path in x) {}\npath.join('a')",
        "for (let os = 0; os < 1; os++) os.cpus()",
        "function f({ path }, [os], fs = 1, ...util) { path.join(os.EOL, fs.statSync, util.inspect) }",
        "const f = path => path.join('a')",
        "(async (path) => path.join('a'))()",
        "class A { f(path) { return path.join('a') } }",
        "try {} catch ({ path }) { path.join('a') }",
        "function path() {}\npath.join('a')",
        "class EventEmitter {}\nnew EventEmitter()",
        "(class fs { f() { return fs.statSync } })",
        "with (x) { path.join('a') }",
        "typeof path !== 'undefined' && path.join('a')",
        "globalThis.fs = require('fs'); fs.statSync('x')",
        "Object.assign(globalThis, require('fs')); fs.statSync('x')",
        "// path.join('a')\n'path.join()'",
        # Not what the module has, or not its name.
        "path.length; os.toLowerCase(); fs.map(x); url.searchParams; assert.x",
        "path('a'); path[0]; console.log(fs)",
        "crypto.randomUUID(); crypto.subtle; crypto.getRandomValues(x)",
        "new URL('x'); process.exit(); Buffer.from('x'); performance.now()",
        "execSync('ls'); spawn('ls'); readFileSync('x')",
        "x.path.join('a'); this.fs.statSync('x')",
        "events.push(1); axios.get('x'); _.map([])",
    ],
)
def test_javascript_gets_nothing_else(code: str) -> None:
    assert changed(code, "javascript") == code


# --- Rust -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "fn f() { let m: HashMap<u8, HashSet<u8>> = HashMap::new(); }",
            ["collections::HashMap", "collections::HashSet"],
        ),
        ("fn f(x: &Rc<RefCell<u8>>, y: Cell<u8>) {}", ["rc::Rc", "cell::RefCell", "cell::Cell"]),
        ("fn f() { let x = Arc::new(Mutex::new(1)); thread::spawn(|| {}); }", ["sync::Arc", "sync::Mutex", "thread"]),
        ("fn f() { let (a, b) = mpsc::channel::<u8>(); }", ["sync::mpsc"]),
        ("fn f(x: Duration) { Instant::now(); }", ["time::Duration", "time::Instant"]),
        ("struct A; impl fmt::Display for A {}", ["fmt"]),
        ('fn main() { println!("{:?}", env::args()); }', ["env"]),
        ("fn main() { let s = vec![BTreeMap::<u8, u8>::new()]; }", ["collections::BTreeMap"]),
        ("use std::io;\nfn f() { io::stdout().flush().unwrap(); }", ["io::Write"]),
        ('use std::fs::File;\nfn f(mut x: File) { x.write_all(b"a"); }', ["io::Write"]),
        ("fn f() { for l in std::io::stdin().lock().lines() {} }", ["io::BufRead"]),
        ("use std::io;\nfn f() { let stdin = io::stdin(); let l = stdin.lock().lines(); }", ["io::BufRead"]),
        ("use std::io::BufReader;\nfn f() { let r = BufReader::new(x); r.lines(); }", ["io::BufRead"]),
        ("fn f() { std::io::stdin().read_to_string(&mut s); }", ["io::Read"]),
        ("fn f(a: u8) -> Ordering { match a.cmp(&1) { Ordering::Less => x, _ => y } }", ["cmp::Ordering"]),
        ("fn f(p: &Path) -> PathBuf { p.into() }", ["path::Path", "path::PathBuf"]),
        ("impl FromStr for A {}", ["str::FromStr"]),
        ('fn f() { let x = i32::from_str("1"); }', ["str::FromStr"]),
        ("struct A<T>(PhantomData<T>); fn f(x: Cow<'_, str>) {}", ["marker::PhantomData", "borrow::Cow"]),
        ("fn f() -> Result<(), Box<dyn Error + Send>> { process::exit(1) }", ["error::Error", "process"]),
        ("fn f() { use std::rc::Rc; }\nfn g() { Rc::new(1); }", ["rc::Rc"]),
        ("fn f<Rc>(x: Rc) {}\nfn g() { Rc::new(1); }", ["rc::Rc"]),
        ("use std::collections::*;\nfn f(x: HashMap<u8, Rc<u8>>) {}", ["rc::Rc"]),
        ("enum E { Path, Duration(u8) }\nfn f(x: &Path) {}", ["path::Path"]),
    ],
)
def test_rust_gets_what_it_forgot(code: str, expected: list[str]) -> None:
    assert added_to(code, "rust") == [f"use std::{path}" for path in expected]


@pytest.mark.parametrize(
    "code",
    [
        "",
        "fn main() {}",
        "fn main() { HashMap::new( }",
        "use std::collections::HashMap;\nfn f(x: HashMap<u8, u8>) {}",
        "use std::{collections::{self, HashMap}, rc::Rc};\nfn f(x: HashMap<u8, Rc<u8>>) { collections::x(); }",
        "use hashbrown::HashMap as Map;\nuse x as HashMap;\nfn f(x: HashMap<u8, u8>) {}",
        "fn f() { let m: std::collections::HashMap<u8, u8> = std::collections::HashMap::new(); }",
        "fn f() { use std::rc::Rc; Rc::new(1); }",
        "struct Duration; enum Path {}\nfn f(a: Duration, b: Path) {}",
        "trait FromStr {} type Rc = u8; mod fmt;\nfn f(c: Rc) { fmt::x(); }\nimpl FromStr for A {}",
        "struct Cell<Path>(Path);\nimpl<Path> Cell<Path> { fn f(x: Path) -> Cell<Path> { x } }",
        "mod a { fn f(x: HashMap<u8, u8>) { io::stdout().flush(); } }",
        "#[cfg(test)]\nmod tests { use super::*; fn f() { Rc::new(1); } }",
        "use shapes::*;\nfn f() { HashMap::new(); }",
        "macro_rules! m { () => { struct HashMap; } }\nfn f() { HashMap::new(); }",
        "m! { use x::HashMap; }\nfn f() { HashMap::new(); }",
        "extern crate x as fmt;\nfn f() { fmt::x(); }",
        "use std::io::{self, Write as _};\nfn f() { io::stdout().flush(); }",
        "use std::io::prelude::*;\nfn f() { std::io::stdout().flush(); }",
        "struct A; impl A { fn flush(&self) {} }\nfn f(a: A) { a.flush(); }",
        'fn f() { "a".lines(); std::io::stdin().read_line(&mut s); std::io::stdin().lines(); }',
        "use std::sync::atomic::AtomicU8;\nfn f(x: AtomicU8) { x.load(Ordering::Relaxed); }",
        "use std::sync::atomic::AtomicU8;\nfn f(x: AtomicU8, order: Ordering) {}",
        "fn f(x: Cell) { Cell::Alive; }",
        "fn f(x: Display, y: Write) -> Result<(), Error> {}",
        '#[derive(Debug)]\nstruct A { path: u8 }\nfn f(fs: A) { fs.path; env!("X"); self::io::x(); crate::fmt::y(); }',
        '// HashMap::new()\nfn f() { "HashMap::new()"; }',
    ],
)
def test_rust_gets_nothing_else(code: str) -> None:
    assert changed(code, "rust") == code
