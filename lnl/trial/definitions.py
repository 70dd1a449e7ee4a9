"""Reads a module into its top-level definitions, each with what it uses, for `lnl.trial.code_hash`.

The text of a definition leaves out what cannot change a number: docstrings, comments, annotations, the texts of
errors, warnings and log lines, and how something is imported.  Annotations of a class's fields are kept, because
pydantic converts values by them, and so are those of a decorated function, because its decorator may read them.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import resolve_name
from itertools import accumulate

FACTS = {"class_names", "flip", "mean", "std"}  # what a reader of a data set says of its images
FIELD_WORDS = {"ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern"}  # they refuse values,
FIELD_WORDS |= {"title", "description", "examples"}  # or say what a field is; neither changes a value
MESSAGES = ("print(", "warnings.warn(", "logger.", "logging.")  # how calls begin that only say something
PLAIN = {  # decorators and bases that register nothing, so that what has them counts only where it is used
    *("abc.ABC", "contextlib.contextmanager", "dataclasses.dataclass", "enum.Enum", "enum.StrEnum", "functools.cache"),
    *("functools.lru_cache", "pydantic.BaseModel", "torch.nn.Module", "torch.no_grad", "typing.Generic"),
    *("typing.NamedTuple", "typing.Protocol", "typing.TypedDict", "typing.overload", "typing.runtime_checkable"),
    *(name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)),
}
UNREAD = ("SEARCH", "__all__")  # how names end that no training reads: of search spaces, of what a module exports

Dotted = tuple[str, ...]  # a dotted name: ("lnl", "functional", "losses", "cross_entropy")
Imports = Mapping[str, list[Dotted]]  # by the name that the import binds, "*" for all names of a module


@dataclass(frozen=True, eq=False)
class Definition:
    """A top-level statement: a function, a class, a constant, or something that the import of its module does."""

    module: Module
    name: str  # empty where it binds none
    node: ast.stmt
    imports: Imports  # those within it

    @cached_property
    def written(self) -> tuple[str, Sequence[Dotted]]:
        """Its text, with marks in the places of the global names that it uses, and these names.

        A name that is global in one of its scopes and local in another is noted, but has no mark.
        """
        source = ast.unparse(self.node)
        used, local = _scopes(symtable.symtable(source, self.name, "exec"))
        names = {name: [*self.imports.get(name, []), *self.module.meaning(name)] for name in sorted(used)}
        marked = {name: paths[0] for name, paths in names.items() if len(paths) == 1 and name not in local}
        marks = _Marks(marked)
        text = ast.unparse(marks.visit(ast.parse(source)))
        return text, [*marks.uses, *(path for name in names if name not in marked for path in names[name])]


class Module:
    """One file: what its top-level names stand for, and what else its import does."""

    def __init__(self, name: str, is_folder: bool, text: bytes) -> None:
        self.name = name
        self.folder = name if is_folder else name.rpartition(".")[0]
        self.names: dict[str, list[Definition | Dotted]] = defaultdict(list)  # a dotted name: it is imported
        self.imported: set[str] = set()  # by any statement: dotted names and all that they begin with
        self.effects: list[Definition] = []  # what may do more than bind a name
        self.facts: list[Definition] = []  # what functions give to names in `FACTS`
        for statement in ast.parse(text).body:
            trim = _Trim()
            nodes = _listed(trim.visit(statement))
            imports = self._imports(trim.imports)
            if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                for alias, paths in imports.items():
                    self.names[alias] += paths
            for node in nodes:
                self._define(node, imports)

    def meaning(self, name: str) -> list[Dotted]:
        """What a global name stands for here; nothing for a built-in one."""
        from_star = "*" in self.names and not hasattr(builtins, name)
        return [(*self.name.split("."), name)] if name in self.names or from_star else []

    def _imports(self, nodes: Sequence[ast.Import | ast.ImportFrom]) -> Imports:
        imports: dict[str, list[Dotted]] = defaultdict(list)
        for node in nodes:
            for alias in node.names:
                if isinstance(node, ast.ImportFrom):
                    home = resolve_name("." * node.level + (node.module or ""), self.folder)
                    path = tuple((home if alias.name == "*" else f"{home}.{alias.name}").split("."))
                    imports[alias.asname or alias.name].append(path)
                else:
                    path = tuple(alias.name.split("."))
                    imports[alias.asname or path[0]].append(path if alias.asname else path[:1])
                self.imported |= set(accumulate(path, "{}.{}".format))
        return imports

    def _define(self, node: ast.stmt, imports: Imports) -> None:
        names = _bound(node)
        if names and all(name.endswith(UNREAD) for name in names):
            return
        definition = Definition(self, names[0] if names else "", node, imports)
        for name in names:
            self.names[name].append(definition)
        if not self._only_binds(node):
            self.effects.append(definition)
        if isinstance(node, ast.FunctionDef) and (facts := _facts(node, self.name)).body:
            self.facts.append(Definition(self, f"facts of {node.name}", facts, imports))

    def _only_binds(self, node: ast.stmt) -> bool:
        """Whether a statement does nothing but define something: no decorator, base or call may register it."""
        if isinstance(node, ast.FunctionDef):
            return all(map(self._is_plain, node.decorator_list))
        if isinstance(node, ast.ClassDef):
            is_made_by_type = all(keyword.arg != "metaclass" for keyword in node.keywords)
            return is_made_by_type and all(map(self._is_plain, [*node.decorator_list, *node.bases]))
        stored = [inner for inner in ast.walk(node) if isinstance(getattr(inner, "ctx", None), ast.Store)]
        calls = any(isinstance(inner, ast.Call) for inner in ast.walk(node))
        return (
            isinstance(node, ast.Assign)
            and not calls
            and all(isinstance(name, ast.Name | ast.Tuple) for name in stored)
        )

    def _is_plain(self, node: ast.expr) -> bool:
        """Whether a decorator or a base is one of `PLAIN`, or a class of this module with such bases alone."""
        if isinstance(node, ast.Call):  # dataclass(frozen=True)
            node = node.func
        if isinstance(node, ast.Subscript):  # Generic[T]
            node = node.value
        first, *rest = ast.unparse(node).split(".")
        bound = self.names[first] if first in self.names else [(first,)]
        return all(
            isinstance(home.node, ast.ClassDef) and self._only_binds(home.node)
            if isinstance(home, Definition)
            else ".".join((*home, *rest)) in PLAIN
            for home in bound
        )


def _bound(node: ast.stmt) -> list[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    symbols = symtable.symtable(ast.unparse(node), "", "exec").get_symbols()
    return [symbol.get_name() for symbol in symbols if symbol.is_assigned()]


def _scopes(table: symtable.SymbolTable, top: bool = True) -> tuple[set[str], set[str]]:
    """The names that are global in some scope of a definition, and those that are local in some."""
    used, local = set(), set()
    reads_global = top or table.get_type() == "class"  # a class's name is global where it is read before it is bound
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (reads_global or symbol.is_global()):
            used.add(symbol.get_name())
        if not top and (symbol.is_local() or symbol.is_free()):
            local.add(symbol.get_name())
    for child in table.get_children():
        within = _scopes(child, top=False)
        used, local = used | within[0], local | within[1]
    return used, local


def _facts(function: ast.FunctionDef, module: str) -> ast.FunctionDef:
    """A function that does only what a reader does for the values of `FACTS`; without any, one without body."""
    values: list[ast.expr] = []
    for node in ast.walk(function):
        if isinstance(node, ast.keyword) and node.arg in FACTS:
            values.append(node.value)
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            values += [value for key, value in pairs if isinstance(key, ast.Constant) and key.value in FACTS]
    body: list[ast.stmt] = [ast.Expr(value) for value in values]
    wanted = _names(values)
    assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign)] if values else []
    for assignment in sorted(assignments, key=lambda node: node.lineno, reverse=True):
        if wanted & _names(assignment.targets):
            wanted |= _names([assignment])
            body.insert(0, assignment)
    name = f"{module.rpartition('.')[2]}_facts"  # two readers may say the same
    return ast.FunctionDef(name, function.args, body, decorator_list=[], lineno=0)


def _names(nodes: Sequence[ast.AST]) -> set[str]:
    return {inner.id for node in nodes for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _listed(nodes: ast.stmt | list[ast.stmt] | None) -> list[ast.stmt]:
    """What a `NodeTransformer` makes of a statement, as a list."""
    return nodes if isinstance(nodes, list) else [nodes] if nodes else []


class _Trim(ast.NodeTransformer):
    """Takes out what cannot change a number, and notes the imports."""

    def __init__(self) -> None:
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.in_class = False

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.imports.append(node)

    visit_ImportFrom = visit_Import

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if _spelling(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return [inner for statement in node.orelse for inner in _listed(self.visit(statement))]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)  # a docstring or `...`

    def visit_ClassDef(self, node: ast.ClassDef | ast.FunctionDef) -> ast.AST:
        before, self.in_class = self.in_class, isinstance(node, ast.ClassDef)
        self.generic_visit(node)
        self.in_class = before
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not node.decorator_list:
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        return self.visit_ClassDef(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if self.in_class:
            return self.generic_visit(node)
        return node.value and self.generic_visit(ast.copy_location(ast.Assign([node.target], node.value), node))

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return self.generic_visit(ast.Assert(node.test))

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            _drop_texts(node.exc)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = _spelling(node.func)
        if f"{name}(".startswith(MESSAGES):
            _drop_texts(node)
        elif name in ("Field", "pydantic.Field"):
            node.keywords = [word for word in node.keywords if word.arg not in FIELD_WORDS]
        return self.generic_visit(node)


def _spelling(node: ast.expr) -> str:
    """The text of `name` or `name.attribute`, nothing for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _drop_texts(call: ast.Call) -> None:
    call.args = [argument for argument in call.args if not _is_text(argument)]
    call.keywords = [keyword for keyword in call.keywords if not _is_text(keyword.value)]


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


class _Marks(ast.NodeTransformer):
    """Replaces dotted names that begin with one of these by marks, equal ones by the same."""

    def __init__(self, names: Mapping[str, Dotted]) -> None:
        self.names = names
        self.uses: list[Dotted] = []

    def visit_Name(self, node: ast.Name | ast.Attribute) -> ast.AST:
        path = self._path(node)
        if path is None or not isinstance(node.ctx, ast.Load):
            return self.generic_visit(node)
        if path not in self.uses:
            self.uses.append(path)
        return ast.Name(f"§{self.uses.index(path)}", ast.Load())

    visit_Attribute = visit_Name

    def _path(self, node: ast.expr) -> Dotted | None:
        if isinstance(node, ast.Attribute):
            path = self._path(node.value)
            return path and (*path, node.attr)
        return self.names.get(node.id) if isinstance(node, ast.Name) else None
