"""Code of the user's own that a study names: `my_method.py`, `my_network.py:narrow`, `package.module:name`.

A reference names a file, from the folder of the study or else from the current one, or a module that can be imported;
after a colon follows something that it defines.  It stands in results and in the ids of trials as it is written, so
that every machine agrees on it.

The text of a file, and of all that it imports from its own folder, is read once, when it is first asked for.  That text
is what is run, what counts in the hash of a trial's code, and what travels to workers (`carried`, `receive`): they need
neither the file nor its folder.  Imports are found as they are written; what is imported by a computed name is not.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import keyword
import os
import pickle
import posixpath
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import decode_source, find_spec, resolve_name, spec_from_loader
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PACKAGES = ("lnl", "analysis")  # the platform's own, also where they lie beside a user's file


class Source(NamedTuple):
    """The text of one module."""

    path: str  # where it was read
    is_package: bool
    text: bytes


@dataclass(frozen=True)
class UserCode:
    """A file, or a module of an installed package, with all that it imports from its own folder or package."""

    place: str  # the reference to it, without what follows a colon
    module: str  # the name under which it is imported
    sources: Mapping[str, Source]  # by the name of the module


_folders: list[Path] = []  # of studies that were loaded, the latest first
_known: dict[str, UserCode] = {}  # by place: what this process has read or received
_modules: dict[str, Source] = {}  # that are imported from these texts
_announced: dict[str, dict[str, str]] = {}  # group of entry points -> name -> reference


def is_reference(name: str) -> bool:
    """Whether a name is that of a user's file or of a dotted module, rather than one of the package's own names."""
    place = name.partition(":")[0]
    return place.endswith(".py") or ("." in place and all(part.isidentifier() for part in place.split(".")))


def normalised(reference: str) -> str:
    """The reference as it stands in results: a file's path from the study's or the current folder, with slashes.

    Raises `ValueError` for an absolute path outside of both, on which two machines would not agree.
    """
    place, colon, name = reference.partition(":")
    if not place.endswith(".py"):
        return reference
    path = Path(place).expanduser()
    if path.is_absolute():
        inside = [folder for folder in _search_folders() if path.is_relative_to(folder)]
        if not inside:
            raise ValueError(
                f"'{place}' lies outside of the study's folder and of the current one, and other machines would not "
                "find it: give its path from one of these folders."
            )
        path = path.relative_to(inside[0])
    return posixpath.normpath(path.as_posix()) + colon + name


def load(reference: str) -> object:
    """What a reference stands for: the module, or what it defines by the name after the colon.

    Raises `ValueError` with one sentence where there is no such file, module or name, and where it cannot be imported.
    """
    code = read(reference)
    module = _import(code)
    name = reference.partition(":")[2]
    try:
        return reduce(getattr, name.split("."), module) if name else module
    except AttributeError:
        defined = ", ".join(public_names(module)) or "nothing"
        raise ValueError(f"{code.place} has no '{name}': it defines {defined}.") from None


def read(reference: str) -> UserCode:
    """The text of what a reference names and of all that it imports from its own folder, as this process first saw it.

    Raises `ValueError` with one sentence where there is none, or where the name of a module of it is taken.
    """
    place = normalised(reference).partition(":")[0]
    if place not in _known:
        is_file = place.endswith(".py")
        root, module = _file(place) if is_file else _installed(place)
        sources = _reachable(root, module)
        if is_file:  # what is installed is imported as usual
            _check_names(place, sources)
            sources = {name: _modules.get(name, source) for name, source in sources.items()}
            _register(sources)
        _known[place] = UserCode(place, module, sources)
    return _known[place]


def script(path: Path) -> Mapping[str, Source]:
    """The text of a script and of all that it imports from its own folder, by the names of the modules, as it is now.

    Raises `ValueError` where the file's name is none that could be imported.
    """
    return _reachable(path.absolute().parent, path.stem)


def public_names(module: ModuleType) -> list[str]:
    """The functions and classes that a module itself defines, in the order of its text, without those with `_`."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]


def search_in(folder: Path) -> None:
    """From now on look for files in this folder first: that of a study."""
    folder = folder.absolute()
    _folders[:] = [folder, *(other for other in _folders if other != folder)]


def announced(group: str) -> Mapping[str, str]:
    """What installed packages announce by the entry points of a group: name -> reference."""
    if group not in _announced:
        _announced[group] = {entry.name: entry.value for entry in entry_points(group=group)}
    return _announced[group]


def carried() -> bytes:
    """All of the user's code that this process has read, for `receive` in another one, on whatever machine.

    Raises `ValueError` where a file has changed since it was read: a notebook would go on with the old text.
    """
    for source in _modules.values():
        path = Path(source.path)
        if path.is_file() and path.read_bytes() != source.text:
            raise ValueError(f"{path} has changed since this process read it: start it again.")
    return pickle.dumps((list(_known.values()), _announced))


def receive(content: bytes) -> None:
    """Use the code that another process has `carried` here in place of what may lie on this machine."""
    codes, announcements = pickle.loads(content)
    _announced.update(announcements)
    for code in codes:
        _known[code.place] = code
        _register(code.sources)


# ------------------------------------------------------------------------------------------------------------- reading


def _search_folders() -> list[Path]:
    """The folders in which files are looked for: of studies, of the script that is run, and the current one."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None) or ""
    is_script = file.endswith(".py") and getattr(main, "__spec__", None) is None  # else it is run by `python -m`
    scripts = [Path(file).absolute().parent] if is_script else []
    return list(dict.fromkeys([*_folders, *scripts, Path.cwd()]))


def _file(place: str) -> tuple[Path, str]:
    """The folder of a file and the name under which it is imported."""
    folders = _search_folders()
    path = next((folder / place for folder in folders if (folder / place).is_file()), None)
    if path is None:
        raise ValueError(f"there is no file '{place}' in {' or in '.join(map(str, folders))}.")
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise ValueError(
            f"'{place}' cannot be imported: rename the file, to letters, digits and underscores before the '.py'."
        )
    return path.parent, path.stem


def _installed(module: str) -> tuple[Path, str]:
    """The folder that holds the package of a module, and the module's name."""
    try:
        spec = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent, module
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        return Path(spec.origin).parent, module
    raise ValueError(f"there is no module '{module}' that can be imported: install its package, or give a file.")


def _reachable(root: Path, module: str) -> dict[str, Source]:
    """The module and all that it imports below `root`, packages that hold them included."""
    sources: dict[str, Source] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        source = None if name in sources or name.partition(".")[0] in PACKAGES else _source(root, name)
        if source is None:
            continue
        sources[name] = source
        *parents, _ = accumulate(name.split("."), "{}.{}".format)
        for parent in parents:
            if _source(root, parent) is None:  # a folder without `__init__.py`
                sources[parent] = Source(str(root.joinpath(*parent.split("."), "__init__.py")), True, b"")
        waiting += [*parents, *_imports(source, name)]
    if module not in sources:
        raise ValueError(f"there is no file of Python with the module '{module}' in {root}.")
    return sources


def _source(root: Path, name: str) -> Source | None:
    stem = root.joinpath(*name.split("."))
    for path, is_package in ((stem / "__init__.py", True), (stem.parent / f"{stem.name}.py", False)):
        if path.is_file():
            return Source(str(path), is_package, path.read_bytes())
    return None


def _imports(source: Source, name: str) -> Iterator[str]:
    """The names of all modules that any statement of a source may import, and of what these lie in."""
    package = name if source.is_package else name.rpartition(".")[0]
    try:
        nodes = list(ast.walk(ast.parse(source.text)))
    except (SyntaxError, ValueError):  # the import says it better
        return
    for node in nodes:
        names: Sequence[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            home = "." * node.level + (node.module or "")
            names = [f"{home}{'' if home.endswith('.') else '.'}{alias.name}" for alias in node.names]
        for dotted in names:
            with contextlib.suppress(ImportError):  # beyond its package
                yield from accumulate(resolve_name(dotted, package).split("."), "{}.{}".format)


# ----------------------------------------------------------------------------------------------------------- importing


class _Texts(MetaPathFinder, ExecutionLoader):
    """Imports modules from the texts in `_modules`, before the path is searched."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name in _modules else None

    def get_filename(self, name: str) -> str:
        return _modules[name].path

    def get_source(self, name: str) -> str:
        return decode_source(_modules[name].text)

    def is_package(self, name: str) -> bool:
        return _modules[name].is_package


_TEXTS = _Texts()


def _register(sources: Mapping[str, Source]) -> None:
    _modules.update(sources)
    if _TEXTS not in sys.meta_path:
        sys.meta_path.insert(0, _TEXTS)


def _check_names(place: str, sources: Mapping[str, Source]) -> None:
    """Raise `ValueError` where a module of a file would be mistaken for another one."""
    for name, source in sources.items():
        if name in sys.stdlib_module_names:
            raise ValueError(f"{source.path} has the name of a module of Python itself: rename it.")
        other = _modules.get(name) or getattr(sys.modules.get(name), "__file__", None) or source.path
        path = other if isinstance(other, str) else other.path
        if os.path.abspath(path) != os.path.abspath(source.path):
            raise ValueError(f"{place} needs {source.path}, but '{name}' is already {path}: rename one of the two.")


def _import(code: UserCode) -> ModuleType:
    try:
        return importlib.import_module(code.module)
    except (Exception, SystemExit) as error:  # whatever a user's file does
        del _known[code.place]  # a corrected file is read anew
        for name in code.sources.keys() & _modules.keys():
            del _modules[name]
            sys.modules.pop(name, None)
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        where = _line(error, code)
        raise ValueError(f"{code.place} cannot be loaded ({type(error).__name__}: {reason}{where}).") from error


def _line(error: BaseException, code: UserCode) -> str:
    """The file and line at which an import failed, where they are not in the error's own words."""
    paths = {source.path for source in code.sources.values()}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in paths]
    return f"; {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
