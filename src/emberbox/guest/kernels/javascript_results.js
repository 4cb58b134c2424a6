// Values to results by MIME type.
"use strict";

const EventEmitter = require("events");
const util = require("util");

const { Buffer } = globalThis;
const TEXT_LIMIT = 200000;
const JSON_LIMIT = 1 << 20;

function inspect(value) {
  try {
    const text = util.inspect(value);
    return text.length <= TEXT_LIMIT ? text : `${text.slice(0, TEXT_LIMIT)}... (${text.length} characters in all)`;
  } catch (error) {
    return `[${typeof value} that cannot be inspected]`;
  }
}

/** Values of calls that are made for their effect, as `server.listen()` and `setTimeout()`: nobody wants to see them. */
function isBusywork(value) {
  const name = value !== null && typeof value === "object" && value.constructor && value.constructor.name;
  return value instanceof EventEmitter || name === "Timeout" || name === "Immediate";
}

function isPlain(value, depth = 0) {
  if (value === null || typeof value === "string" || typeof value === "boolean") return true;
  if (typeof value === "number") return Number.isFinite(value);
  if (typeof value !== "object" || depth > 50) return false;
  const prototype = Object.getPrototypeOf(value);
  if (Array.isArray(value)) return value.every((item) => isPlain(item, depth + 1));
  return (prototype === Object.prototype || prototype === null)
    && Object.values(value).every((item) => isPlain(item, depth + 1));
}

function render(value) {
  const data = { "text/plain": inspect(value) };
  try {
    const method = value !== null && typeof value === "object" && value[Symbol.for("Jupyter.display")];
    if (typeof method === "function") Object.assign(data, bundle(method.call(value)));
    if (value !== null && typeof value === "object" && isPlain(value)) {
      const text = JSON.stringify(value);
      if (text.length <= JSON_LIMIT) data["application/json"] = JSON.parse(text);
    }
  } catch {
    // Getters of the user may throw; text is enough then.
  }
  return data;
}

function bundle(offered) {
  const data = {};
  for (const [mime, value] of Object.entries(offered)) {
    if (value instanceof Uint8Array) data[mime] = Buffer.from(value).toString("base64");
    else if (typeof value === "string" || /json$/.test(mime)) data[mime] = value;
  }
  return data;
}

module.exports = { bundle, inspect, isBusywork, render };
