// Turns a cell into the body of an async function, by edits in place that keep every line where it is.
"use strict";

const vm = require("vm");
const { createRequire } = require("module");

const HELPER = "__kernel__";
const ACORN_FOLDERS = ["/node_modules/", "/usr/share/nodejs/", "/usr/lib/nodejs/", "/usr/local/lib/node_modules/"];

let acorn = null;

function loadAcorn() {
  if (acorn !== null) return acorn;
  for (const find of [require, ...ACORN_FOLDERS.map((folder) => createRequire(folder))]) {
    try {
      acorn = find("acorn");
      return acorn;
    } catch {
      // The next place, then.
    }
  }
  throw new Error("this machine has no acorn (Debian package node-acorn), which JavaScript needs");
}

const OPTIONS = {
  ecmaVersion: "latest",
  locations: true,
  allowHashBang: true,
  allowAwaitOutsideFunction: true,
  allowReturnOutsideFunction: true,
  allowImportExportEverywhere: true,
};

/** An identifier as long as `import`, which may be called with any number of arguments. */
const IMPORT = "imp0rt";
const ATTRIBUTES = /(\b(?:from|import)\s*(?:"[^"\n]*"|'[^'\n]*'))(\s*\b(?:with|assert)\s*(\{[^{}]*\}))/g;

/** The tree, and by the end of its specifier the attributes of each import that has some. */
function parse(source, name) {
  const { parse: parseWith } = loadAcorn();
  const attributes = new Map();
  const options = [{ ...OPTIONS, sourceType: "script" }, { ...OPTIONS, sourceType: "module" }];
  try {
    return { program: parseWith(source, options[0]), attributes };
  } catch (failure) {
    // acorn may be older than import attributes: it gets the text without them, in which every place is the same.
    const older = source
      .replace(ATTRIBUTES, (whole, head, tail, braces, start) => {
        attributes.set(start + head.length, { braces, end: start + whole.length });
        return head + tail.replace(/[^\n]/g, " ");
      })
      .replace(/\bimport(?=\s*\()/g, IMPORT);
    for (const [text, how] of [[source, options[1]], [older, options[0]], [older, options[1]]]) {
      try {
        return { program: parseWith(text, how), attributes };
      } catch {
        // The next way, then.
      }
    }
    throw syntaxError(source, name, failure);
  }
}

/** node's own words where it agrees that this is wrong; its parser may know more than acorn. */
function syntaxError(source, name, failure) {
  try {
    new vm.Script(`(async()=>{\n${source}\n})`, { filename: name, lineOffset: -1 });
  } catch (error) {
    if (failure.loc === undefined || /^\S+ \d+>:\d+\n/.test(String(error.stack))) return error;
  }
  const error = new SyntaxError(failure.message.replace(/ \(\d+:\d+\)$/, ""));
  const { line, column } = failure.loc || { line: 1, column: 0 };
  const text = source.split("\n")[line - 1] || "";
  error.stack = `${name}:${line}\n${text}\n${" ".repeat(column)}^\n\nSyntaxError: ${error.message}`;
  return error;
}

function patternNames(pattern, names) {
  if (pattern === null) return;
  if (pattern.type === "Identifier") names.add(pattern.name);
  else if (pattern.type === "ObjectPattern") pattern.properties.forEach((p) => patternNames(p.value || p.argument, names));
  else if (pattern.type === "ArrayPattern") pattern.elements.forEach((element) => patternNames(element, names));
  else if (pattern.type === "AssignmentPattern") patternNames(pattern.left, names);
  else if (pattern.type === "RestElement") patternNames(pattern.argument, names);
}

/** Visit every node; not what is below those for which `visit` returns false. */
function walk(node, visit) {
  if (node === null || typeof node !== "object") return;
  if (Array.isArray(node)) {
    node.forEach((child) => walk(child, visit));
    return;
  }
  if (typeof node.type !== "string" || visit(node) === false) return;
  for (const key of Object.keys(node)) {
    if (key !== "loc" && key !== "type") walk(node[key], visit);
  }
}

class Cell {
  constructor(source, attributes) {
    this.source = source;
    this.attributes = attributes;
    this.changes = [];
    this.names = new Set();
    this.constants = new Set();
  }

  replace(node, text) {
    // Lines that are taken away come back at the end, so that what follows stays where it was.
    const lines = this.source.slice(node.start, node.end).split("\n").length - text.split("\n").length;
    this.changes.push({ start: node.start, end: node.end, text: text + "\n".repeat(Math.max(0, lines)) });
  }

  insert(position, text) {
    this.changes.push({ start: position, end: position, text });
  }

  declaration(node) {
    if (node.type === "VariableDeclaration") {
      for (const { id } of node.declarations) patternNames(id, this.names);
    } else if ((node.type === "FunctionDeclaration" || node.type === "ClassDeclaration") && node.id) {
      this.names.add(node.id.name);
    }
  }

  statement(node) {
    if (node.type === "ImportDeclaration") this.importDeclaration(node);
    else if (node.type.startsWith("Export")) this.exportDeclaration(node);
    else this.declaration(node);
  }

  importDeclaration(node) {
    const wanted = [];
    const patterns = [];
    let space = null;
    for (const specifier of node.specifiers) {
      const local = specifier.local.name;
      this.names.add(local);
      if (specifier.type === "ImportNamespaceSpecifier") {
        space = local;
        continue;
      }
      const { name = null, value = null } = specifier.imported || { name: "default" };
      const imported = JSON.stringify(name === null ? value : name);
      wanted.push(imported);
      patterns.push(`${imported}:${local}`);
    }
    const given = node.attributes && node.attributes.map(({ key, value }) => `${key.raw || key.name}:${value.raw}`);
    const { braces, end } = this.attributes.get(node.source.end) || { braces: null, end: 0 };
    const attributes = given && given.length ? `{${given}}` : braces;
    const whole = { start: node.start, end: Math.max(node.end, end) };
    const more = attributes ? `,${attributes.replace(/\s+/g, " ")}` : "";
    const load = `await ${HELPER}.importNames(${node.source.raw},[${wanted}]${more})`;
    if (space !== null) {
      const rest = patterns.length ? `,{${patterns}}=${space}` : "";
      this.replace(whole, `const ${space}=${load}${rest};`);
    } else {
      this.replace(whole, patterns.length ? `const {${patterns}}=${load};` : `${load};`);
    }
  }

  exportDeclaration(node) {
    const { declaration } = node;
    if (!declaration) {
      this.replace(node, "");
      return;
    }
    this.replace({ start: node.start, end: declaration.start }, " ".repeat(declaration.start - node.start));
    this.declaration(declaration);
    if (/^(Function|Class)(Declaration|Expression)$/.test(declaration.type) && !declaration.id) {
      this.insert(declaration.start, "(");
      this.insert(declaration.end, ")");
    }
  }

  /** The code with all changes made, and where columns have moved. */
  build(prefix, suffix) {
    const order = [...this.changes].sort((a, b) => a.start - b.start || a.end - b.end);
    const edits = [];
    let code = prefix;
    let position = 0;
    for (const { start, end, text } of order) {
      code += this.source.slice(position, start) + text;
      position = end;
      const lines = this.source.slice(0, start).split("\n");
      edits.push({ line: lines.length, column: lines[lines.length - 1].length, added: text.length - (end - start) });
    }
    return { code: code + this.source.slice(position) + suffix, edits, prefix: prefix.length };
  }
}

/** `shadows`: names that earlier cells have declared and that the global object has another meaning for. */
function transform(source, name = "<cell>", shadows = []) {
  const { program, attributes } = parse(source, name);
  const cell = new Cell(source, attributes);
  if (source.startsWith("#!")) cell.replace({ start: 0, end: 2 }, "//");
  program.body.forEach((node) => cell.statement(node));
  walk(program.body, (node) => {
    if (node.type === "MetaProperty" && node.meta.name === "import") cell.replace(node, `${HELPER}.meta`);
    if (node.type === "ImportExpression") {
      cell.replace({ start: node.start, end: node.start + "import".length }, `${HELPER}.importModule`);
    }
    if (node.type === "CallExpression" && node.callee.name === IMPORT && source.startsWith("import", node.start)) {
      cell.replace(node.callee, `${HELPER}.importModule`);
    }
    return undefined;
  });
  walk(program.body, (node) => {
    if (/Function|^Class/.test(node.type)) return false;
    if (node.type === "VariableDeclaration" && node.kind === "var") cell.declaration(node);
    return undefined;
  });
  const strict = program.body.some((node) => node.directive === "use strict");
  const last = program.body[program.body.length - 1];
  if (last && last.type === "ExpressionStatement" && last.directive !== "use strict") {
    // Up to the semicolon: brackets around the expression belong to the statement only.
    cell.insert(last.start, "return {value:(");
    cell.insert(source[last.end - 1] === ";" ? last.end - 1 : last.end, ")}");
  }
  const accessors = [...cell.names]
    .filter((declared) => declared !== HELPER)
    .map((declared) => `get ${declared}(){return ${declared}},set ${declared}(__value__){${declared}=__value__}`)
    .join(",");
  const given = shadows.filter((shadow) => !cell.names.has(shadow));
  const values = given.map((shadow) => `,${HELPER}.shadow("${shadow}")`).join("");
  const head = `(async(${[HELPER, ...given]})=>{${strict ? '"use strict";' : ""}${HELPER}.bind({${accessors}});`;
  return cell.build(head, `\n})(${HELPER}${values})`);
}

module.exports = { HELPER, transform };
