// Random numbers in a machine that is a copy of another one.
//
// What OpenSSL draws comes from the kernel (the image has a provider for that) and differs in each copy. Left are what V8
// and Node keep in the process: the state of Math.random in each context, and numbers that were drawn ahead. Here one
// generator takes the place of V8's, in the contexts of `vm` and in worker threads too. It is seeded anew, and what was
// drawn ahead is dropped, when the agent says that this machine is a copy. Worker threads load this file by themselves.
"use strict";

const crypto = require("crypto");
const fs = require("fs");
const vm = require("vm");
const threads = require("worker_threads");
const { syncBuiltinESMExports } = require("module");

const { Atomics, Int32Array, Math, Object, Reflect, SharedArrayBuffer, process } = globalThis;
const SHARED = "emberbox:copies";
const UUIDS_AHEAD = 128; // kBatchSize of Node's lib/internal/crypto/random.js
const INTEGERS_AHEAD = 1024; // its cache of 6 KiB, 6 bytes each

/** How often this machine was found to be a copy; all threads see it. */
const copies = threads.getEnvironmentData(SHARED) || new Int32Array(new SharedArrayBuffer(4));
threads.setEnvironmentData(SHARED, copies);

let [a, b, c, d] = [0, 0, 0, 0];
let seededIn = -1;

function seed() {
  seededIn = copies[0];
  const words = new Int32Array(4);
  const fd = fs.openSync("/dev/urandom", "r");
  try {
    fs.readSync(fd, words, 0, words.byteLength, null); // up to 256 bytes come whole (random(4))
  } finally {
    fs.closeSync(fd);
  }
  [a, b, c, d] = words;
}

/** xoshiro128** of David Blackman and Sebastiano Vigna: 32 bits. */
function next() {
  const product = Math.imul(b, 5);
  const result = Math.imul((product << 7) | (product >>> 25), 9);
  const shifted = b << 9;
  c ^= a;
  d ^= b;
  b ^= c;
  a ^= d;
  c ^= shifted;
  d = (d << 11) | (d >>> 21);
  return result >>> 0;
}

/** 53 random bits, as Math.random gives. */
function random() {
  if (seededIn !== copies[0]) seed();
  return (next() * 2 ** 21 + (next() >>> 11)) * 2 ** -53;
}

/** `draw`, which has used up what it drew ahead before its first call in a copy. */
function current(draw, ahead, ...example) {
  let seen = copies[0];
  const wrapped = function (...values) {
    if (seen !== copies[0]) {
      seen = copies[0];
      for (let n = 0; n < ahead; n += 1) draw(...example);
    }
    return Reflect.apply(draw, this, values);
  };
  return Object.defineProperty(wrapped, "name", { value: draw.name });
}

crypto.randomUUID = current(crypto.randomUUID, UUIDS_AHEAD);
crypto.randomInt = current(crypto.randomInt, INTEGERS_AHEAD, 2);
const { randomUUID } = crypto;
Object.getPrototypeOf(crypto.webcrypto).randomUUID = () => randomUUID();

/** Give a context of `vm` this Math.random: V8 would seed its own from a state that copies share. */
function fresh(context) {
  vm.runInContext("Math", context).random = random;
  return context;
}

const { createContext, runInContext } = vm;
vm.createContext = (object, options) => {
  const isNew = object === undefined || typeof object !== "object" || !vm.isContext(object);
  const context = createContext(object, options);
  return isNew ? fresh(context) : context;
};

function contextOf(object, options) {
  if (options === null || typeof options !== "object") return vm.createContext(object);
  const { contextName, contextOrigin, contextCodeGeneration, microtaskMode } = options;
  const given = { name: contextName, origin: contextOrigin, codeGeneration: contextCodeGeneration, microtaskMode };
  return vm.createContext(object, given);
}

vm.runInNewContext = (code, object = {}, options = undefined) => {
  return runInContext(code, contextOf(object, options), options);
};
vm.Script.prototype.runInNewContext = function (object = {}, options = undefined) {
  return this.runInContext(contextOf(object, options), options);
};

class Worker extends threads.Worker {
  constructor(file, options = {}) {
    const execArgv = [...(options.execArgv || []), "--require", __filename];
    super(file, { ...options, execArgv });
  }
}
threads.Worker = Worker;

Math.random = Object.defineProperty(random, "name", { value: "random" });
syncBuiltinESMExports();
if (!threads.isMainThread) process.execArgv.splice(process.execArgv.indexOf("--require"), 2);

/** This machine is a copy: nothing that was drawn ahead is used any more. */
exports.reseed = () => {
  Atomics.add(copies, 0, 1);
};
