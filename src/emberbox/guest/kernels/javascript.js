// The JavaScript kernel: a node process per context that executes cells in one lasting global scope.
//
// A cell becomes the body of an async function, so that it can await. What it declares at its top level stays in that
// function's scope, where it is as fast and as constant as in a file, and is bound to accessors of the global object,
// through which later cells reach it and may declare it anew. Where it has the name of something that comes with node
// (`Set`, `crypto`), the global object stays as it is, for modules and for this kernel: later cells get it as a parameter.
"use strict";

const { Buffer, Map, Object, Promise, Set, Symbol, process, globalThis: world } = globalThis;
const fs = require("fs");
const net = require("net");
const path = require("path");
const util = require("util");
const vm = require("vm");
const { builtinModules, createRequire, stripTypeScriptTypes } = require("module");
const { pathToFileURL } = require("url");
const { causeOf, describe, failureOf, remember } = require("./javascript_errors.js");
const { bundle, isBusywork, render } = require("./javascript_results.js");
const { reseed } = require("./javascript_random.js");
const transform = require("./javascript_transform.js");
const timers = require("./javascript_timers.js");

const CONTROL = 3;
const PREFIX = 8;
const INTERRUPTED = 130;
const UNSETTLED = 13;

// ---- the channel to the agent ---------------------------------------------------------------------------------------

const control = new net.Socket({ fd: CONTROL, readable: true, writable: true });
const pause = new Int32Array(new SharedArrayBuffer(4));

function send(header, payload = Buffer.alloc(0)) {
  const head = Buffer.from(JSON.stringify(header));
  const frame = Buffer.alloc(PREFIX);
  frame.writeUInt32BE(4 + head.length + payload.length, 0);
  frame.writeUInt32BE(head.length, 4);
  let data = Buffer.concat([frame, head, payload]);
  while (data.length) {
    try {
      data = data.subarray(fs.writeSync(CONTROL, data));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(pause, 0, 0, 1);
    }
  }
}

let incoming = Buffer.alloc(0);

function receive(data) {
  incoming = incoming.length ? Buffer.concat([incoming, data]) : data;
  while (incoming.length >= PREFIX) {
    const end = 4 + incoming.readUInt32BE(0);
    if (incoming.length < end) return;
    const head = PREFIX + incoming.readUInt32BE(4);
    const header = JSON.parse(incoming.toString("utf8", PREFIX, head));
    const payload = incoming.subarray(head, end);
    incoming = incoming.subarray(end);
    if (header.op === "execute") execute(header, payload.toString("utf8"));
    else if (header.op === "setup") setup(header);
    else if (header.op === "warm") warm(header);
    else if (header.op === "reseed") reseed();
  }
}

function setup({ cwd, env }) {
  Object.assign(process.env, env);
  if (cwd !== null) process.chdir(cwd);
}

function warm(header) {
  transform.transform("const [a] = [1]; await a; a + 1");
  render({ a: [1] });
  send({ id: header.id, ev: "ready" });
}

// ---- one execution --------------------------------------------------------------------------------------------------

/** The execution under way: {id, room, truncated, cell, pending, failure, code, restore}. */
let current = null;
let count = 0;

class ExitSignal {
  constructor(code) {
    this.code = code;
  }
}

function prepare(header) {
  const before = {};
  for (const name of Object.keys(header.env)) before[name] = process.env[name];
  Object.assign(process.env, header.env);
  const folder = process.cwd();
  if (header.cwd !== null) process.chdir(header.cwd);
  const main = path.join(process.cwd(), "main.js");
  const module = { exports: {}, filename: main, id: ".", loaded: false, children: [], paths: [] };
  const require = createRequire(main);
  require.main = module;
  define("require", require);
  define("module", module);
  define("exports", module.exports);
  define("__filename", main);
  define("__dirname", process.cwd());
  process.argv = [process.execPath, main, ...header.args];
  process.exitCode = undefined;
  renewStdin();
  return () => {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    if (header.cwd !== null) process.chdir(folder);
  };
}

function execute(header, source) {
  count += 1;
  const cell = `<cell ${count}>`;
  control.unref();
  current = {
    id: header.id, room: header.results_limit, truncated: false, cell, pending: true, failure: null, code: null,
    restore: () => {}, listeners: process.listeners("exit"),
  };
  const run = current;
  try {
    run.restore = prepare(header);
    start(run, header.typed ? withoutTypes(source) : source).then(
      () => { run.pending = false; },
      (error) => { fail(run, error); },
    );
  } catch (error) {
    fail(run, error);
  }
}

/** TypeScript as JavaScript: types become blanks, so that places stay; `enum` and the like need a rewrite. */
function withoutTypes(source) {
  if (stripTypeScriptTypes === undefined) {
    throw new Error(`node ${process.version} is too old for TypeScript: it takes 22.13 or newer`);
  }
  const { emitWarning } = process;
  process.emitWarning = () => {}; // that this is an experiment is nothing that its author could change
  try {
    return stripTypeScriptTypes(source, { mode: "strip" });
  } catch (error) {
    if (error.code !== "ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX") throw error;
    return stripTypeScriptTypes(source, { mode: "transform" });
  } finally {
    process.emitWarning = emitWarning;
  }
}

async function start(run, source) {
  remember(run.cell, source, []);
  const cell = transform.transform(source, run.cell, [...shadows.keys()]);
  remember(run.cell, source, cell.edits);
  const script = new vm.Script(cell.code, {
    filename: run.cell,
    columnOffset: -cell.prefix,
  });
  const names = { bind, importModule, importNames, meta: meta(), shadow: (name) => shadows.get(name)() };
  Object.defineProperty(world, transform.HELPER, { value: names, configurable: true, enumerable: false });
  let promise;
  try {
    promise = script.runInThisContext({ breakOnSigint: true });
  } finally {
    delete world[transform.HELPER];
    listenAgain("SIGINT");
  }
  const last = await promise;
  let value = last === undefined ? undefined : last.value;
  if (util.types.isPromise(value)) {
    // As with `node file.js`, nobody has to await the last call; but its outcome counts.
    run.pending = false;
    value = await value;
  }
  if (value !== undefined && current === run && !isBusywork(value)) publish(render(value), true);
}

/** breakOnSigint leaves the default action behind where the code has added a listener of its own. */
function listenAgain(signal) {
  const listeners = process.listeners(signal);
  if (listeners.length < 2) return;
  process.removeAllListeners(signal);
  for (const listener of listeners) process.on(signal, listener);
}

const builtin = new Set(Object.getOwnPropertyNames(world));
/** What cells have declared under the name of a builtin: name to getter. */
const shadows = new Map();

function bind(accessors) {
  for (const [name, accessor] of Object.entries(Object.getOwnPropertyDescriptors(accessors))) {
    if (builtin.has(name)) {
      shadows.set(name, accessor.get);
      continue;
    }
    Object.defineProperty(world, name, { get: accessor.get, set: accessor.set, configurable: true, enumerable: true });
  }
}

function define(name, value) {
  Object.defineProperty(world, name, { value, configurable: true, writable: true, enumerable: false });
}

function meta() {
  const file = path.join(process.cwd(), "main.js");
  return { url: pathToFileURL(file).href, filename: file, dirname: process.cwd() };
}

/** The event loop has nothing left to do, or was told to stop. */
function finish(run) {
  if (current !== run) return;
  let { failure, code } = run;
  if (failure === null && code === null && run.pending) {
    code = UNSETTLED;
    failure = { name: "Error", value: "the code awaits something that never happens", traceback: "" };
    failure.traceback = `Error: ${failure.value}`;
  }
  if (code === null) code = failure !== null ? 1 : exitCode(process.exitCode);
  runExitListeners(run, code);
  current = null;
  run.restore();
  control.ref();
  send({
    id: run.id, ev: "done", exit_code: code, error: failure && describe(failure), cause: run.cause || null,
    results_truncated: run.truncated,
  });
}

function runExitListeners(run, code) {
  for (const listener of process.listeners("exit")) {
    if (run.listeners.includes(listener)) continue;
    process.removeListener("exit", listener);
    try {
      listener.call(process, code);
    } catch (error) {
      if (!(error instanceof ExitSignal)) fs.writeSync(2, `${util.inspect(error)}\n`);
    }
  }
}

/** The execution ends with an error, or because it asked to: as in a process of its own, what is pending is dropped. */
function fail(run, error) {
  if (current !== run) return;
  if (error instanceof ExitSignal) {
    run.code = error.code;
  } else if (error && error.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED") {
    interrupted(run);
  } else {
    run.failure = failureOf(error);
    run.cause = causeOf(error);
  }
  run.pending = false;
  stopPending();
  finish(run);
}

function interrupted(run) {
  run.code = INTERRUPTED;
  run.failure = { name: "KeyboardInterrupt", value: "", traceback: "KeyboardInterrupt" };
}

function stopPending() {
  timers.clearAll();
  for (const handle of process._getActiveHandles()) {
    if (handle === control || handle === process.stdout || handle === process.stderr) continue;
    try {
      if (typeof handle.destroy === "function") handle.destroy();
      else if (typeof handle.close === "function") handle.close();
      else if (typeof handle.unref === "function") handle.unref();
    } catch {
      // It is on its way out already.
    }
  }
}

function exitCode(value) {
  const code = Number(value === undefined || value === null ? 0 : value);
  return Number.isInteger(code) ? code & 0xff : 1;
}

process.exit = process.reallyExit = (code = process.exitCode) => {
  const signal = new ExitSignal(exitCode(code));
  const run = current;
  if (run !== null) {
    // Should the code catch the signal, the execution is over all the same as soon as the stack unwinds.
    setImmediateNow(() => fail(run, signal));
  }
  throw signal;
};

const setImmediateNow = setImmediate;

process.on("uncaughtException", (error) => {
  if (process.listenerCount("uncaughtException") > 1 && !(error instanceof ExitSignal)) return;
  if (current !== null) fail(current, error);
});
process.on("SIGINT", () => {
  const run = current;
  if (run === null) return;
  interrupted(run);
  run.pending = false;
  stopPending();
  finish(run);
});
process.on("beforeExit", () => {
  if (current !== null) finish(current);
});

// ---- modules, stdin -------------------------------------------------------------------------------------------------

/** `options`: `{ with: { type: "json" } }`, also as `assert`, the older word. */
async function importModule(specifier, options = undefined) {
  const attributes = options && (options.with || options.assert);
  const target = resolve(String(specifier));
  return attributes ? import(target, { with: attributes }) : import(target);
}

async function importNames(specifier, names, attributes = undefined) {
  const module = await importModule(specifier, { with: attributes });
  for (const name of names) {
    if (!(name in module)) {
      throw new SyntaxError(`The requested module '${specifier}' does not provide an export named '${name}'`);
    }
  }
  return module;
}

function resolve(specifier) {
  if (/^\.{0,2}\//.test(specifier) || specifier === "." || specifier === "..") {
    return pathToFileURL(path.resolve(specifier)).href;
  }
  if (/^[a-z][a-z0-9+.-]+:/i.test(specifier) || builtinModules.includes(specifier)) return specifier;
  const require = createRequire(path.join(process.cwd(), "main.js"));
  try {
    return pathToFileURL(require.resolve(specifier)).href;
  } catch (error) {
    const file = moduleFile(specifier, require.resolve.paths(specifier) || []);
    if (file === null) throw error;
    return pathToFileURL(file).href;
  }
}

/** A package that exports itself to `import` only. */
function moduleFile(specifier, folders) {
  const [name, rest] = /^((?:@[^/]+\/)?[^/]+)(.*)$/.exec(specifier).slice(1);
  for (const folder of folders) {
    const manifest = path.join(folder, name, "package.json");
    if (!fs.existsSync(manifest)) continue;
    const { exports: offered, module, main } = JSON.parse(fs.readFileSync(manifest, "utf8"));
    let target = offered;
    if (target && typeof target === "object" && `.${rest}` in target) target = target[`.${rest}`];
    while (target && typeof target === "object") target = target.import || target.node || target.default;
    target = target || (rest ? `.${rest}` : module || main);
    if (typeof target === "string") return path.join(folder, name, target);
  }
  return null;
}

function renewStdin() {
  let stream = null;
  Object.defineProperty(process, "stdin", {
    configurable: true,
    enumerable: true,
    get() {
      if (stream === null) {
        stream = new fs.ReadStream(null, { fd: 0, autoClose: false });
        stream.fd = 0;
      }
      return stream;
    },
  });
}

// ---- results --------------------------------------------------------------------------------------------------------

function publish(data, main) {
  const run = current;
  if (run === null) return;
  let payload = Buffer.from(JSON.stringify(data));
  while (payload.length > run.room && Object.keys(data).length) {
    run.truncated = true;
    const sizes = Object.keys(data).sort((a, b) => JSON.stringify(data[b]).length - JSON.stringify(data[a]).length);
    delete data[sizes[0]];
    payload = Buffer.from(JSON.stringify(data));
  }
  if (!Object.keys(data).length) return;
  run.room -= payload.length;
  send({ id: run.id, ev: "result", main }, payload);
}

define("display", (...values) => {
  for (const value of values) {
    const keys = value !== null && typeof value === "object" ? Object.keys(value) : [];
    const isBundle = keys.length > 0 && keys.every((key) => /^[\w.+-]+\/[\w.+-]+$/.test(key));
    publish(isBundle ? bundle(value) : render(value), false);
  }
});

// ---- begin ----------------------------------------------------------------------------------------------------------

control.on("data", receive);
control.on("error", () => process.kill(process.pid, "SIGKILL"));
control.on("close", () => process.kill(process.pid, "SIGKILL"));
