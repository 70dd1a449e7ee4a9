"""A hash of the code that can change a trial's numbers, by which a stored result is current or stale.

Counted are top-level definitions (functions, classes, constants), not files: from what runs a trial (`ROOTS`) and from
the method's own `Config` and `Method`, each name that a definition uses is followed, through imports, to the definition
that it stands for.  Where a name cannot be followed, as in `getattr(module, name)`, the whole module counts.  What an
import does besides, such as setting a flag of torch, counts for every module that is imported on the way.

Not counted are docstrings, comments, annotations, the texts of errors, warnings and log lines, the spelling of imports,
what a search may try, and the parts that `STORAGE`, `READERS` and `FIGURES` name.  Annotations of a pydantic model's
fields do count, because pydantic converts values by them; of them not the choices of a `Literal` and the bounds and
texts of a `Field`, which refuse a value or describe it, but never change it.

A definition is known by its text and by the definitions that it uses, never by its module: moving one to another file
changes no hash.  Renaming one is an edit.  Hashes begin with `RULE`, which is raised where this rule itself changes.

A function of a class counts where any counted code asks any object for an attribute of its name, or has the name as a
text, as for `getattr`; special ones such as `__init__` and all those of classes with a base always do.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

RULE = "2-"  # before it: whole files, with all that they import, and no prefix

# The places that are known by name; a name stands for a module and for all that lie in a folder of this name.
METHODS = "lnl.methods"  # whose `load` imports the file that a trial names
TRIAL = "lnl.trial"
READERS = "lnl.data"  # what they read has its own hash in every row; `FACTS` about it have none
STORAGE = (  # files, leases, checkpoints, messages and search spaces: nothing that trains
    "lnl.declaring",
    "lnl.space",
    "lnl.storage",
    "lnl.system",
    "lnl.trial.code_hash",
    "lnl.trial.provenance",
)
ROOTS = ((TRIAL, "run"), (TRIAL, "Trial"), ("lnl", "selection_rules"))  # the accuracies of a row are chosen by the last
FIGURES = ("_histogram", "embedding_epochs", "embed")  # of TRIAL: arrays for figures, and the epochs that have them
FACTS = ("class_names", "flip", "mean", "std")  # what a reader says of its images beside them

# Arguments of pydantic's Field that refuse a value or describe a field, but never change a value.
FIELD_CHECKS = {"ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern", "allow_inf_nan"}
FIELD_TEXTS = {"title", "description", "examples"}
# Decorators that do not look at annotations; under any other one a function's annotations count.
PLAIN_DECORATORS = {
    "property",
    "staticmethod",
    "classmethod",
    "contextlib.contextmanager",
    "functools.cache",
    "functools.cached_property",
    "functools.lru_cache",
    "functools.wraps",
    "pydantic.field_validator",
    "pydantic.model_validator",
    "torch.enable_grad",
    "torch.no_grad",
    "typing.override",
    "typing.overload",
}
MARKERS = {"typing.ClassVar", "dataclasses.InitVar", "dataclasses.KW_ONLY"}  # annotations that a dataclass looks at
LOOKS_UP = {  # which of its arguments name an attribute
    "getattr": slice(1, 2),
    "hasattr": slice(1, 2),
    "operator.attrgetter": slice(None),
    "operator.methodcaller": slice(1),
}
LOGGING = {"debug", "info", "warning", "error", "exception", "critical", "log"}
PACKAGE = "lnl"


def read_sources(root: Path) -> dict[str, bytes]:
    """The text of every module of the package below `root`, by its path relative to `root`."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted((root / PACKAGE).rglob("*.py"))}


ROOT = Path(__file__).parents[2]  # the folder that holds the package
SOURCES = read_sources(ROOT)


@cache
def code_hash(method: str) -> str:
    """Hash of the code that can change the numbers of a trial of `method`, as this process has read it at its start."""
    return hash_of(method, SOURCES)


@cache
def sources_digest() -> str:
    """Digest of the text of all modules as this process has read them: equal where two machines run the same code."""
    return _short(repr(sorted(SOURCES.items())))


def hash_of(method: str, sources: Mapping[str, bytes]) -> str:
    """As `code_hash`, of a package with this text.  Raises `LookupError` for an unknown method."""
    return _tree(sources).hash(method)


def counted(method: str, sources: Mapping[str, bytes]) -> set[tuple[str, str]]:
    """Which definitions count for `method`, as (module, name); functions of classes as (module, class.function)."""
    return {(definition.module, definition.name) for definition in _tree(sources).counted(method)}


def joined(hashes: Sequence[str]) -> str:
    """One hash of several: of a trial's code and of the code of what it starts from.  A single one stays as it is."""
    return hashes[0] if len(hashes) == 1 else RULE + _short("".join(hashes))


def snapshot(folder: Path) -> Path:
    """Write the package as this process has read it into `folder`, for workers to import; returns the folder.

    Raises `RuntimeError` where a module has changed while this process was starting, which may have imported either
    text.
    """
    changed = sorted(
        path
        for path, text in SOURCES.items()
        if _module_name(path) in sys.modules and (ROOT / path).is_file() and (ROOT / path).read_bytes() != text
    )
    if changed:
        raise RuntimeError(f"{ROOT / changed[0]} has changed since this process started: start it again.")
    skip = shutil.ignore_patterns("__pycache__", "*.py")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=skip, dirs_exist_ok=True)
    for path, text in SOURCES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text)
    return folder


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _within(module: str, folders: str | Iterable[str]) -> bool:
    """Whether a module is one of these or lies in a folder of their names."""
    folders = (folders,) if isinstance(folders, str) else folders
    return any(module == folder or module.startswith(f"{folder}.") for folder in folders)


# ------------------------------------------------------------------------------------- definitions and what they use

Dotted = tuple[str, ...]  # a module, and what is asked of it: ("lnl.functional.losses", "cross_entropy")


@dataclass(frozen=True)
class Use:
    """A place in a definition where something of the package is used."""

    path: Dotted


class Definition:
    """What a top-level name stands for, as a text without anything that does not count, interrupted by its uses.

    It is written when it is first asked for: of most files few definitions count.  A function of a class is a
    definition of its own, a part of the class that counts where somebody asks for its name.
    """

    def __init__(self, module: str, name: str, write: Callable[[Definition], None] | None = None) -> None:
        self.module, self.name, self.write = module, name, write
        self.always = False  # of a function of a class: it counts whoever asks
        self._parts: list[str | Use | Definition] = []
        self._asks: set[str] = set()

    @property
    def parts(self) -> list[str | Use | Definition]:
        self._written()
        return self._parts

    @property
    def asks(self) -> set[str]:
        """Names of attributes that it asks any object for, and texts that may be such."""
        self._written()
        return self._asks

    def _written(self) -> None:
        if self.write is not None:
            write, self.write = self.write, None
            write(self)
            self._parts = _merged(self._parts)


@dataclass(eq=False)
class Module:
    """One file: what each of its top-level names stands for, and what its import does besides."""

    name: str
    is_folder: bool
    names: dict[str, list[Definition | Dotted]] = field(default_factory=dict)  # a path: it is imported from there
    stars: list[Dotted] = field(default_factory=list)
    effects: list[Definition] = field(default_factory=list)
    calls: list[Definition] = field(default_factory=list)  # constants whose value calls something
    facts: list[Definition] = field(default_factory=list)
    imports: set[Dotted] = field(default_factory=set)


class Tree:
    """The package of one text."""

    def __init__(self, sources: Mapping[str, bytes]) -> None:
        self.texts = {_module_name(path): (path, text) for path, text in sources.items()}
        self._modules: dict[str, Module] = {}
        self._wholes: dict[str, Definition] = {}
        self._targets: dict[tuple[str, Dotted], list[Definition | str]] = {}
        self._start: tuple[list[Definition], frozenset[str]] | None = None
        self._facts: list[Definition] | None = None

    def module(self, name: str) -> Module:
        if name not in self._modules:
            path, text = self.texts[name]
            self._modules[name] = _parsed(name, path.endswith("/__init__.py"), text)
        return self._modules[name]

    def hash(self, method: str) -> str:
        """The hash of a method's code: that of its roots in their order, and of what imports and readers add."""
        roots, beside, asked = self.roots(method)
        reached = set(self.closure(roots, asked))
        others = {self.canonical([definition], asked) for definition in beside if definition not in reached}
        return RULE + _short(" ".join([self.canonical(roots, asked), *sorted(others)]))

    def counted(self, method: str) -> list[Definition]:
        """All definitions that count for a method."""
        roots, beside, asked = self.roots(method)
        return self.closure([*roots, *beside], asked)

    def roots(self, method: str) -> tuple[list[Definition], list[Definition], frozenset[str]]:
        """Where a trial's code begins, what counts beside it, and all names of attributes that this code asks for.

        A method's file counts from those of its names that are asked for.
        """
        if f"{METHODS}.{method}" not in self.texts:
            raise LookupError(f"There is no method '{method}' in {METHODS.replace('.', '/')}.")
        if self._start is None:
            start = [definition for folder, name in ROOTS for definition in self._defined(folder, name)]
            self._start = start, self._asked(start, frozenset())
        start, asked = self._start
        names = self.module(f"{METHODS}.{method}").names
        entries = [
            definition
            for name in sorted(asked & names.keys())
            for definition in names[name]
            if isinstance(definition, Definition)
        ]
        roots, beside = start + entries, self._effects(method, start) + self._all_facts()
        return roots, beside, self._asked(roots + beside, asked)

    def _asked(self, roots: Sequence[Definition], asked: frozenset[str]) -> frozenset[str]:
        """All names that the code from these roots asks for, which may bring in functions that ask for more."""
        while True:
            more = asked.union(*(definition.asks for definition in self.closure(roots, asked)))
            if more == asked:
                return asked
            asked = more

    def _defined(self, folder: str, name: str) -> list[Definition]:
        definitions = [
            definition
            for module in sorted(self.texts)
            if _within(module, folder)
            and re.search(rf"^(def|class) {name}\b".encode(), self.texts[module][1], re.MULTILINE)
            for definition in self.module(module).names.get(name, [])
            if isinstance(definition, Definition)
        ]
        definitions = [
            definition for definition in definitions if not _within(definition.module, STORAGE)
        ] or definitions
        if not definitions:
            raise LookupError(f"No module of {folder} defines '{name}', which every trial runs: correct ROOTS.")
        return definitions

    def _effects(self, method: str, start: Sequence[Definition]) -> list[Definition]:
        """What the imports of a trial do besides defining names."""
        waiting = {f"{METHODS}.{method}", *(definition.module for definition in start)}
        seen: set[str] = set()
        effects: list[Definition] = []
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            module = self.module(name)
            effects += module.effects
            if not _within(name, (*STORAGE, READERS)):
                effects += module.calls
            for path in module.imports:
                parts = ".".join(path).split(".")
                waiting |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & self.texts.keys()
        return effects

    def _all_facts(self) -> list[Definition]:
        """What readers say of their images beside them, which no data set's hash covers."""
        if self._facts is None:
            readers = [name for name in sorted(self.texts) if _within(name, READERS)]
            self._facts = [fact for name in readers for fact in self.module(name).facts]
        return self._facts

    def closure(self, roots: Iterable[Definition], asked: frozenset[str]) -> list[Definition]:
        """All that roots use, directly or not, with themselves, in the order in which it is met."""
        order = dict.fromkeys(roots)
        waiting = list(order)
        for definition in waiting:  # which grows meanwhile
            for target in self._used(definition, asked):
                if isinstance(target, Definition) and target not in order:
                    order[target] = None
                    waiting.append(target)
        return waiting

    def canonical(self, roots: Sequence[Definition], asked: frozenset[str]) -> str:
        """A hash of definitions and of all that they use: each is called by its place in their order, not by a file."""
        order = self.closure(roots, asked)
        place = {definition: f"#{index}" for index, definition in enumerate(order)}
        text = [
            "".join([place[part] if isinstance(part, Definition) else part for part in self._used(definition, asked)])
            for definition in order
        ]
        return _short("\n".join(text))

    def _used(self, definition: Definition, asked: frozenset[str]) -> Iterator[Definition | str]:
        """A definition's text, with the definitions that it uses in their places."""
        for part in definition.parts:
            if isinstance(part, str):
                yield part
            elif isinstance(part, Use):
                yield from self._stands_for(part.path, definition.module)
            elif part.always or ANY in asked or part.name.rpartition(".")[2] in asked:
                yield part

    def _stands_for(self, path: Dotted, user: str) -> list[Definition | str]:
        """Definitions to follow, and the names of what is not followed."""
        key = (user, path)
        if key not in self._targets:
            if path[-1] == COMPUTED:  # an import of a computed name
                self._targets[key] = self._computed(path, user)
            else:
                self._targets[key] = self._resolved(path, user, frozenset())
        return self._targets[key]

    def _computed(self, path: Dotted, user: str) -> list[Definition | str]:
        """Any module of the user's folder; where methods are imported by name, the one of the trial."""
        folder = path[0] if self.module(path[0]).is_folder else path[0].rpartition(".")[0]
        if folder == METHODS:
            return ["the method"]  # whose entries are roots of their own
        inside = [name for name in sorted(self.texts) if _within(name, folder) and name != folder]
        return [target for name in inside for target in self._reached(self.whole(name), (), user)]

    def _resolved(self, path: Dotted, user: str, seen: frozenset[tuple[str, str]]) -> list[Definition | str]:
        """What a dotted name stands for; the attributes that are asked of it stay words."""
        if path[0] not in self.texts:
            return [".".join(path)]
        module, rest = self.module(path[0]), path[1:]
        while rest:
            name, inner, key = rest[0], f"{module.name}.{rest[0]}", (module.name, rest[0])
            bound = [] if key in seen else self._bound(module, name)
            if bound:
                targets: list[Definition | str] = []
                for binding in bound:
                    if isinstance(binding, Definition):
                        targets += self._reached(binding, rest[1:], user)
                    elif _is_ours(binding):
                        targets += self._resolved((*binding, *rest[1:]), user, seen | {key})
                    else:
                        targets.append(".".join((*binding, *rest[1:])))
                return targets
            if inner not in self.texts:  # made while the program runs, such as by `__getattr__`
                return [*self._reached(self.whole(module.name), (), user), f".{'.'.join(rest)}"]
            module, rest = self.module(inner), rest[1:]
        return self._reached(self.whole(module.name), (), user)

    def _bound(self, module: Module, name: str) -> Sequence[Definition | Dotted]:
        """What a module's name is bound to."""
        if name in module.names:
            return module.names[name]
        stars = [star for star in module.stars if star[0] in self.texts]
        return [(*star, name) for star in stars if name in self.module(star[0]).names]

    def _reached(self, target: Definition, attributes: Dotted, user: str) -> list[Definition | str]:
        """The target itself, or only its name where what it does cannot change a trial's numbers."""
        words = "".join(f".{name}" for name in attributes)
        read = _within(target.module, READERS) and not _within(user, READERS)
        drawn = target.name in FIGURES and _within(target.module, TRIAL)
        if read or drawn or _within(target.module, STORAGE):
            return [f"{target.name}{words}"]
        return [target, words] if words else [target]

    def whole(self, name: str) -> Definition:
        """A module as something to use: all of its names but search spaces, and what its import does."""
        if name not in self._wholes:
            module = self.module(name)
            whole = Definition(name, name.rpartition(".")[2])
            parts = whole.parts
            for key in sorted(module.names):
                if not key.endswith("SEARCH"):
                    parts += [f"{key}=", Use((name, key))]
            for star in module.stars:
                parts += ["*=", Use(star)] if _is_ours(star) else [f"*={star[0]}"]
            self._wholes[name] = whole
        return self._wholes[name]


COMPUTED = "*"  # as the last part of a path: any module of this folder
ANY = "*"  # as the name of an attribute: any


@cache
def _own_tree() -> Tree:
    return Tree(SOURCES)


def _tree(sources: Mapping[str, bytes]) -> Tree:
    """The tree of this process is kept; others, which tests make, may have been edited in place."""
    return _own_tree() if sources is SOURCES else Tree(sources)


# ------------------------------------------------------------------------------------------------ from text to modules


@lru_cache(maxsize=512)
def _parsed(name: str, is_folder: bool, text: bytes) -> Module:
    """A file's module; its uses are not resolved yet, so that it does not depend on other files."""
    return _Reader(name, is_folder, ast.parse(text)).module


Scope = dict[str, "Dotted | None"]  # name -> where it is imported from; None: a local name


class _Reader:
    """Reads one file: each definition as a text in which what does not count is left out."""

    def __init__(self, name: str, is_folder: bool, tree: ast.Module) -> None:
        self.module = Module(name, is_folder)
        self.path: Dotted = (name,)
        self.loggers: set[str] = set()
        self.scopes: list[tuple[str, Scope]] = []  # kind, names
        self.module.imports = {path for node in _running(tree.body) for path in self._imported_modules(node)}
        bindings: dict[str, list[ast.stmt]] = {}
        effects: list[ast.stmt] = []
        for node in _running_statements(tree.body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for bound, path in self._imported(node):
                    if bound == "*":
                        self.module.stars.append(path)
                    else:
                        self.module.names.setdefault(bound, []).append(path)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                bindings.setdefault(node.name, []).append(node)
            elif names := _assigned(node):
                for target in names:
                    bindings.setdefault(target, []).append(node)
            elif not _does_nothing(node):
                effects.append(node)
                for target in self._local([node]):  # by a condition, a loop, …
                    bindings.setdefault(target, []).append(node)
        for target, nodes in bindings.items():
            self.module.names.setdefault(target, []).append(Definition(name, target, self._writer(nodes)))
        for target, nodes in bindings.items():
            self._look_at_calls(target, nodes)
        if effects:
            self.module.effects.append(Definition(name, "<import>", self._writer(effects)))
        if _within(name, READERS):
            functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            self.module.facts = [fact for function in functions for fact in self._facts(function)]

    def _look_at_calls(self, target: str, nodes: Sequence[ast.stmt]) -> None:
        """Note a constant whose value calls something that may do something besides."""
        plain = [node for node in nodes if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)]
        calls = [inner.func for node in plain for inner in ast.walk(node) if isinstance(inner, ast.Call)]
        names = [self._external(call) for call in calls]
        if "logging.getLogger" in names:
            self.loggers.add(target)
        elif not target.endswith("SEARCH") and not all(name and "." not in name for name in names):  # all are built in
            self.module.calls += [
                definition for definition in self.module.names[target] if isinstance(definition, Definition)
            ]

    def _writer(self, nodes: Sequence[ast.AST]) -> Callable[[Definition], None]:
        def write(definition: Definition) -> None:
            self.into, self.nodes = definition, nodes
            for node in nodes:
                self._node(node)

        return write

    # ------------------------------------------------------------------------------------------------------- imports

    def _imported(self, node: ast.Import | ast.ImportFrom) -> list[tuple[str, Dotted]]:
        """(Name here, dotted name there) of an import."""
        if isinstance(node, ast.Import):
            names = [alias.name if alias.asname else alias.name.split(".")[0] for alias in node.names]
            return [(alias.asname or name, (name,)) for alias, name in zip(node.names, names, strict=True)]
        base = [node.module] if node.module else []
        if node.level:
            home = self.module.name.split(".")
            above = node.level - self.module.is_folder
            base = [*home[: len(home) - above], *base]
        module = ".".join(base)
        return [
            (alias.asname or alias.name, (module,) if alias.name == "*" else (module, alias.name))
            for alias in node.names
        ]

    def _imported_modules(self, node: ast.AST) -> list[Dotted]:
        if isinstance(node, ast.Import):
            return [(alias.name,) for alias in node.names]
        return [path for _, path in self._imported(node)] if isinstance(node, ast.ImportFrom) else []

    # --------------------------------------------------------------------------------------------------------- names

    def _binding(self, name: str) -> Dotted | None:
        """The dotted name that a name stands for here; None for a local or a built-in one."""
        for depth, (kind, names) in enumerate(reversed(self.scopes)):
            if name in names and (kind != "class" or depth == 0):
                if kind == "class" and names[name] is None:
                    continue  # above its assignment it is the module's
                return names[name]
        if name in self.module.names:
            imported = [binding for binding in self.module.names[name] if not isinstance(binding, Definition)]
            if len(imported) == len(self.module.names[name]) == 1 and not _is_ours(imported[0]):
                return imported[0]  # something of another package, whatever it is called here
            return (*self.path, name)
        if any(_is_ours(star) for star in self.module.stars) and not hasattr(builtins, name):
            return (*self.path, name)
        return None

    def _dotted(self, node: ast.AST) -> Dotted | None:
        """The dotted name of `a` or `a.b.c`, where `a` is no local name."""
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        path = self._binding(node.id)
        return None if path is None else (*path, *reversed(attributes))

    def _external(self, node: ast.AST) -> str | None:
        """The dotted name of something of another package, or the name of something built in."""
        path = self._dotted(node)
        if path is not None:
            return None if _is_ours(path) else ".".join(path)
        local = isinstance(node, ast.Name) and any(node.id in names for _, names in self.scopes)
        return node.id if isinstance(node, ast.Name) and not local and hasattr(builtins, node.id) else None

    @contextmanager
    def _scope(self, kind: str, names: Scope) -> Iterator[None]:
        self.scopes.append((kind, names))
        yield
        self.scopes.pop()

    def _local(self, body: Sequence[ast.AST]) -> Scope:
        """What a function's or a class's body binds: names of imports by what they stand for."""
        bound, imports = _bound(body)
        scope: Scope = {}
        for node in imports:
            for name, path in self._imported(node):
                scope[name] = path if scope.get(name, path) == path else None
        scope.update(dict.fromkeys(bound))  # of an import whose name is bound in other ways, too, see `_import`
        return scope

    # ------------------------------------------------------------------------------------------------------- writing

    def _text(self, text: str) -> None:
        self.into._parts.append(text)

    def _use(self, path: Dotted) -> None:
        if _is_ours(path):
            self.into._parts.append(Use(path))
        else:
            self._text(".".join(path))

    def _node(self, node: object) -> None:
        """Any node: by its own rule, else by its kind and its fields; empty fields are left out."""
        if isinstance(node, list):
            self._text("[")
            for item in node:
                self._node(item)
                self._text(",")
            self._text("]")
        elif not isinstance(node, ast.AST):
            self._text(repr(node))
        elif rule := getattr(self, f"visit_{type(node).__name__}", None):
            rule(node)
        else:
            self._plain(node)

    def _plain(self, node: ast.AST, skip: Iterable[str] = ()) -> None:
        self._text(f"{type(node).__name__}(")
        for name, value in ast.iter_fields(node):
            if value is None or value == [] or name in {*skip, "type_comment", "ctx"}:
                continue
            self._text(f"{name}=")
            self._body(value) if name in ("body", "orelse", "finalbody") and isinstance(value, list) else self._node(
                value
            )
            self._text(" ")
        self._text(")")

    def _body(self, statements: Sequence[ast.AST]) -> None:
        """Statements without docstrings and those that do nothing."""
        self._text("{")
        for node in statements:
            if not _does_nothing(node):
                self._node(node)
                self._text(";")
        self._text("}")

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.into._asks.add(node.value)  # getattr(…, name) may ask for it
        self._text(repr(node.value))

    def visit_Name(self, node: ast.Name) -> None:
        own = bool(self.scopes) and self.scopes[-1][0] == "class" and node.id in self.scopes[-1][1]
        path = None if own and not isinstance(node.ctx, ast.Load) else self._binding(node.id)
        if path is not None:
            self._use(path)
            self._text(f" or own {node.id}" if own else "")
        else:
            self._text(node.id)
            if node.id in ("globals", "eval", "exec", "__import__") and self._external(node):
                self._use(self.path if node.id == "globals" else (*self.path, COMPUTED))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.into._asks.add(node.attr)
        path = self._dotted(node)
        if path is None:
            self._node(node.value)
            self._text(f".{node.attr}")
            return
        self._use(path)
        if ".".join(path) in ("sys.modules", "importlib.import_module"):
            self._use((*self.path, COMPUTED))

    def visit_Call(self, node: ast.Call) -> None:
        name = self._external(node.func)
        if name in ("importlib.import_module", "__import__"):
            self._import_call(node)
            return
        if name in ("pydantic.Field", "pydantic.fields.Field"):
            self._field_call(node)
            return
        if name in LOOKS_UP and any(self._is_built(argument) for argument in node.args[LOOKS_UP[name]]):
            self.into._asks.add(ANY)
        self._plain(node)

    def _is_built(self, node: ast.expr) -> bool:
        """Whether a name of an attribute is put together, so that it stands nowhere as a text."""
        values = [node]
        if isinstance(node, ast.Name):
            assignments = [inner for root in self.nodes for inner in ast.walk(root) if isinstance(inner, ast.Assign)]
            values = [assignment.value for assignment in assignments if node.id in _bound([assignment])[0]]
        kinds = (ast.JoinedStr, ast.BinOp, ast.Call, ast.Attribute)
        return any(isinstance(inner, kinds) for value in values for inner in ast.walk(value))

    def _import_call(self, node: ast.Call) -> None:
        name = node.args[0] if node.args else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith("."):
            self._use((name.value,))
            return
        self._plain(node, skip=["func"])
        self._use((*self.path, COMPUTED))

    def _field_call(self, node: ast.Call) -> None:
        """pydantic's `Field` without checks and texts: a default alone is the default."""
        keywords = [keyword for keyword in node.keywords if keyword.arg not in FIELD_CHECKS | FIELD_TEXTS]
        defaults = [*node.args, *(keyword.value for keyword in keywords if keyword.arg == "default")]
        if len(defaults) == 1 and len(node.args) + len(keywords) == 1:
            self._node(defaults[0])
        else:
            self._text("Field(")
            self._node(node.args)
            self._node(keywords)
            self._text(")")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._external(node.value) == "typing.Annotated" and isinstance(node.slice, ast.Tuple):
            kept = [item for item in node.slice.elts[1:] if not self._only_checks(item)]
            if not kept:
                self._node(node.slice.elts[0])
                return
            self._text("Annotated")
            self._node([node.slice.elts[0], *kept])
            return
        self._plain(node)

    def _only_checks(self, node: ast.expr) -> bool:
        """Whether something in `Annotated[…]` neither converts a value nor gives it a default."""
        if not isinstance(node, ast.Call) or self._external(node.func) not in (
            "pydantic.Field",
            "pydantic.fields.Field",
        ):
            return isinstance(node, ast.Constant)
        return not node.args and all(keyword.arg in FIELD_CHECKS | FIELD_TEXTS for keyword in node.keywords)

    # ----------------------------------------------------------------------------------------------------- statements

    def visit_Assign(self, node: ast.Assign) -> None:
        if not all(isinstance(target, ast.Name) and target.id in self.words for target in node.targets):
            self._assignment(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if self.scopes and self.scopes[-1][0] == "class":
            self._text("Field(")
            self._node(node.target)
            self._annotation(node.annotation)
            if node.value is not None:
                self._text("=")
                self._node(node.value)
            self._text(")")
        elif node.value is not None:
            self._assignment([node.target], node.value)

    def _assignment(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        self._text("Assign(")
        self._node(list(targets))
        self._node(value)
        self._text(")")

    def _annotation(self, node: ast.expr) -> None:
        """Of a class's field: all that pydantic may convert by; elsewhere only what makes it no ordinary field."""
        head = self._external(node.value if isinstance(node, ast.Subscript) else node)
        if self.converts:
            self._type(node)
        elif head in MARKERS:
            self._text(f":{head}")

    def _type(self, node: ast.expr) -> None:
        """An annotation without the choices of a Literal, which refuse but never convert."""
        self._text(":")
        self._node(_WithoutChoices(self).visit(node))

    def visit_Raise(self, node: ast.Raise) -> None:
        self._text("Raise(")
        if isinstance(node.exc, ast.Call):
            call = node.exc
            arguments = [argument for argument in call.args if not _is_text(argument)]
            keywords = [keyword for keyword in call.keywords if not _is_text(keyword.value)]
            self._plain(ast.Call(func=call.func, args=arguments, keywords=keywords))
        else:
            self._node(node.exc)
        self._text(" from ")
        self._node(node.cause)
        self._text(")")

    def visit_Assert(self, node: ast.Assert) -> None:
        self._plain(node, skip=["msg"])

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and self._is_message(node.value.func):
            call = node.value
            arguments = [inner for argument in call.args for inner in _without_words(argument)]
            keywords = [keyword for keyword in call.keywords if not isinstance(keyword.value, ast.Constant)]
            self._plain(ast.Call(func=call.func, args=arguments, keywords=keywords))
        else:
            self._node(node.value)

    def _is_message(self, function: ast.expr) -> bool:
        """Whether a call only says something: a warning, a line of a log."""
        name = self._external(function) or ""
        if name in ("warnings.warn", "print") or name.startswith("logging."):
            return True
        owner = function.value if isinstance(function, ast.Attribute) and function.attr in LOGGING else None
        return isinstance(owner, ast.Name) and owner.id in self.loggers and self._binding(owner.id) is not None

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Within a function: what it binds is followed where it is used, unless the name has other meanings, too."""
        names: Scope = self.scopes[-1][1] if self.scopes else {}
        for bound, path in self._imported(node):
            if not self.scopes or bound == "*" or names.get(bound) is None:
                self._text(f"import {bound} ")
                self._use(path)

    visit_Import = visit_ImportFrom = _import

    # --------------------------------------------------------------------------------------------------------- scopes

    words: frozenset[str] = frozenset()  # local names of texts that only errors say
    converts = True  # whether the fields of the class at hand may be converted by their annotations

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._node(node.decorator_list)
        self._text(f"class {node.name}")
        self._node(node.bases)
        self._node(node.keywords)
        self._node(getattr(node, "type_params", []))
        before, self.converts = self.converts, not self._keeps_fields(node)
        with self._scope("class", self._local(node.body)):
            if len(self.scopes) == 1 and not node.bases and not node.keywords and not self.converts:
                functions = [statement for statement in node.body if isinstance(statement, ast.FunctionDef)]
                self._body([statement for statement in node.body if statement not in functions])
                for function in functions:
                    self._member(node, function)
            else:
                self._body(node.body)
        self.converts = before

    def _member(self, owner: ast.ClassDef, function: ast.FunctionDef) -> None:
        """A function of a class that nobody can call but by its name: no base and no decorator knows of it."""
        scopes, converts = list(self.scopes), self.converts

        def write(member: Definition) -> None:
            self.into, self.nodes, self.scopes, self.converts = member, [function], list(scopes), converts
            self._node(function)
            self.scopes = []

        member = Definition(self.module.name, f"{owner.name}.{function.name}", write)
        member.always = function.name.startswith("__") or not self._decorated_plainly(function)
        self.into._parts.append(member)

    def _keeps_fields(self, node: ast.ClassDef) -> bool:
        """Whether a class is known to take its fields as they come: a plain one, a dataclass, a NamedTuple."""
        decorators = [
            decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list
        ]
        plain = all(self._external(decorator) == "dataclasses.dataclass" for decorator in decorators)
        return plain and all(self._external(base) in ("typing.NamedTuple", "object") for base in node.bases)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._node(node.decorator_list)
        annotated = not self._decorated_plainly(node)
        self._text(f"{type(node).__name__} {node.name}(")
        self._arguments(node.args, annotated)
        if annotated and node.returns is not None:
            self._type(node.returns)
        self._text(")")
        self._node(getattr(node, "type_params", []))
        before, self.converts = self.converts, True
        words, self.words = self.words, self.words | _words_of_errors(node)
        with self._scope("function", {**self._local(node.body), **dict.fromkeys(_arguments(node.args))}):
            self._body(node.body)
        self.converts, self.words = before, words

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def _decorated_plainly(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        """Whether no decorator looks at a function's annotations or keeps it for later."""
        decorators = [
            decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list
        ]
        return all(self._external(decorator) in PLAIN_DECORATORS for decorator in decorators)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._text("lambda(")
        self._arguments(node.args, annotated=False)
        self._text(")")
        with self._scope("function", {**self._local([node.body]), **dict.fromkeys(_arguments(node.args))}):
            self._node(node.body)

    def _arguments(self, node: ast.arguments, annotated: bool) -> None:
        for kind in ("posonlyargs", "args", "vararg", "kwonlyargs", "kwarg"):
            value = getattr(node, kind)
            given = value if isinstance(value, list) else [value] if value else []
            self._text(f"{kind}:")
            for argument in given:
                self._text(f"{argument.arg},")
                if annotated and argument.annotation is not None:
                    self._type(argument.annotation)
        self._node(node.defaults)
        self._node(node.kw_defaults)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        names = {
            inner.id
            for generator in node.generators
            for inner in ast.walk(generator.target)
            if isinstance(inner, ast.Name)
        }
        self._text(f"{type(node).__name__}(")
        self._node(node.generators[0].iter)  # belongs to the scope around it
        with self._scope("function", dict.fromkeys(names)):
            for place, generator in enumerate(node.generators):
                self._text(" for ")
                self._node(generator.target)
                if place:
                    self._node(generator.iter)
                self._node(generator.ifs)
                self._text(str(generator.is_async))
            for part in ("elt", "key", "value"):
                if (value := getattr(node, part, None)) is not None:
                    self._text(f" {part}=")
                    self._node(value)
        self._text(")")

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

    # ---------------------------------------------------------------------------------------------------------- facts

    def _facts(self, function: ast.FunctionDef) -> Iterator[Definition]:
        """Values that a reader gives to names in `FACTS`, with the statements of its function that they come from."""
        for name, value in _named_facts(function):

            def write(definition: Definition, name: str = name, value: ast.expr = value) -> None:
                self.into, self.nodes = definition, [function]
                self._text(f"{self.module.name.rpartition('.')[2]} {name}=")  # two readers may say the same
                scope: Scope = {**self._local(function.body), **dict.fromkeys(_arguments(function.args))}
                with self._scope("function", scope):
                    for node in (value, *_slice(function, value)):
                        self._node(node)

            yield Definition(self.module.name, f"{function.name}:{name}", write)


class _WithoutChoices(ast.NodeTransformer):
    """Takes the choices out of `Literal[…]`, and reads types that are written as texts."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if self.reader._external(node.value) == "typing.Literal":
            return node.value
        return ast.Subscript(value=self.visit(node.value), slice=self.visit(node.slice), ctx=node.ctx)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            try:
                parsed: ast.expr = self.visit(ast.parse(node.value, mode="eval").body)
                return parsed
            except SyntaxError:
                pass
        return node


def _merged(parts: Sequence[str | Use | Definition]) -> list[str | Use | Definition]:
    """The same with one text for several that follow each other."""
    merged: list[str | Use | Definition] = []
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        else:
            merged += ["".join(texts), part]
            texts = []
    return [*merged, "".join(texts)]


def _is_ours(path: Dotted) -> bool:
    """Whether something belongs to the package."""
    return path[0].split(".")[0] == PACKAGE


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _running_statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Without what only type checkers read."""
    for node in body:
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from _running_statements(node.orelse)
        else:
            yield node


def _running(body: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.expr):
            yield node
            waiting += ast.iter_child_nodes(node)


def _does_nothing(node: ast.AST) -> bool:
    """Whether a statement is a docstring, `...` or `pass`."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _assigned(node: ast.stmt) -> list[str]:
    """The names that a top-level statement binds, if it does nothing else."""
    if isinstance(node, ast.Assign):
        targets = [
            inner for target in node.targets for inner in (target.elts if isinstance(target, ast.Tuple) else [target])
        ]
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    else:
        return []
    return (
        [target.id for target in targets if isinstance(target, ast.Name)]
        if all(isinstance(target, ast.Name) for target in targets)
        else []
    )


def _bound(body: Sequence[ast.AST]) -> tuple[list[str], list[ast.Import | ast.ImportFrom]]:
    """The names that a scope binds, and its imports; functions, classes, comprehensions in it are scopes of their own.

    Of a comprehension `:=` binds in the scope around it.
    """
    names: list[str] = []
    imports: list[ast.Import | ast.ImportFrom] = []
    elsewhere: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                names.append(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            waiting += [inner.target for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        elif not isinstance(node, ast.Lambda):
            if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                names.append(node.name)
            elif isinstance(node, ast.MatchMapping) and node.rest:
                names.append(node.rest)
            elif isinstance(node, ast.Global | ast.Nonlocal):
                elsewhere |= set(node.names)
            waiting += ast.iter_child_nodes(node)
    return [name for name in dict.fromkeys(names) if name not in elsewhere], imports


def _arguments(node: ast.arguments) -> list[str]:
    given = [*node.posonlyargs, *node.args, *node.kwonlyargs, *filter(None, (node.vararg, node.kwarg))]
    return [argument.arg for argument in given]


def _is_text(node: ast.expr) -> bool:
    """Whether an argument of an exception is only what it says."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add | ast.Mod) and (_is_text(node.left) or _is_text(node.right))
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute):
            return function.attr in ("format", "join") and _is_text(function.value)
        return isinstance(function, ast.Name) and function.id in ("str", "repr")
    return isinstance(node, ast.JoinedStr)


def _words_of_errors(function: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    """The local names of texts that are read nowhere but in the text of an error."""
    raised = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    texts = [argument for call in raised for argument in call.args if _is_text(argument)]
    in_errors = Counter(node.id for text in texts for node in ast.walk(text) if isinstance(node, ast.Name))
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id in in_errors]
    read = Counter(node.id for node in names if isinstance(node.ctx, ast.Load))
    bound = Counter(node.id for node in names if not isinstance(node.ctx, ast.Load))
    assigned = Counter(
        node.targets[0].id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_text(node.value)
    )
    elsewhere = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    elsewhere |= {
        name for node in ast.walk(function) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names
    }
    return frozenset(
        name
        for name in in_errors.keys() - elsewhere
        if read[name] == in_errors[name] and bound[name] == assigned[name] and bound[name]
    )


def _without_words(node: ast.expr) -> list[ast.expr]:
    """What is computed for a message, without its words."""
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
    return [] if isinstance(node, ast.Constant) and isinstance(node.value, str) else [node]


def _named_facts(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """(Name, value) of keywords and of entries of dictionaries whose names are in `FACTS`."""
    for node in ast.walk(function):
        if isinstance(node, ast.keyword) and node.arg in FACTS:
            yield node.arg, node.value
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in FACTS:
                    yield key.value, value


def _slice(function: ast.FunctionDef, value: ast.expr) -> list[ast.stmt]:
    """The assignments of a function that a value comes from, in their order."""
    assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)]
    wanted = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
    kept: set[ast.stmt] = set()
    while new := [node for node in assignments if node not in kept and wanted & set(_bound([node])[0])]:
        kept.update(new)
        wanted |= {inner.id for node in new for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return sorted(kept, key=lambda node: node.lineno)
