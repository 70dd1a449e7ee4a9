"""A hash of the code that can change a trial's numbers, by which a stored result is current or stale.

Counted are top-level definitions (functions, classes, constants), not files: from what every trial runs (`ROOTS`) and
from what its method's file offers (`ENTRIES`), each name that a definition uses is followed, through imports, to the
definition that it stands for.  A class counts whole.  So does a module of which more is used than its plain names, as
in `getattr(module, name)` or by a star.  Statements that do more than define something, such as setting a flag of
torch, count for every trial that imports their module.  Two things are not followed: a module that is imported by a
computed name, as methods are, and a text that names a definition.  Only `lnl.methods.load` does so (a test holds it).
A method or a network of the user's own is followed from what is asked of it, within its own folder or package.

Not counted are docstrings, comments, annotations, the texts of errors, warnings and log lines, the spelling of imports,
and what `APART` names: storage, search spaces, readers of data sets, figures.  See `lnl.trial.definitions`.

A definition is known by its text and by the definitions that it uses, never by its module: moving one to another file
changes no hash.  Renaming one is an edit.  Hashes begin with `RULE`, which is raised where this rule itself changes.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import accumulate, chain
from pathlib import Path

from lnl import methods
from lnl.storage.places import short_hash
from lnl.system import user_code
from lnl.system.user_code import UserCode
from lnl.trial.definitions import Definition, Dotted, Module

RULE = "3-"  # before it "2-", where classes counted that nothing uses, and at first whole files, without a prefix

ROOTS = ("lnl.trial.run.run", "lnl.trial.config.Trial", "lnl.storage.outcomes.selection_rules")
PACKAGE = "lnl"
METHODS = "lnl.methods"
ENTRIES = ("Config", "Method", "USES")  # what is asked of a method's file
READERS = "lnl.data"  # what they read has its own hash in every row, but not what they say of it: `Module.facts`
APART = (  # what nothing else is followed into, though trials use it
    READERS,
    "lnl.declaring",
    "lnl.space",  # what a search may try
    "lnl.storage",
    "lnl.system",
    "lnl.trial.code_hash",
    "lnl.trial.definitions",
    "lnl.trial.evaluation._histogram",  # arrays for figures, and the epochs that have them
    "lnl.trial.evaluation.embed",
    "lnl.trial.evaluation.embedding_epochs",
    "lnl.trial.outputs",
    "lnl.trial.provenance",
)


def read_sources(root: Path) -> dict[str, bytes]:
    """The text of every module of the package below `root`, by its path relative to `root`."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted((root / PACKAGE).rglob("*.py"))}


ROOT = Path(__file__).parents[2]  # the folder that holds the package
SOURCES = read_sources(ROOT)


def joined(hashes: Sequence[str]) -> str:
    """One hash of several: of a trial's code and of the code of what it starts from.  A single one stays as it is."""
    return hashes[0] if len(hashes) == 1 else RULE + short_hash("".join(hashes))


@cache
def sources_digest() -> str:
    """Digest of the text of all modules as this process has read them: equal where two machines run the same code."""
    return short_hash(repr(sorted(SOURCES.items())))


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


class Tree:
    """The package of one text, with the modules of a user's own code."""

    def __init__(self, sources: Mapping[str, bytes], own: Iterable[UserCode] = ()) -> None:
        self.sources = {_module_name(path): (path.endswith("/__init__.py"), text) for path, text in sources.items()}
        for code in own:
            self.sources |= {name: (source.is_package, source.text) for name, source in code.sources.items()}
        self.packages = {name.partition(".")[0] for name in self.sources}
        self.stands_for, self.uses = cache(self._resolved), cache(self._used)

    def hash(self, method: str | None, parts: Sequence[str] = ()) -> str:
        """The hash of all code that counts for a method, see `counted`.

        Each definition is hashed with the hashes of what it uses, again and again until no two more can be told apart.
        """
        written = {
            definition: (definition.written[0], self.uses(definition)) for definition in self.counted(method, parts)
        }
        hashes = dict.fromkeys(written, "")
        while True:
            refined = {
                definition: short_hash(
                    "\n".join([text, *(use if isinstance(use, str) else hashes[use] for use in uses)])
                )
                for definition, (text, uses) in written.items()
            }
            if len(set(refined.values())) == len(set(hashes.values())):
                return RULE + short_hash("".join(sorted(set(refined.values()))))
            hashes = refined

    def counted(self, method: str | None, parts: Sequence[str] = ()) -> list[Definition]:
        """All definitions that count for a method of the package, or with None for the `parts` alone.

        `parts`: dotted names of the user's own code that a trial asks for.  Raises `LookupError` for an unknown method.
        """
        if method is not None and f"{METHODS}.{method}" not in self.sources:
            raise LookupError(f"There is no method '{method}' in {METHODS.replace('.', '/')}.")
        entries = [] if method is None else [f"{METHODS}.{method}.{entry}" for entry in ENTRIES]
        roots = [*ROOTS, *entries, *parts]
        found = [target for root in roots for target in self.stands_for(_dotted(root), _part(root))]
        found += self._effects(start for root in roots for start in accumulate(_dotted(root), "{}.{}".format))
        found += [fact for reader in self.sources if _part(reader) == READERS for fact in self._module(reader).facts]
        counted = {target: None for target in found if isinstance(target, Definition)}
        waiting = list(counted)
        while waiting:
            new = {target: None for target in self.uses(waiting.pop()) if isinstance(target, Definition)}
            waiting += [target for target in new if target not in counted]
            counted |= new
        return list(counted)

    def _effects(self, modules: Iterable[str]) -> list[Definition]:
        """What is done by the imports of these modules, and of all that these import."""
        waiting = list(modules)
        effects: dict[str, list[Definition]] = {}
        while waiting:
            name = waiting.pop()
            if name in self.sources and name not in effects:
                module = self._module(name)
                effects[name] = [
                    effect for effect in module.effects if not (effect.name and _part(f"{name}.{effect.name}"))
                ]
                waiting += module.imported
        return list(chain.from_iterable(effects.values()))

    def _used(self, definition: Definition) -> list[Definition | str]:
        """What the marks in a definition's text stand for."""
        user = _part(definition.module.name)
        return [target for path in definition.written[1] for target in ("§", *self.stands_for(path, user))]

    def _resolved(self, path: Dotted, user: str) -> list[Definition | str]:
        """The definitions behind a dotted name, and as texts the names of what is not followed, attributes of what is.

        `user`: the part of `APART` in which the name is used, if any.
        """
        found: dict[Definition | str, None] = {}
        waiting = [path]
        for path in waiting:  # which grows meanwhile
            if path[0] not in self.packages:
                found[".".join(path)] = None
                continue
            module, rest = self.split(path)
            followed = _part(".".join((module.name, *rest[:1]))) in ("", user)
            bound = module.names.get(rest[0], []) if rest else []
            definitions = [target for target in bound if isinstance(target, Definition)]
            further: list[Dotted] = [(*home, *rest[1:]) for home in bound if not isinstance(home, Definition)]
            if not followed and not further:
                found[".".join(rest or path[-1:])] = None
            elif definitions:
                found |= dict.fromkeys([*definitions, ".".join(rest[1:])])
            elif not bound:  # the whole module, or something that it makes while the program runs
                found[".".join(rest)] = None
                further = [(*_dotted(module.name), name) for name in sorted(module.names)]
            waiting += [path for path in further if path not in waiting]
        return list(found)

    def split(self, path: Dotted) -> tuple[Module, Dotted]:
        """The module that a dotted name begins with, and what is asked of it."""
        end = max(end for end in range(len(path) + 1) if ".".join(path[:end]) in self.sources)
        return self._module(".".join(path[:end])), path[end:]

    def _module(self, name: str) -> Module:
        return _read(name, *self.sources[name])


@lru_cache(maxsize=512)
def _read(name: str, is_folder: bool, text: bytes) -> Module:
    """A module is read on its own, so that it is known in all trees that have its text."""
    return Module(name, is_folder, text)


def _part(name: str) -> str:
    """The part of `APART` in which something lies; empty where it lies in none."""
    return next((part for part in APART if f"{name}.".startswith(f"{part}.")), "")


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _dotted(name: str) -> Dotted:
    return tuple(name.split("."))


_OWN = Tree(SOURCES)
_hashes: dict[tuple[str, str | None], str] = {}  # those that this process knows, by method and own network


def carried() -> tuple[str, dict[tuple[str, str | None], str]]:
    """The hashes that this process knows, and the digest of its text, for `receive` in another one."""
    return sources_digest(), dict(_hashes)


def receive(digest: str, hashes: Mapping[tuple[str, str | None], str]) -> None:
    """Know what another process has `carried`, if it runs the same text: reading all of it takes most of a second.

    Both run the same code of the user's own, which is carried as text.
    """
    if digest == sources_digest():
        _hashes.update(hashes)


def code_hash(method: str, network: str = "") -> str:
    """Hash of the code that can change the numbers of a trial of `method`, as this process has read it at its start.

    A network counts by its name only where it is the user's own: the package's own ones count for every trial.
    Raises `LookupError` for an unknown method.
    """
    key = method, network if user_code.is_reference(network) else None
    if key not in _hashes:
        _hashes[key] = _hash(*key)
    return _hashes[key]


def _hash(method: str, own_network: str | None) -> str:
    own_method = methods.reference(method)
    parts = [] if own_method is None else [f"{_root(own_method)}.{entry}" for entry in ENTRIES]
    parts += [] if own_network is None else [_root(own_network)]
    codes = [user_code.read(each) for each in (own_method, own_network) if each is not None]
    tree = Tree(SOURCES, codes) if codes else _OWN
    return tree.hash(method if own_method is None else None, parts)


def _root(reference: str) -> str:
    """The dotted name of what a reference stands for."""
    return ".".join(filter(None, [user_code.read(reference).module, reference.partition(":")[2]]))
