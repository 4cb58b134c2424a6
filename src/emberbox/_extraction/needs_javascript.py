"""What a JavaScript block defines and needs, from its syntax tree."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from emberbox._extraction.needs import MAX_NAMES, Needs, word_set
from emberbox.languages import LANGUAGES
from emberbox.languages._tree import Source, walk

if TYPE_CHECKING:
    from tree_sitter import Node

_BROWSER = word_set(
    """
    document window alert prompt confirm localStorage sessionStorage location history screen $ jQuery React
    ReactDOM Vue angular HTMLElement XMLHttpRequest requestAnimationFrame cancelAnimationFrame customElements
    chrome browser FileReader DOMParser Image Audio MutationObserver IntersectionObserver Node Element
    getComputedStyle d3 THREE Chart google L p5 createCanvas gsap firebase
    """
)
_TESTS = word_set(
    """
    describe it test expect beforeEach afterEach beforeAll afterAll jest vi cy context sinon chai mocha
    """
)
_NODE = word_set(
    """
    undefined NaN Infinity globalThis global console process require module exports __dirname __filename Buffer
    setTimeout setInterval setImmediate clearTimeout clearInterval clearImmediate queueMicrotask structuredClone
    Object Function Array Number String Boolean Symbol BigInt Math Date JSON RegExp Map Set WeakMap WeakSet
    WeakRef Promise Proxy Reflect Error TypeError RangeError SyntaxError ReferenceError EvalError URIError
    AggregateError Intl Atomics SharedArrayBuffer ArrayBuffer DataView Int8Array Uint8Array Uint8ClampedArray
    Int16Array Uint16Array Int32Array Uint32Array Float32Array Float64Array BigInt64Array BigUint64Array parseInt
    parseFloat isNaN isFinite encodeURIComponent decodeURIComponent encodeURI decodeURI escape unescape eval
    arguments FinalizationRegistry Iterator fetch Headers Request Response FormData URL URLSearchParams
    TextEncoder TextDecoder AbortController AbortSignal Event EventTarget MessageChannel BroadcastChannel Blob
    File performance WebAssembly crypto navigator WebSocket ReadableStream WritableStream TransformStream atob
    btoa DOMException CustomEvent
    """
)
_BUILT_IN = word_set(
    """
    assert async_hooks buffer child_process cluster console constants crypto dgram diagnostics_channel dns domain
    events fs http http2 https inspector module net os path perf_hooks process punycode querystring readline repl
    stream string_decoder timers tls tty url util v8 vm wasi worker_threads zlib test sqlite
    """
)
_DECLARED = frozenset(
    {"identifier", "shorthand_property_identifier_pattern", "rest_pattern", "array_pattern", "object_pattern"}
    | {"assignment_pattern", "object_assignment_pattern", "pair_pattern"}
)
_TOP = frozenset(
    {"function_declaration", "generator_function_declaration", "class_declaration", "lexical_declaration"}
    | {"variable_declaration", "import_statement", "export_statement", "comment", "empty_statement"}
)
_FIELDS = {
    "variable_declarator": "name",
    "function_declaration": "name",
    "generator_function_declaration": "name",
    "function_expression": "name",
    "class_declaration": "name",
    "class": "name",
    "catch_clause": "parameter",
    "arrow_function": "parameter",
    "for_in_statement": "left",
    "assignment_expression": "left",
}
_LATER = frozenset(
    {"function_declaration", "generator_function_declaration", "function_expression", "arrow_function"}
    | {"method_definition", "class_declaration", "class", "generator_function"}
)
_LOUD = re.compile(r"\bconsole\.\w|\bprocess\.\w|\bwrite\w*\(|\bsend\w*\(|\balert\(|\bmkdir|\bunlink|\brm(?:Sync)?\(")
_NO_LITERAL = frozenset(
    {"identifier", "call_expression", "new_expression", "member_expression", "arrow_function", "function_expression"}
    | {"method_definition", "class", "await_expression", "shorthand_property_identifier", "template_substitution"}
)
# What TypeScript writes only for the compiler, and the lines that go on with it.
_TYPE = re.compile(
    r"(?:export[ \t]+)?(?:declare[ \t]+)?(?:interface[ \t]+\w|type[ \t]+\w[^=]{0,200}=|import[ \t]+type\b)"
)
_GOES_ON = re.compile(r"[ \t]+[|&?:]")
_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_CALLED_OBJECTS = re.compile(r"\b(\w+)[ \t]*[.(]")
_WAITS = re.compile(r"\bprocess\.stdin\b")
_EXPORTS = re.compile(r"\s*(?:module\.)?exports\b[^=(]{0,80}=|['\"]use strict['\"]")


def typescript_needs(code: str) -> Needs:
    """Reads one block. There is no grammar of types here: where annotations are left that JavaScript's does not know,
    nothing is said of names, but for those of a browser or a test framework that are called."""
    plain = _without_types(code)
    types_only = plain != code and not _COMMENTS.sub("", plain).strip()
    found = javascript_needs(plain)
    if types_only or code.lstrip().startswith(("|", "&")):  # the members of a type that stands elsewhere
        return replace(found, acts=False, silent=True)
    if not LANGUAGES["javascript"].parse(plain).root_node.has_error:
        return found
    called = set(_CALLED_OBJECTS.findall(plain))
    return replace(
        found,
        names=(),
        uses=frozenset(),
        silent=False,
        data=False,
        browser=tuple(name for name in found.browser if name in called),
        tests=tuple(name for name in found.tests if name in called),
    )


def _without_types(code: str) -> str:
    """The code without what is there for the compiler alone: interfaces and types, each to the line that closes it."""
    kept: list[str] = []
    inside, depth = False, 0
    for line in code.splitlines(keepends=True):
        inside = (inside and (depth > 0 or _GOES_ON.match(line) is not None)) or _TYPE.match(line) is not None
        depth = max(0, depth + line.count("{") - line.count("}")) if inside else 0
        if not inside:
            kept.append(line)
    return "".join(kept)


def javascript_needs(code: str) -> Needs:
    """Reads one block."""
    source = Source(code, LANGUAGES["javascript"].parse(code))
    declared: set[str] = set()
    used: dict[str, None] = {}
    modules: list[str] = []
    asked: set[int] = set()  # of `typeof window`, which needs no window; the parent of a node is slow to find
    jsx = False
    for node in walk(source.root):
        jsx = jsx or node.type.startswith("jsx_")
        _declare(node, source, declared)
        if node.type in {"identifier", "shorthand_property_identifier"} and node.id not in asked:
            used.setdefault(source.text(node))
        elif node.type == "unary_expression" and node.children[0].type == "typeof":
            asked |= {child.id for child in node.named_children}
        modules += [source.text(name)[1:-1].removeprefix("node:") for name in _loaded(node, source)]
    top = source.root.named_children
    acts = any(node.type not in _TOP and not _EXPORTS.match(source.text(node)[:100]) for node in top)
    if not acts and any(node.type == "expression_statement" and "exports" in source.text(node)[:100] for node in top):
        modules.append("module.exports")
    loud = _LOUD.search(code) is not None
    free = [name for name in used if name not in declared and name not in _NODE]
    defines = {name for node in top for name in _defined(node, source)}
    return Needs(
        defines=frozenset(sorted(defines)[:MAX_NAMES]),
        functions=frozenset(name for node in top for name in _functions(node, source)),
        names=tuple(name for name in free if name not in _BROWSER | _TESTS),
        files=tuple(name for name in modules if name.startswith(".")),
        acts=acts,
        waits="process.stdin" if _WAITS.search(code) else "",
        browser=("JSX",) if jsx else tuple(name for name in free if name in _BROWSER),
        tests=tuple(name for name in free if name in _TESTS),
        uses=frozenset(name for name in used if name not in declared),
        silent=bool(top) and all(_is_silent(node, loud=loud) for node in top),
        data=any(node.type != "comment" for node in top) and all(_is_data(node) for node in top),
        packages=tuple(name for name in modules if not name.startswith((".", "/")) and not _built_in(name)),
    )


def _is_silent(node: Node, *, loud: bool) -> bool:
    """Whether nothing can be seen of a statement: a definition, an import, an assignment whose value calls nothing that
    could write, print or send."""
    if node.type == "expression_statement":
        inner = node.named_children[0] if node.named_children else node
        if inner.type == "string":
            return True
        if inner.type not in {"assignment_expression", "augmented_assignment_expression"}:
            return False
    elif node.type not in _TOP:
        return False
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one.type == "await_expression" or (loud and one.type in {"call_expression", "new_expression"}):
            return False
        waiting += [child for child in one.named_children if child.type not in _LATER]
    return True


def _is_data(node: Node) -> bool:
    """Whether a statement gives a name to a literal."""
    if node.type in {"comment", "empty_statement"}:
        return True
    if node.type not in {"lexical_declaration", "variable_declaration"}:
        return False
    values = [child.child_by_field_name("value") for child in node.named_children]
    if not values or any(value is None for value in values):
        return False
    return not any(inner.type in _NO_LITERAL for value in values if value is not None for inner in walk(value))


def _built_in(module: str) -> bool:
    return module.partition("/")[0] in _BUILT_IN


def _loaded(node: Node, source: Source) -> list[Node]:
    """The strings that name a module, where a node loads one."""
    if node.type in {"import_statement", "export_statement"}:
        return [child for child in node.named_children if child.type == "string"]
    function = node.child_by_field_name("function") if node.type == "call_expression" else None
    if function is None or function.type not in {"import", "identifier"}:
        return []
    if function.type == "identifier" and source.text(function) != "require":
        return []
    arguments = node.child_by_field_name("arguments")
    return [] if arguments is None else [child for child in arguments.named_children if child.type == "string"]


def _declare(node: Node, source: Source, declared: set[str]) -> None:
    field = _FIELDS.get(node.type)
    targets: list[Node | None] = []
    if field is not None:
        targets.append(node.child_by_field_name(field))
    elif node.type == "formal_parameters":
        targets += node.named_children
    elif node.type in {"import_clause", "namespace_import"}:
        targets += [child for child in node.named_children if child.type == "identifier"]
    elif node.type == "import_specifier":
        targets.append(node.child_by_field_name("alias") or node.child_by_field_name("name"))
    for target in targets:
        if target is not None and target.type in _DECLARED:
            declared |= _pattern(target, source)


def _pattern(node: Node, source: Source) -> set[str]:
    """The names that a pattern binds."""
    names: set[str] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one.type in {"identifier", "shorthand_property_identifier_pattern"}:
            names.add(source.text(one))
        elif one.type in {"assignment_pattern", "object_assignment_pattern"}:
            left = one.child_by_field_name("left")
            waiting += [] if left is None else [left]
        elif one.type == "pair_pattern":
            value = one.child_by_field_name("value")
            waiting += [] if value is None else [value]
        elif one.type in _DECLARED:
            waiting += one.named_children
    return names


def _defined(node: Node, source: Source) -> set[str]:
    if node.type == "export_statement":
        return {name for child in node.named_children for name in _defined(child, source)}
    if node.type in {"lexical_declaration", "variable_declaration"}:
        found = [child.child_by_field_name("name") for child in node.named_children]
        return {name for child in found if child is not None for name in _pattern(child, source)}
    return _functions(node, source)


def _functions(node: Node, source: Source) -> set[str]:
    if node.type == "export_statement":
        return {name for child in node.named_children for name in _functions(child, source)}
    if node.type in {"function_declaration", "generator_function_declaration", "class_declaration"}:
        name = node.child_by_field_name("name")
        return set() if name is None else {source.text(name)}
    if node.type in {"lexical_declaration", "variable_declaration"}:
        return {
            source.text(name)
            for child in node.named_children
            if (name := child.child_by_field_name("name")) is not None
            and (value := child.child_by_field_name("value")) is not None
            and value.type in {"arrow_function", "function_expression", "class"}
        }
    return set()
