// Randomness for a machine that is a copy of another one.
//
// V8 seeds Math.random once per context, and OpenSSL seeds its generator once per process: two copies of a process would
// draw the same numbers. From the copy on, both come from the system's own generator, which differs in every machine.
"use strict";

const crypto = require("crypto");
const fs = require("fs");

const { ArrayBuffer, Buffer, DataView, Math, Object, process, Uint8Array } = globalThis;
const POOL = 4096;
const FRACTION = 2 ** -53;

let pool = Buffer.alloc(0);

/** The next bytes of /dev/urandom; read in larger pieces, because each read is a system call. */
function take(size) {
  if (size > POOL) return read(size);
  if (pool.length < size) pool = read(POOL);
  const bytes = Buffer.from(pool.subarray(0, size));
  pool = pool.subarray(size);
  return bytes;
}

function read(size) {
  const bytes = Buffer.alloc(size);
  const fd = fs.openSync("/dev/urandom", "r");
  try {
    let filled = 0;
    while (filled < size) filled += fs.readSync(fd, bytes, filled, size - filled, null);
  } finally {
    fs.closeSync(fd);
  }
  return bytes;
}

function random() {
  const bytes = take(8);
  return (bytes.readUInt32LE(0) * 2 ** 21 + (bytes.readUInt32LE(4) >>> 11)) * FRACTION;
}

function bytesOf(view) {
  if (view instanceof ArrayBuffer) return new Uint8Array(view);
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function later(callback, compute) {
  let value;
  try {
    value = compute();
  } catch (error) {
    process.nextTick(callback, error);
    return;
  }
  process.nextTick(callback, null, value);
}

function randomBytes(size, callback) {
  if (callback === undefined) return take(size);
  return later(callback, () => take(size));
}

function fill(view, offset = 0, size = undefined) {
  const bytes = bytesOf(view);
  const end = size === undefined ? bytes.length : offset + size;
  bytes.set(take(end - offset), offset);
  return view;
}

function randomFill(view, ...rest) {
  const callback = rest.pop();
  return later(callback, () => fill(view, ...rest));
}

function randomInt(...bounds) {
  const callback = typeof bounds[bounds.length - 1] === "function" ? bounds.pop() : undefined;
  const [low, high] = bounds.length > 1 ? bounds : [0, bounds[0]];
  const compute = () => low + Math.floor(random() * (high - low));
  return callback === undefined ? compute() : later(callback, compute);
}

function randomUUID() {
  const bytes = take(16);
  const view = new DataView(bytes.buffer, bytes.byteOffset, 16);
  view.setUint8(6, (view.getUint8(6) & 0x0f) | 0x40);
  view.setUint8(8, (view.getUint8(8) & 0x3f) | 0x80);
  const hex = bytes.toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** Draw everything from the system from now on. */
function reseed() {
  pool = Buffer.alloc(0);
  Math.random = random;
  Object.assign(crypto, {
    randomBytes, pseudoRandomBytes: randomBytes, randomFillSync: fill, randomFill, randomInt, randomUUID,
  });
  const getRandomValues = (view) => fill(view);
  for (const target of [crypto.webcrypto, globalThis.crypto]) {
    if (target === undefined) continue;
    Object.defineProperty(target, "getRandomValues", { value: getRandomValues, configurable: true, writable: true });
    Object.defineProperty(target, "randomUUID", { value: randomUUID, configurable: true, writable: true });
  }
}

module.exports = { reseed };
