// Keeps track of timers, so that an execution that ends early leaves none behind.
"use strict";

const { promisify } = require("util");
const timers = require("timers");
const { syncBuiltinESMExports } = require("module");

const entries = new WeakMap();
const active = new Set();
const KINDS = [["setTimeout", "clearTimeout", true], ["setInterval", "clearInterval", false],
  ["setImmediate", "clearImmediate", true]];
const cancel = {};

for (const [set, clear, once] of KINDS) {
  const make = timers[set];
  const unmake = timers[clear];
  cancel[set] = unmake;
  const tracked = function (callback, ...rest) {
    if (typeof callback !== "function") return make(callback, ...rest);
    const entry = { kind: set, timer: null };
    entry.timer = make(function (...values) {
      if (once) active.delete(entry);
      return callback.apply(this, values);
    }, ...rest);
    entries.set(entry.timer, entry);
    active.add(entry);
    return entry.timer;
  };
  Object.defineProperty(tracked, "name", { value: set });
  Object.defineProperty(tracked, promisify.custom, { enumerable: true, get: () => make[promisify.custom] });
  const forgotten = function (timer) {
    if (timer !== null && typeof timer === "object") active.delete(entries.get(timer));
    return unmake(timer);
  };
  Object.defineProperty(forgotten, "name", { value: clear });
  timers[set] = globalThis[set] = tracked;
  timers[clear] = globalThis[clear] = forgotten;
}
syncBuiltinESMExports();

exports.clearAll = () => {
  for (const { kind, timer } of active) cancel[kind](timer);
  active.clear();
};
