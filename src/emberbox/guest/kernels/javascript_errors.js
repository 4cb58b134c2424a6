// Errors of user code as text: only the user's frames, the user's lines and columns.
"use strict";

const path = require("path");
const util = require("util");
const { inspect } = require("./javascript_results.js");

const VALUE_LIMIT = 10000;
const TRACEBACK_LIMIT = 60000;
const SOURCE_BUDGET = 2 << 20;
const CELL_OVERHEAD = 600;

/** The text of cells, for the lines in front of stack traces. */
const sources = new Map();
let sourceSize = 0;

function remember(cell, source, edits) {
  if (sources.has(cell)) sourceSize -= sources.get(cell).source.length + CELL_OVERHEAD;
  sources.set(cell, { source, edits });
  sourceSize += source.length + CELL_OVERHEAD;
  while (sourceSize > SOURCE_BUDGET && sources.size > 1) {
    const [oldest, { source: text }] = sources.entries().next().value;
    sources.delete(oldest);
    sourceSize -= text.length + CELL_OVERHEAD;
  }
}

const FRAME = /(<cell \d+>):(\d+):(\d+)/;

function isMachinery(line) {
  return line.includes(__dirname) || /\bnode:/.test(line);
}

/** Without the frames of this kernel: those of node below the user's, and the call of the cell after its last line. */
function userLines(text) {
  const lines = text.split("\n");
  const frames = lines.map((line) => /^\s+at /.test(line));
  const last = lines.reduce((found, line, index) => (frames[index] && FRAME.test(line) ? index : found), -1);
  return lines.filter((line, index) => {
    if (!frames[index]) return true;
    const [, cell, number] = FRAME.exec(line) || [];
    if (cell === undefined) return index < last ? !line.includes(__dirname) : !isMachinery(line);
    const { source } = sources.get(cell) || {};
    return source === undefined || Number(number) <= source.split("\n").length;
  });
}

/** A module that is missing is missed by the code, not by the kernel's file that imports it. */
function hidden(text) {
  return text.split(path.join(__dirname, "javascript.js")).join(path.join(process.cwd(), "main.js"));
}

function failureOf(error) {
  if (!(util.types.isNativeError(error) || error instanceof Error)) {
    const text = inspect(error);
    return { name: "Uncaught", value: text, traceback: `Uncaught ${text}` };
  }
  let name = "Error";
  let value = "";
  try {
    name = String(error.name);
    value = hidden(String(error.message));
  } catch {
    // Getters of the user may throw.
  }
  const text = hidden(userLines(inspect(error)).map((line) => line.replace(FRAME, original)).join("\n"));
  return { name, value, traceback: text.startsWith("<cell") ? text : excerpt(text) + text };
}

/** Columns of the code as it was before the transformation. */
function original(whole, cell, line, column) {
  const { edits = [] } = sources.get(cell) || {};
  let shift = 0;
  for (const edit of edits) {
    if (edit.line === Number(line) && edit.column < Number(column) - 1) shift += edit.added;
  }
  return `${cell}:${line}:${Math.max(1, Number(column) - shift)}`;
}

/** The line that failed, marked as node does it. */
function excerpt(text) {
  const found = FRAME.exec(text);
  const source = found && sources.get(found[1]);
  const line = source && source.source.split("\n")[Number(found[2]) - 1];
  if (line === undefined || line === null || line.length > 500) return "";
  return `${found[1]}:${found[2]}\n${line}\n${" ".repeat(Number(found[3]) - 1)}^\n\n`;
}

function causeOf(error) {
  if (!error || typeof error !== "object") return null;
  if (error.code === "ENOSPC" || error.code === "EDQUOT") return "disk";
  if (error.code === "EAGAIN" && /spawn|fork/.test(String(error.syscall))) return "processes";
  if (error.code === "ENOMEM" || /allocation failed/.test(String(error.message))) return "memory";
  if (error.code === "ERR_WORKER_INIT_FAILED") return "processes";
  return null;
}

function describe(failure) {
  return {
    name: failure.name.slice(0, 200),
    value: failure.value.slice(0, VALUE_LIMIT),
    traceback: failure.traceback.slice(0, TRACEBACK_LIMIT),
  };
}

module.exports = { causeOf, describe, failureOf, remember };
