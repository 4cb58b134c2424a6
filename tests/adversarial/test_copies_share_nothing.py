"""Copies of a sandbox never draw the same: numbers, names, keys, in every language, thread and background program."""

from __future__ import annotations

from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from emberbox import Engine, Sandbox, Settings, load_settings
from emberbox.engine import ExecuteRequest

BOTH_GVISORS = True

COPIES = 12
DRAWS = 600
"""Of each copy. What two of them share shows in the first ones; many copies find a seed of few bits."""

# A draw is 8 bytes: a part of random bytes, or the first bytes of a digest. `draw` appends them to the file `drawn`.
PYTHON = """
import concurrent.futures, hashlib, os, random, secrets, ssl, struct, tempfile, threading, uuid
import numpy

pool = concurrent.futures.ThreadPoolExecutor(4)

def short(value):
    if isinstance(value, float):
        return struct.pack("<d", value)
    return value if isinstance(value, bytes) else hashlib.sha256(str(value).encode()).digest()[:8]

SOURCES = {
    "ssl": (lambda: ssl.RAND_bytes(64), 3),
    "ssl in a thread": (lambda: pool.submit(ssl.RAND_bytes, 8).result(), 0.2),
    "urandom": (lambda: os.urandom(32), 1),
    "secrets": (lambda: secrets.token_bytes(8), 1),
    "random": (random.random, 6),
    "random in a thread": (lambda: pool.submit(random.random).result(), 0.2),
    "SystemRandom": (random.SystemRandom().random, 1),
    "numpy": (numpy.random.random, 4),
    "a new numpy generator": (lambda: numpy.random.default_rng().random(), 0.1),
    "uuid1": (uuid.uuid1, 0.2),
    "uuid4": (uuid.uuid4, 0.2),
    "tempfile": (lambda: next(tempfile._get_candidate_names()), 0.1),
}

def draw(share):
    with open("drawn", "ab") as file:
        for source, weight in SOURCES.values():
            file.write(b"".join(short(source()) for _ in range(max(1, int(share * weight)))))

draw(1)
"""

JAVASCRIPT = """
const crypto = require("crypto"), fs = require("fs"), vm = require("vm");
const { Worker } = require("worker_threads");
const { promisify } = require("util");
const subtle = crypto.webcrypto.subtle;
const short = (value) => typeof value === "number" ? Buffer.from(new Float64Array([value]).buffer)
  : crypto.createHash("sha256").update(value).digest().subarray(0, 8);
const pem = (key) => key.export({ type: "pkcs8", format: "der" });
const raw = async (key) => Buffer.from(await subtle.exportKey("raw", key));
const ecdh = () => { const one = crypto.createECDH("prime256v1"); one.generateKeys(); return one.getPrivateKey(); };
const sandbox = vm.createContext({});
const worker = new Worker(`
  const { parentPort } = require("worker_threads"), crypto = require("crypto");
  parentPort.on("message", () => parentPort.postMessage([Math.random(), crypto.randomUUID(),
    crypto.randomBytes(16).toString("hex")]));`, { eval: true });
const fromWorker = () => new Promise((done) => { worker.once("message", done); worker.postMessage(1); });
const sources = [
  [() => Math.random(), 400],
  [() => vm.runInContext("Math.random()", sandbox), 20],
  [() => vm.runInNewContext("Math.random()"), 1],
  [() => crypto.randomBytes(16), 300],
  [() => promisify(crypto.randomBytes)(16), 40],
  [() => crypto.randomFillSync(Buffer.alloc(16)), 100],
  [() => crypto.getRandomValues ? Buffer.from(crypto.getRandomValues(new Uint8Array(16))) : crypto.randomBytes(16), 50],
  [() => crypto.randomUUID(), 100],
  [() => crypto.webcrypto.randomUUID(), 50],
  [() => crypto.randomInt(2 ** 48 - 1), 100],
  [() => pem(crypto.generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey), 5],
  [() => pem(crypto.generateKeyPairSync("ed25519").privateKey), 5],
  [async () => pem((await promisify(crypto.generateKeyPair)("ed25519")).privateKey), 2],
  [() => crypto.generateKeySync("aes", { length: 256 }).export(), 5],
  [ecdh, 5],
  [() => Buffer.from(crypto.generatePrimeSync(64)), 1],
  [async () => raw(await subtle.generateKey({ name: "AES-GCM", length: 256 }, true, ["encrypt"])), 3],
];
globalThis.draw = async (share) => {
  const drawn = [];
  worker.ref();
  for (const [source, weight] of sources) {
    for (let n = 0; n < share * weight; n += 1) drawn.push(short(await source()));
  }
  for (let n = 0; n < share * 2; n += 1) for (const value of await fromWorker()) drawn.push(short(value));
  worker.unref();
  fs.appendFileSync("drawn", Buffer.concat(drawn));
};
await draw(1);
"""

BASH = """
set -e
openssl rand 512 >> drawn
key="$(openssl ecparam -name prime256v1 -genkey -noout | sha256sum | head -c 16)"
for n in 1 2 3 4; do key+="$(printf '%08x%08x' $SRANDOM $SRANDOM)"; done
printf %s "${key^^}" | basenc --base16 -d >> drawn
"""

RUST = """
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
fn main() {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open("drawn").unwrap();
    for _ in 0..40 {
        let number = std::thread::spawn(|| RandomState::new().build_hasher().finish()).join().unwrap();
        file.write_all(&number.to_le_bytes()).unwrap();
    }
}
"""

PROGRAM = """
import os, random, ssl, sys, tempfile, time
draw = lambda: f"{random.random()!r} {ssl.RAND_bytes(16).hex()} {next(tempfile._get_candidate_names())}"
draw()
print("ready", flush=True)
for _ in sys.stdin:
    print(draw(), flush=True)
"""
"""A program of the user's in the background. It draws ahead of the copy, and again when a line comes."""


@pytest.fixture
def free(settings: Settings) -> Settings:
    """Settings without policy: the code here writes files from JavaScript."""
    return load_settings(vm_execution={"code_validation": False})


def _repeated(drawn: list[bytes]) -> int:
    """How many of these values of 8 bytes are there more than once."""
    numbers = array("Q", b"".join(drawn))
    return len(numbers) - len(set(numbers))


def _run(sandbox: Sandbox, code: str, language: str = "python") -> str:
    run = sandbox.run_code(code, language, timeout=60)
    assert run.exit_code == 0, run
    return run.stdout


def test_all_draws_of_many_copies_are_different(nothing_left: None, free: Settings) -> None:
    with Sandbox.create(settings=free) as sandbox:
        _run(sandbox, PYTHON)
        _run(sandbox, JAVASCRIPT, "javascript")
        for code, language in ((BASH, "bash"), (RUST, "rust")):
            _run(sandbox, code, language)
        drawn = [sandbox.files.read("drawn", format="bytes")]
        point = sandbox.snapshot()

        def draw(_number: int) -> bytes:
            copy = sandbox.branch(point)
            copy.files.remove("drawn")
            _run(copy, "draw(20)")
            _run(copy, "await draw(0.2)", "javascript")
            for code, language in ((BASH, "bash"), (RUST, "rust")):
                _run(copy, code, language)
            data = copy.files.read("drawn", format="bytes")
            copy.kill()
            return data

        with ThreadPoolExecutor(2) as two:
            drawn += two.map(draw, range(COPIES))
    assert min(map(len, drawn[1:])) >= 8 * DRAWS
    assert _repeated(drawn) == 0


def test_every_way_to_a_copy_draws_anew(nothing_left: None, free: Settings) -> None:
    """After a rollback, in a branch, in a fork, and in a sandbox made from a kept snapshot."""
    with Sandbox.create(settings=free) as sandbox:
        _run(sandbox, PYTHON)
        _run(sandbox, JAVASCRIPT, "javascript")
        _run(sandbox, "rm drawn", "bash")
        point = sandbox.snapshot(keep=True)
        drawn = []

        def draw(copy: Sandbox) -> None:
            _run(copy, "draw(20)")
            _run(copy, "await draw(0.2)", "javascript")
            drawn.append(copy.files.read("drawn", format="bytes"))

        draw(sandbox)
        sandbox.rollback(point)
        draw(sandbox)
        sandbox.rollback(point)
        copies = [sandbox.branch(point), *sandbox.fork(1)]
        for copy in copies:
            draw(copy)
            copy.kill()
        with Sandbox.create(snapshot=point.snapshot_id, settings=free) as kept:
            draw(kept)
        sandbox.delete_snapshot(point)
    assert len(drawn) == 5
    assert _repeated(drawn) == 0


def test_a_program_in_the_background_draws_anew(nothing_left: None, free: Settings) -> None:
    with Sandbox.create("minimal", settings=free) as sandbox:
        sandbox.files.write("program.py", PROGRAM)
        _run(sandbox, "mkfifo in; touch out; (python3 program.py < in > out &) ; exec 9> in", "bash")
        wait = 'until [ "$(wc -l < out)" = %d ]; do sleep 0.01; done; tail -n 1 out'
        assert _run(sandbox, wait % 1, "bash") == "ready\n"
        copies = [sandbox, *sandbox.fork(3)]
        drawn = [value for copy in copies for value in _run(copy, f"echo >&9; {wait % 2}", "bash").split()]
        for copy in copies[1:]:
            copy.kill()
    assert len(drawn) == 12
    assert len(set(drawn)) == 12, drawn


async def test_a_template_whose_interpreters_are_warm_gives_no_keys_twice(
    nothing_left: None, free: Settings, tmp_path: Path
) -> None:
    free.snapshot_dir = tmp_path
    async with Engine(free) as engine:
        found = await engine.image()
        warm = {"warm": ["python", "javascript", "bash"], "warmup": "import ssl, tempfile, uuid; ssl.RAND_bytes(8)"}
        image = replace(found, template=found.template.model_copy(update=warm))
        manager = await engine._open()
        await manager.warm(image, image.limits)
        drawn = []
        for _ in range(2):
            session = await manager.create(image, image.limits)
            for code, language in ((PYTHON, "python"), (JAVASCRIPT, "javascript")):
                run = await engine.execute(ExecuteRequest(session, language, code))
                assert run.exit_code == 0, run
            drawn.append(await session.files.read_bytes("drawn"))
            await session.kill()
    assert _repeated(drawn) == 0
