"""The documentation is run: every fenced block of every page, in order, in a copy of the repository.

What the language of a fence means:

    python   run as a script, or, below `<!-- file: PATH -->`, written to that file
    diff     applied to the file that `<!-- file: PATH -->` names: context and removed lines must occur there once
    sh       each command is run by bash; below `<!-- exits with N: WHY -->` the last one ends with that code
    text     output, trees and the like: shown, not run

`<!-- not run: WHY -->` above a fence says why it cannot run here.  Its commands are parsed all the same, as are those
that stand within a sentence, and the files and folders of the repository that they name must exist.

README runs first.  Every other page has its own copy of what README has left, so that no page sees another's results.
The code is that of the repository, which processes that are forked have imported already; a page that edits it has a
copy of it, too.  README's study trains on Ray; on other pages the driver trains, see `tests/without_ray.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import lnl
from tests.forked import WITHOUT_RAY, run_command, run_script
from tests.make_fixture import FIXTURE

REPOSITORY = Path(__file__).parents[1]
CODE = ("analysis", "lnl")
FOLDERS = ("analysis", "benchmarks", "cluster", "docs", "lnl", "studies", "tests")
FIRST = "README.md"
PAGES = (  # whose blocks are run
    FIRST,
    "docs/getting-started.md",
    "docs/write-a-study.md",
    "docs/your-data.md",
    "docs/label-errors.md",
    "docs/your-method.md",
    "docs/verdicts.md",
    "docs/search.md",
    "docs/running.md",
    "docs/results-and-notebooks.md",
    "docs/measured-results.md",
    "docs/design.md",
    "CONTRIBUTING.md",
    "cluster/README.md",
    "benchmarks/README.md",
    "analysis/notebooks/README.md",
)
RUN_FROM_A_WHEEL = ("docs/first-study.md",)  # by tests/test_wheel.py, in an empty folder
PLANNED = ("docs/documents.md",)  # by tests/test_documents.py
OTHER_PAGES = (
    "CHANGELOG.md",
    "docs/methods.md",
    "docs/reference.md",
)  # without commands of their own; their links are checked
OTHER_PROGRAMS = {  # whose arguments are not looked at, but for the files that they name
    *("aws", "sbatch", "chmod", "docker", "export", "git", "jupyter", "kubectl", "optuna-dashboard", "pip", "."),
    *("eval", "python3"),
    *("mypy", "pytest", "ruff", "lint-imports", "pre-commit"),
}
MARKER = re.compile(r"<!-- (?P<kind>not run|file|exits with (?P<code>\d+)): (?P<text>.+?) -->", re.DOTALL)
README_LINES = 150
RUNS = "test_the_page_runs"
TIMEOUT = 600  # seconds of a command, however busy the machine is


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    file: str | None = None
    exit_code: int = 0
    not_run: str | None = None  # why

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a shell block: lines, with those that a backslash continues."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def tokens(page: str) -> list[Token]:
    markdown = MarkdownIt("commonmark").enable("table")
    return markdown.parse((REPOSITORY / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[Block]:
    """The page's fences, each with what the comments right above it say."""
    found = []
    markers: list[re.Match[str]] = []
    for token in tokens(page):
        if token.type == "html_block":
            markers = list(MARKER.finditer(token.content))
            comments = token.content.count("<!--")
            assert len(markers) == comments, f"{page}: a comment that no test understands: {token.content}"
        elif token.type == "fence":
            kinds = {marker["kind"].partition(" with ")[0]: marker for marker in markers}
            found.append(
                Block(
                    page,
                    (token.map or [0])[0] + 1,
                    token.info.strip(),
                    token.content,
                    kinds["file"]["text"] if "file" in kinds else None,
                    int(kinds["exits"]["code"]) if "exits" in kinds else 0,
                    kinds["not run"]["text"] if "not run" in kinds else None,
                )
            )
            markers = []
        elif token.nesting >= 0:
            assert not markers, f"{page}: no fence follows the comment {markers[0][0]}"
    return found


CHECKED = (*PAGES, *RUN_FROM_A_WHEEL, *PLANNED)
ALL_BLOCKS = {page: blocks(page) for page in CHECKED}


def test_every_page_is_here() -> None:
    pages = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/*.md")}
    pages |= {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("*.md")}
    assert pages <= {*CHECKED, *OTHER_PAGES}
    assert not [page for page in OTHER_PAGES if blocks(page)], "a page with blocks belongs to those that are run"


@pytest.mark.parametrize("page", CHECKED)
def test_every_block_says_what_it_is(page: str) -> None:
    for block in ALL_BLOCKS[page]:
        assert block.language in ("python", "diff", "sh", "text"), f"{block}: unknown language '{block.language}'"
        assert block.file or block.language != "diff", f"{block}: a diff needs `<!-- file: PATH -->`"
        if block.file:
            page_text = (REPOSITORY / page).read_text(encoding="utf-8")
            assert f"`{block.file}`" in page_text, f"{block}: the reader is not told of the file {block.file}"


# ------------------------------------------------------------------------------------------------------------- running


Outcomes = Mapping[str, Future[None]]  # of pages; `result` raises `Failed`


class Failed(AssertionError):
    """A block of the documentation does not do what the page says."""


def copy_folders(names: Iterable[str], root: Path) -> None:
    """Copy folders of the repository, without what is made there."""
    unwanted = shutil.ignore_patterns("__pycache__", "results", ".*_cache")
    for name in names:
        shutil.copytree(REPOSITORY / name, root / name, ignore=unwanted)


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository in which one page is run."""

    root: Path
    code: Path = REPOSITORY  # the folder with `CODE`

    def copied(self, root: Path, page: str) -> Checkout:
        """Another one, for this page, that starts from what has been done in this one."""
        shutil.copytree(self.root, root, symlinks=True)
        if not any((block.file or "").startswith(CODE) for block in ALL_BLOCKS[page]):
            return Checkout(root, self.code)
        copy_folders(CODE, root)
        return Checkout(root, root)

    @property
    def environment(self) -> dict[str, str]:
        """Of a command: without what this process has of its own, and with this copy's data."""
        ours = ("LNL_", "RAY_", "PYTEST_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        here = {"PYTHONPATH": str(self.code), "LNL_DATA": str(self.root / "data")}
        here["RAY_ADDRESS"] = "local"  # whatever cluster another test, or the developer, has here
        return inherited | here | {"PATH": programs, "MPLBACKEND": "agg"}

    def run(self, page: str) -> None:
        """Run the page's blocks in order.  Raises `Failed`."""
        for block in ALL_BLOCKS[page]:
            self.run_block(block)

    def run_block(self, block: Block) -> None:
        if block.not_run is not None:
            return
        if block.file:
            path = self.root / block.file
            text = block.text if block.language == "python" else patched(path.read_text(encoding="utf-8"), block)
            path.write_text(text, encoding="utf-8")
        elif block.language == "python":
            script = self.root / f"{block.line}-{Path(block.page).stem}.py"
            script.write_text(block.text, encoding="utf-8")
            self._execute(block, block.text, [str(script)], 0)
            script.unlink()
        elif block.language == "sh":
            *others, last = block.commands()
            for command, code in [*((other, 0) for other in others), (last, block.exit_code)]:
                self._execute(block, command.partition(" #")[0].rstrip(), python_script(command), code)

    def _execute(self, block: Block, text: str, script: list[str] | None, code: int) -> None:
        """Run a Python script with its arguments, or, where there is none, a shell's command."""
        try:
            if script:
                words = script if block.page == FIRST else [WITHOUT_RAY, *script]
                done = run_script(words, self.environment, self.root, TIMEOUT)
            else:
                done = run_command(["bash", "-c", text], self.environment, self.root, TIMEOUT)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"{block}: {text}\nwas ended after {TIMEOUT} seconds\n{late.output}{late.stderr}") from None
        if done.returncode != code:
            raise Failed(f"{block}: {text}\nended with {done.returncode}\n{done.stdout}{done.stderr}")


def python_script(command: str) -> list[str] | None:
    """The Python script that a shell's command runs, and its arguments; None where a shell is needed."""
    first, *others = words = shlex.split(command, comments=True)
    if set(command.partition(" #")[0]) & set("&|;<>$*?~"):
        return None
    if first == "lnl":
        return [str(Path(sys.executable).parent / "lnl"), *others]
    return others if first == "python" and words[1].endswith(".py") else None


def patched(text: str, block: Block) -> str:
    """The text with a diff applied that names no line numbers."""
    lines = block.text.splitlines(keepends=True)
    before, after = ("".join(line[1:] or "\n" for line in lines if line[:1] in kept) for kept in (" -\n", " +\n"))
    if text.count(before) != 1:
        raise Failed(f"{block}: {block.file} has these lines {text.count(before)} times, not once:\n{before}")
    return text.replace(before, after)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """What became of each page that is asked for: two at a time, because most commands use one core."""
    first = Checkout(tmp_path_factory.mktemp("pages") / "first")
    copy_folders({*FOLDERS} - {*CODE}, first.root)
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, first.root)
    shutil.copytree(FIXTURE, first.root / "results")  # what `make study` and other studies have left

    with ThreadPoolExecutor(2) as pool:
        readme = pool.submit(first.run, FIRST)

        def run(page: str) -> None:
            readme.result()
            first.copied(first.root.with_name(page.replace("/", "-")), page).run(page)

        asked = [item.callspec.params["page"] for item in request.session.items if item.name.startswith(RUNS)]
        yield {FIRST: readme} | {page: pool.submit(run, page) for page in asked if page != FIRST}


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.not_run for block in ALL_BLOCKS[page])])
def test_the_page_runs(page: str, outcomes: Outcomes) -> None:
    outcomes[page].result()


def test_a_diff_is_applied_where_its_lines_stand_once() -> None:
    block = Block("page", 1, "diff", " a\n-b\n+c\n+d\n", "file")
    assert patched("x\na\nb\n", block) == "x\na\nc\nd\n"
    for text in ("x\nb\n", "a\nb\na\nb\n"):
        with pytest.raises(Failed, match="not once"):
            patched(text, block)


# ------------------------------------------------------------------------------------------- commands that are not run


class Parsed(BaseException):
    """Ends a command once its arguments have been understood."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Check a command without running it.  Studies that pages write are there."""
    understand = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> None:
        raise Parsed(understand(parser, arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    for block in all_blocks():
        if block.file and block.language == "python" and block.file.startswith("studies/"):
            path = tmp_path / block.file
            path.write_text(block.text, encoding="utf-8")
    for path in new_studies():
        shutil.copy(REPOSITORY / "lnl" / "cli" / "templates" / "study.py", tmp_path / path)

    return CommandCheck(tmp_path).check


@dataclass(frozen=True)
class CommandCheck:
    """Checks a command without running it: its program, its arguments, and the files that it names."""

    folder: Path  # where studies that pages write are

    def check(self, line: str) -> None:
        for command in joined_commands(line):
            for word in command:
                if word.split("/")[0] in FOLDERS and "/" in word:
                    assert (REPOSITORY / word).exists() or (self.folder / word).exists(), f"there is no {word}"
            self.program(command[0], command[1:])

    def program(self, program: str, arguments: list[str]) -> None:
        known = {"lnl": self.lnl, "python": self.python, "ray": self.ray, "make": self.make}
        if program in known:
            known[program](arguments)
        else:
            assert program in OTHER_PROGRAMS, f"unknown program {program}"

    def lnl(self, arguments: list[str]) -> None:
        if len(arguments) == 1 or "--help" in arguments:  # a sentence names a command
            with pytest.raises(SystemExit, match=r"^0$"):
                main([*arguments, "--help"])
        else:
            check_study(parsed(lambda: main(arguments)))

    def python(self, arguments: list[str]) -> None:
        if arguments[0].startswith(("studies/", "cluster/")):
            check_study(parsed(lambda: run_file(arguments)), arguments[0])
        else:
            assert arguments[0] in ("-m", "-c") or arguments[0].startswith("benchmarks/"), arguments

    def ray(self, arguments: list[str]) -> None:
        if arguments[0] == "submit" and len(arguments) > 1:
            _, _, study, *further = arguments
            self.python([study, *further[further.index("--") + 1 :]] if "--" in further else [study])
        elif arguments[0] == "exec":
            self.check(arguments[2])
        elif arguments[:2] == ["job", "submit"] and "--" in arguments:
            self.check(shlex.join(arguments[arguments.index("--") + 1 :]))

    def make(self, arguments: list[str]) -> None:
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        for target in arguments:
            assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"


def joined_commands(line: str) -> Iterator[list[str]]:
    """The commands of a line that `&&`, `|` and the like join, without comments and assignments before them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for word in [*lexer, "&"]:
        if set(word) <= set("&|;"):
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
            command.append(word)


def new_studies() -> set[str]:
    """The files that `lnl new study` writes where a page calls it."""
    texts = [block.text for block in all_blocks() if block.language == "sh"]
    return {f"studies/{name}.py" for text in texts for name in re.findall(r"^lnl new study (\w+)", text, re.MULTILINE)}


def all_blocks() -> Iterator[Block]:
    for found in ALL_BLOCKS.values():
        yield from found


def main(arguments: list[str]) -> None:
    from lnl.cli.main import main as command_line

    command_line(arguments)


def run_file(arguments: list[str]) -> None:
    path = Path(arguments[0])
    before = sys.argv
    sys.argv = [str(path), *arguments[1:]]
    try:
        runpy.run_path(str(path if path.exists() else REPOSITORY / path), run_name="__main__")
    finally:
        sys.argv = before


def parsed(act: Callable[[], None]) -> argparse.Namespace:
    """What the command line asks for; one that cannot be understood fails the test."""
    try:
        act()
    except Parsed as understood:
        return understood.options
    except SystemExit as ended:
        raise AssertionError("the arguments are not understood") from ended
    raise AssertionError("the arguments are not understood")


def check_study(options: argparse.Namespace, file: str | None = None) -> None:
    """The study that is named exists and has the preset and the arms."""
    name = file or getattr(options, "study", None)
    if name is None or name.startswith("cluster/") or name == "STUDY":
        return
    study = find(name if "/" not in name or Path(name).exists() else str(REPOSITORY / name))
    preset = getattr(options, "preset", None)
    assert preset is None or preset in study.presets, f"study {study.name} has no preset {preset}"
    for arm in (arm for text in getattr(options, "arms", None) or () for arm in text.split(",")):
        assert arm in study.arms, f"study {study.name} has no arm {arm}"


def find(name: str) -> lnl.Study:
    from lnl.cli.studies import find_study

    return find_study(name)


@pytest.mark.parametrize("page", CHECKED)
def test_commands_that_are_not_run_are_understood(page: str, parse: Callable[[str], None]) -> None:
    commands = [(block, line) for block in ALL_BLOCKS[page] if block.language == "sh" for line in block.commands()]
    checked = [f"{block}: {command}" for block, command in commands if block.not_run is not None]
    for block, command in commands:
        if block.not_run is not None:
            try:
                parse(command)
            except AssertionError as error:
                raise AssertionError(f"{block}: {command}: {error}") from error
    print("\n".join(checked))  # shown by `pytest -s`, and where the test fails


@pytest.mark.parametrize("page", CHECKED)
def test_commands_within_sentences_are_understood(page: str, parse: Callable[[str], None]) -> None:
    for token in tokens(page):
        for part in token.children or ():
            if part.type == "code_inline" and re.match(r"(lnl|make|python|pytest|ray|ruff|mypy) ", part.content):
                try:
                    parse(part.content)
                except AssertionError as error:
                    raise AssertionError(f"{page}: `{part.content}`: {error}") from error


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("lnl statsu robmix_ablation", "not understood"),
        ("lnl status robmix_ablation --perset smoke", "not understood"),
        ("lnl status robmix_ablation --preset smok", "no preset smok"),
        ("python studies/robmix_ablation.py --arms full,frozen", "no arm frozen"),
        ("python studies/robmix.py", "there is no studies/robmix.py"),
        ("ray submit cluster/gpu.yml studies/robmix_ablation.py", "there is no cluster/gpu.yml"),
        ("ray submit cluster/gpu.yaml studies/robmix_ablation.py -- --preset papers", "no preset papers"),
        ("ray exec cluster/gpu.yaml 'lnl stat robmix_ablation'", "not understood"),
        ("make tests", "no target tests"),
        ("lln doctor", "unknown program lln"),
    ],
)
def test_a_wrong_command_is_noticed(command: str, why: str, parse: Callable[[str], None]) -> None:
    with pytest.raises(AssertionError, match=why):
        parse(command)


# --------------------------------------------------------------------------------------------------- links, and README


@pytest.mark.parametrize("page", CHECKED)
def test_files_that_sentences_name_are_there(page: str) -> None:
    written = {block.file for block in all_blocks()} | new_studies()
    for token in tokens(page):
        for part in token.children or ():
            name = part.content.rstrip("/")
            if part.type == "code_inline" and re.fullmatch(rf"({'|'.join(FOLDERS)})/[a-z0-9_./]+", name):
                assert name in written or (REPOSITORY / name).exists(), f"{page}: there is no {name}"


def every_page() -> list[str]:
    roots = [REPOSITORY / folder for folder in FOLDERS]
    paths = [*REPOSITORY.glob("*.md"), *(path for root in roots for path in root.rglob("*.md"))]
    return sorted(str(path.relative_to(REPOSITORY)) for path in paths)


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    parts = tokens(page)
    headings = [after.content for token, after in pairwise(parts) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", text).lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", every_page())
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for token in tokens(page):
        for part in token.children or ():
            target = str(part.attrGet("href" if part.type == "link_open" else "src") or "")
            if not target or re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (REPOSITORY / page).parent / name if name else REPOSITORY / page
            assert path.exists(), f"{page} links to {target}, which is not there"
            if anchor:
                there = str(path.resolve().relative_to(REPOSITORY))
                assert anchor in anchors(there), f"{page} links to {target}: no such heading"


def test_the_readme_is_two_pages() -> None:
    lines = (REPOSITORY / FIRST).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES and max(map(len, lines)) <= 132


def test_the_readme_shows_the_folders_that_are_there() -> None:
    """Its tree names every folder of `lnl/` and `analysis/` with code, and no other."""
    (tree,) = [block.text for block in ALL_BLOCKS[FIRST] if block.text.startswith("studies/")]
    shown: set[str] = set()
    top = ""
    for line in tree.splitlines():
        if names := re.match(r"( *)((?:[a-z]+/ *)+)", line):
            folders = names[2].replace("/", "").split()
            top = top if names[1] else folders[0]
            shown |= {f"{top}/{folder}" for folder in folders} if names[1] else set(folders)
    there = {
        str(path.relative_to(REPOSITORY))
        for top in ("lnl", "analysis")
        for path in (REPOSITORY / top).iterdir()
        if path.is_dir() and not path.name.startswith(("_", "."))
    }
    assert {name for name in shown if "/" in name} == there
    assert {name for name in shown if "/" not in name} == set(FOLDERS)
