"""The folders of the package stand in the order of docs/architecture.md, and no import runs up or in a circle."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "iiblpo_jax"
AT_THE_TOP = 14  # files beside the folders: a verb each, and what all of them share

WINGS = [  # from the bottom up
    name.rstrip("/")
    for name in reversed(re.findall(r"^## (\S+)$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE))
]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known) -> set[str]:
    """The package's modules that a file imports, wherever in the file it does so.

    But for what only runs where the file is the program: a program is a verb, wherever it stands.
    """
    tree, found = ast.parse(path.read_text()), set()
    tree.body = [node for node in tree.body if not is_main_block(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & set(known)


def is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def wing(module: str) -> str:
    """The folder a module lives in; what stands loose is a verb."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "verbs"


MODULES = modules()
IMPORTS = {name: imports(path, MODULES) - {name} for name, path in MODULES.items()}


def test_every_folder_has_its_paragraph():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(WINGS) == folders | {"verbs"}


def test_no_import_runs_up():
    def floor(module):
        return WINGS.index(wing(module))

    up = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if other != "iiblpo_jax" and floor(other) > floor(name)
    ]
    assert not up


def test_no_import_runs_in_a_circle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(IMPORTS[name]):
            # A package's own __init__ is run before any of its modules; what it re-exports is not a circle.
            if not name.startswith(f"{other}."):
                visit(other, (*path, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())


def test_little_is_loose_at_the_top():
    loose = sorted(path.name for path in PACKAGE.iterdir() if path.is_file())
    assert len(loose) <= AT_THE_TOP, loose


def test_links_of_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_files_that_the_documents_name_exist():
    """A file with its folder, from wherever in the repository; `file.py` alone may be the reader's own."""
    files = [path.as_posix() for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = re.sub(r"\]\([^)]*\)", "]", document.read_text())  # links are looked at above
        for name in re.findall(r"(?<![\w/.<*{$-])(?:\w+/)+\w+\.py\b", text):
            assert any(file.endswith(f"/{name}") for file in files), f"{document.name}: {name}"
