"""Python: which imports a text forgot, and how they are added.

What is undefined is for pyflakes to say. What an undefined name means is in the tables below, which hold only what is
near-certain: a bare `sqrt` may be of math, cmath or numpy, a bare `sleep` of time or asyncio, so neither is in them.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

MARKER = "  # added by emberbox"
"""How each added line ends; the kernel (guest/kernels/added.py) knows such lines by it."""

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SPACE = " \t\f"


class _Use(NamedTuple):
    """A place where an undefined name is used: `x.a.b` is a member with the path a, b; `x(…)`, `x[…]`, `@x`."""

    how: Literal["member", "call", "index", "decorator", "other"]
    path: tuple[str, ...] = ()
    call: ast.Call | None = None


_Uses = Sequence[_Use]


# --- modules that are used as `module.member` -------------------------------------------------------------------------

_MODULE_NAMES = (
    "argparse asyncio base64 binascii bz2 cmath codecs colorsys configparser contextlib ctypes dataclasses difflib dis"
    " fnmatch functools gc getpass graphlib gzip hashlib heapq hmac importlib inspect io ipaddress itertools linecache"
    " logging lzma math mimetypes multiprocessing os pathlib pickle re shelve shlex shutil socketserver sqlite3 ssl"
    " subprocess sys sysconfig tarfile tempfile textwrap threading tokenize traceback tracemalloc typing unicodedata"
    " unittest weakref zipfile zlib zoneinfo numpy pandas matplotlib"
)
_ALIASES = {
    "np": "import numpy as np",
    "pd": "import pandas as pd",
    "plt": "import matplotlib.pyplot as plt",
    "mpl": "import matplotlib as mpl",
    "ET": "import xml.etree.ElementTree as ET",
}
# Words that are variables just as often: these are the module only where what is taken from them is its own.
_MEMBERS = {
    "abc": r"ABC|ABCMeta|abstract\w+",
    "array": r"array|typecodes",
    "ast": r"parse|walk|dump|literal_eval|unparse|iter_\w+|get_docstring|fix_missing_locations|copy_location|[A-Z]\w+",
    "bisect": r"(?:bisect|insort)(?:_left|_right)?",
    "calendar": r"monthrange|monthcalendar|isleap|leapdays|timegm|weekday|\w*Calendar|(?:month|day)_(?:name|abbr)"
    r"|month|calendar|setfirstweekday|[A-Z]+DAY",
    "collections": r"defaultdict|deque|namedtuple|Counter|OrderedDict|ChainMap|User\w+|abc",
    "copy": r"copy|deepcopy",
    "csv": r"reader|writer|Dict(?:Reader|Writer)|QUOTE_\w+|Sniffer|excel\w*|field_size_limit|\w+_dialect|Error",
    "decimal": r"[A-Z]\w+|getcontext|setcontext|localcontext",
    "enum": r"[A-Z]\w+|auto|unique",
    "errno": r"E[A-Z0-9]+|errorcode",
    "fractions": r"Fraction",
    "glob": r"i?glob|escape",
    "html": r"escape|unescape|parser|entities",
    "json": r"dumps?|loads?|JSON\w+|decoder|encoder",
    "keyword": r"iskeyword|issoftkeyword|kwlist|softkwlist",
    "locale": r"setlocale|getlocale|localeconv|currency|format_string|LC_[A-Z]+|atof|atoi|getpreferredencoding|strxfrm",
    "numbers": r"Number|Complex|Real|Rational|Integral",
    "operator": r"itemgetter|attrgetter|methodcaller|add|sub|mul|truediv|floordiv|mod|pow|neg|not_|and_|or_|xor|eq|ne"
    r"|lt|le|gt|ge|is_|is_not|contains|concat|getitem|setitem|delitem|index|indexOf|lshift|rshift|inv|matmul",
    "platform": r"system|release|version|machine|node|processor|platform|uname|architecture|python_\w+|freedesktop\w+",
    "queue": r"Queue|LifoQueue|PriorityQueue|SimpleQueue|Empty|Full",
    "random": r"random|randint|randrange|randbytes|choice|choices|sample|shuffle|seed|uniform|gauss|triangular"
    r"|getrandbits|getstate|setstate|Random|SystemRandom|\w+variate",
    "resource": r"[gs]etrlimit|getrusage|RLIM\w+|RUSAGE_\w+|getpagesize",
    "secrets": r"choice|randbelow|randbits|SystemRandom|token_\w+|compare_digest",
    "select": r"select|poll|epoll|E?POLL[A-Z]*",
    "signal": r"SIG\w+|signal|getsignal|alarm|pause|[gs]etitimer|raise_signal|ITIMER\w+|Signals|strsignal|pthread\w+",
    "socket": r"socket|socketpair|create_connection|create_server|AF_\w+|SOCK_\w+|SOL_\w+|SO_\w+|IPPROTO_\w+|TCP_\w+"
    r"|gethost\w+|getaddrinfo|getnameinfo|getfqdn|inet_\w+|[hn]to[hn][sl]|timeout|error|gaierror|herror|has_ipv6"
    r"|setdefaulttimeout|getdefaulttimeout|SHUT_\w+|getservby\w+",
    "stat": r"S_I\w+|ST_\w+|filemode|S_FMT",
    "statistics": r"f?mean|geometric_mean|harmonic_mean|median\w*|mode|multimode|p?stdev|p?variance|quantiles"
    r"|NormalDist|correlation|covariance|linear_regression|StatisticsError",
    "string": r"ascii_\w+|digits|hexdigits|octdigits|punctuation|printable|whitespace|capwords|Template|Formatter",
    "struct": r"(?:iter_)?unpack|pack|pack_into|unpack_from|calcsize|Struct|error",
    "time": r"time|time_ns|sleep|perf_counter|perf_counter_ns|monotonic|monotonic_ns|process_time|process_time_ns"
    r"|strftime|strptime|localtime|gmtime|mktime|ctime|asctime|struct_time|timezone|tzname|thread_time|clock_\w+",
    "timeit": r"timeit|repeat|default_timer|Timer",
    "types": r"\w+Type|SimpleNamespace|GenericAlias|new_class|coroutine|DynamicClassAttribute",
    "uuid": r"uuid[1345]|UUID|NAMESPACE_\w+|getnode",
    "warnings": r"warn|warn_explicit|filterwarnings|simplefilter|catch_warnings|resetwarnings|formatwarning",
}  # fmt: skip
# Packages whose modules have to be imported themselves before `package.module.member` works.
_PACKAGES = {
    "concurrent": ("concurrent.futures",),
    "html": ("html.parser", "html.entities"),
    "http": ("http.client", "http.server", "http.cookies", "http.cookiejar"),
    "importlib": ("importlib.util", "importlib.metadata", "importlib.resources", "importlib.machinery"),
    "logging": ("logging.handlers", "logging.config"),
    "matplotlib": ("matplotlib.pyplot", "matplotlib.dates", "matplotlib.ticker", "matplotlib.patches"),
    "unittest": ("unittest.mock",),
    "urllib": ("urllib.request", "urllib.parse", "urllib.error"),
    "xml": ("xml.etree.ElementTree", "xml.dom.minidom"),
}


# --- names that are used bare -----------------------------------------------------------------------------------------


def _any(uses: _Uses) -> bool:
    del uses
    return True


def _called(uses: _Uses) -> bool:
    hows = {use.how for use in uses}
    return bool(hows & {"call", "decorator"}) and not hows & {"member", "index"}


def _type(uses: _Uses) -> bool:
    return not {use.how for use in uses} & {"call", "member", "decorator"}


def _decorates(uses: _Uses) -> bool:
    return {use.how for use in uses} == {"decorator"}


def _each_call(fits: Callable[[ast.Call], bool], members: str = "") -> Callable[[_Uses], bool]:
    """That each call is such a one, members are of these, and there is one of either."""

    def judge(uses: _Uses) -> bool:
        good = [
            (use.call is not None and fits(use.call))
            or (use.how == "member" and re.fullmatch(members, use.path[0]) is not None)
            for use in uses
            if use.how != "other"
        ]
        return bool(good) and all(good)

    return judge


def _has_keyword(*names: str) -> Callable[[ast.Call], bool]:
    return lambda call: any(keyword.arg in names for keyword in call.keywords)


def _several(call: ast.Call) -> bool:
    """Two arguments or more: `product(xs)` is as likely to multiply."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    return starred or len(call.args) > 1 or _has_keyword("repeat")(call)


def _of_things(call: ast.Call) -> bool:
    """Not of numbers: `combinations(5, 2)` counts them."""
    first = call.args[0] if call.args else None
    return first is not None and not (isinstance(first, ast.Constant) and isinstance(first.value, int | float))


_BARE: dict[str, tuple[str, Callable[[_Uses], bool]]] = {
    name: (module, judge)
    for module, judge, names in (
        ("abc", _any, "ABC ABCMeta abstractmethod"),
        ("collections", _any, "defaultdict deque namedtuple Counter OrderedDict ChainMap"),
        ("concurrent.futures", _any, "ThreadPoolExecutor ProcessPoolExecutor"),
        ("concurrent.futures", _called, "as_completed"),
        ("contextlib", _called, "contextmanager asynccontextmanager suppress nullcontext redirect_stdout"),
        ("contextlib", _any, "ExitStack AsyncExitStack"),
        ("copy", _called, "deepcopy"),
        ("dataclasses", _called, "dataclass asdict"),
        ("datetime", _any, "timedelta"),
        ("decimal", _any, "Decimal ROUND_HALF_UP ROUND_HALF_EVEN ROUND_HALF_DOWN ROUND_DOWN ROUND_UP ROUND_CEILING"),
        ("decimal", _called, "getcontext localcontext"),
        ("enum", _any, "Enum IntEnum IntFlag StrEnum"),
        ("fractions", _any, "Fraction"),
        ("functools", _called, "reduce partial lru_cache wraps cached_property total_ordering cmp_to_key"),
        ("functools", _decorates, "cache"),
        ("heapq", _called, "heappush heappop heapify heappushpop heapreplace nlargest nsmallest"),
        ("bisect", _called, "bisect_left bisect_right insort"),
        ("io", _any, "StringIO BytesIO"),
        ("itertools", _called, "groupby islice zip_longest accumulate takewhile dropwhile starmap"),
        ("itertools", _each_call(_several), "product"),
        ("itertools", _each_call(_of_things), "permutations combinations combinations_with_replacement"),
        ("itertools", _each_call(_several, "from_iterable"), "chain"),
        ("operator", _called, "itemgetter attrgetter methodcaller"),
        ("pathlib", _any, "Path PurePath PosixPath PurePosixPath"),
        ("string", _any, "ascii_letters ascii_lowercase ascii_uppercase"),
        ("tempfile", _any, "TemporaryDirectory NamedTemporaryFile"),
        ("textwrap", _called, "dedent"),
        ("threading", _each_call(_has_keyword("target")), "Thread"),
        ("time", _called, "perf_counter perf_counter_ns"),
        ("types", _any, "SimpleNamespace MappingProxyType"),
        ("typing", _type, "Any Optional Union List Dict Tuple Set FrozenSet Callable Iterable Iterator Generator"),
        ("typing", _type, "Sequence MutableSequence Mapping MutableMapping Awaitable Coroutine AsyncIterator"),
        ("typing", _type, "AsyncIterable AsyncGenerator Generic Literal Protocol ClassVar Final Type DefaultDict"),
        ("typing", _type, "Deque NoReturn Hashable Annotated TYPE_CHECKING"),
        ("typing", _any, "TypeVar NamedTuple TypedDict NewType ParamSpec"),
        ("unittest.mock", _any, "MagicMock AsyncMock"),
        ("urllib.parse", _called, "urlparse urljoin urlencode parse_qs"),
        ("uuid", _called, "uuid4"),
        ("zoneinfo", _any, "ZoneInfo"),
        ("datetime", _each_call(lambda call: len(call.args) == 3, "today|from\\w+"), "date"),
        ("datetime", _each_call(lambda call: bool(call.args), "utc"), "timezone"),
        ("dataclasses", _each_call(_has_keyword("default", "default_factory", "init", "repr", "compare")), "field"),
        ("enum", _each_call(lambda call: not call.args and not call.keywords), "auto"),
    )
    for name in names.split()
}  # fmt: skip
_OWN_WORDS = {
    # Modules that hold something of their own name: which of the two it is, their uses tell.
    "datetime": r"datetime|date|time|timedelta|timezone|tzinfo|UTC|MINYEAR|MAXYEAR",
    "pprint": r"pprint|pformat|pp|PrettyPrinter",
}
_MODULES = frozenset({*_MODULE_NAMES.split(), *_MEMBERS})
NAMES = frozenset({*_MODULES, *_ALIASES, *_PACKAGES, *_BARE, *_OWN_WORDS})
"""Every name that something may be added for."""


# --- what is missing --------------------------------------------------------------------------------------------------


def find(code: str) -> dict[str, str]:
    """The statements that are missing, each with the name that it is for, in the order in which they are to stand."""
    if NAMES.isdisjoint(re.findall(r"\w+", code)):
        return {}
    tree = _parse(code)
    if tree is None or any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree)):
        return {}
    _forget_annotations(tree, everywhere="annotations" in _future_features(tree))
    found = {
        statement: name for name, uses in _undefined_uses(tree).items() for statement in _statements_for(name, uses)
    }
    return dict(sorted(found.items(), key=lambda pair: (pair[0].startswith("from"), pair[0])))


def _parse(code: str) -> ast.Module | None:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape sequence is the author's business
            tree: ast.Module = compile(code, "<code>", "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None
    return tree


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__" and statement.level == 0


def _future_features(tree: ast.Module) -> set[str]:
    return {
        alias.name
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and _is_future(statement)
        for alias in statement.names
    }


def _forget_annotations(tree: ast.Module, *, everywhere: bool) -> None:
    """Takes those out of the tree that Python never evaluates: of variables in functions, or all of them."""
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        node, local = stack.pop()
        if isinstance(node, ast.AnnAssign) and (everywhere or local):
            node.annotation = ast.copy_location(ast.Constant(None), node.annotation)
        elif isinstance(node, ast.arg) and everywhere:
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            local = True
            if everywhere:
                node.returns = None
        elif isinstance(node, ast.ClassDef):
            local = False
        stack.extend((child, local) for child in ast.iter_child_nodes(node))


def _undefined_uses(tree: ast.Module) -> dict[str, list[_Use]]:
    """The uses of each name of the tables that nothing defines."""
    nowhere = _undefined_places(tree)
    known: dict[int, _Use] = {}
    paths: dict[int, tuple[str, ...]] = {}
    uses: defaultdict[str, list[_Use]] = defaultdict(list)
    unsettled: set[str] = set()
    for node in ast.walk(tree):  # a node comes before what is in it
        match node:
            case ast.Attribute():
                paths[id(node.value)] = (node.attr, *paths.get(id(node), ()))
                known[id(node.value)] = _Use("member", paths[id(node.value)])
            case ast.Call():
                known[id(node.func)] = _Use("call", call=node)
            case ast.Subscript():
                known[id(node.value)] = _Use("index")
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                known.update((id(one), _Use("decorator")) for one in node.decorator_list)
            case ast.ExceptHandler(name=str()):
                unsettled.add(node.name or "")  # Python takes it away at the end of the handler
            case ast.Name(ctx=ast.Del()):
                unsettled.add(node.id)
            case ast.Global():
                unsettled.update(node.names)
            case ast.Name() if (node.id, node.lineno, node.col_offset) in nowhere:
                uses[node.id].append(known.get(id(node), _Use("other")))
            case _:
                pass
    return {name: places for name, places in uses.items() if name in NAMES and name not in unsettled}


def _undefined_places(tree: ast.Module) -> set[tuple[str, int, int]]:
    """Name, line and column of every use of an undefined name, as pyflakes sees it."""
    from pyflakes.checker import Checker  # type: ignore[import-untyped]
    from pyflakes.messages import UndefinedName  # type: ignore[import-untyped]

    # It does not look into an `await` outside functions, which the kernel allows.
    checker = type("Checker", (Checker,), {"AWAIT": Checker.handleChildren})
    try:
        messages = checker(tree, "<code>", withDoctest=False).messages
    except Exception:  # noqa: BLE001 - it is made for code that people wrote, and recursive; no answer is no import
        return set()
    return {(one.message_args[0], one.lineno, one.col) for one in messages if isinstance(one, UndefinedName)}


def _statements_for(name: str, uses: _Uses) -> list[str]:
    if name in _OWN_WORDS:
        return _own_word(name, uses)
    if name in _BARE:
        module, judge = _BARE[name]
        return [f"from {module} import {name}"] if judge(uses) else []
    paths = [use.path for use in uses if use.how == "member"]
    members = _MEMBERS.get(name, ".*")
    if not paths or not all(use.how in {"member", "other"} for use in uses):
        return []
    if not all(re.fullmatch(members, path[0]) for path in paths):
        return []
    if name in _ALIASES:
        return [_ALIASES[name]]
    dotted = [f"{'.'.join((name, *path))}." for path in paths]
    inner = [module for module in _PACKAGES.get(name, ()) if any(path.startswith(f"{module}.") for path in dotted)]
    return [f"import {module}" for module in inner or ([name] if name in _MODULES else [])]


def _own_word(name: str, uses: _Uses) -> list[str]:
    """`datetime.datetime.now()` needs the module, `datetime.now()` the class in it, and both together neither."""
    of_module = {use.how == "member" and re.fullmatch(_OWN_WORDS[name], use.path[0]) is not None for use in uses}
    if of_module == {True}:
        return [f"import {name}"]
    if of_module == {False} and (name != "pprint" or _called(uses)):
        return [f"from {name} import {name}"]
    return []


# --- adding it --------------------------------------------------------------------------------------------------------


def add(code: str, statements: Collection[str]) -> str:
    """The code with a line for each statement; unchanged where there is no place for lines."""
    tree = _parse(code)
    if tree is None or not statements:
        return code
    heads = _heads(tree)
    lines = _LINE.findall(code)
    if heads:
        index = tree.body[heads - 1].end_lineno or 0
    else:
        index = next((at for at, line in enumerate(lines) if line.strip(_SPACE + "\r\n")[:1] not in {"", "#"}), 0)
    # The end of the line before, or a lone "\r" might meet a "\n" and become one line end with it.
    model = lines[index - 1] if index else lines[0] if lines else ""
    end = model[len(model.rstrip("\r\n")) :] or "\n"
    added = [f"{statement}{MARKER}{end}" for statement in statements]
    changed = "".join([*lines[:index], *added, *lines[index:]])
    return changed if _differs_by(tree, changed, heads, len(added)) else code


def _heads(tree: ast.Module) -> int:
    """How many statements must stay in front: the docstring and what is imported from the future."""
    count = 1 if ast.get_docstring(tree, clean=False) is not None else 0
    while count < len(tree.body) and _is_future(tree.body[count]):
        count += 1
    return count


def _differs_by(before: ast.Module, code: str, heads: int, count: int) -> bool:
    """Whether the code is what it was before, apart from so many statements behind the first ones."""
    after = _parse(code)
    if after is None:
        return False
    del after.body[heads : heads + count]
    try:
        return ast.dump(after) == ast.dump(before)
    except RecursionError:
        return False
