"""Rules for all folders: imports point one way, names are unique, docstrings state shapes, commands start fast."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folders that each folder may import from.
MAY_IMPORT = {
    "common": set(),
    "imaging": {"common"},
    "sharding": {"common", "imaging"},
    "model": {"common"},
    "distributed": {"common", "imaging", "sharding", "model"},
    "export": {"common", "imaging", "sharding", "model"},
    "evaluation": {"common", "imaging", "sharding", "model", "distributed", "export"},
    "tune": {"common", "imaging", "sharding", "model", "distributed"},
    "cli": {"common", "imaging", "sharding", "model", "distributed", "evaluation", "tune", "export"},
    # `upfield` itself, which no other folder imports.
    "api": {"common", "imaging", "sharding", "model", "distributed", "evaluation", "tune", "export"},
}
ENTRIES = (
    "sharding.shard",
    "sharding.verify",
    "sharding.preview",
    "sharding.audit",
    "sharding.phantom",
    "distributed.train",
    "evaluation.evaluate",
    "export.to_onnx",
    "export.enhance",
    "export.serve",
    "export.models",
    "tune.sweep",
    "cli.main",
    "cli.demo",
)
HEAVY = ("torch", "ray", "onnxruntime")
ARRAY = re.compile(r"ndarray|NDArray|Tensor")
SHAPE = re.compile(r"`\([^()\n]*,[^()\n]*\)`|shape|scalar", re.IGNORECASE)

FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
TREES = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
PACKAGES = sorted(path.parent for path in TREES if path.name == "__init__.py")
MOST_FILES = 16


def imported_folders(nodes):
    """Yield the folders of this package that `nodes` import, with the line of each import."""
    for node in nodes:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "upfield":
            names = [f"upfield.{alias.name}" for alias in node.names]
        yield from ((([*name.split("."), "api"])[1], node.lineno) for name in names if name.split(".")[0] == "upfield")


def imported_modules(tree):
    """Yield the path below the root of each module and folder of this package that `tree` imports."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            if parts[0] == "upfield":
                # The last part may name a thing in a module.
                paths = (Path(*parts[1:]), Path(*parts[1:-1]))
                yield next((path for path in paths if path in PACKAGES or path.with_suffix(".py") in TREES), paths[0])


def imports_within(folder):
    """Return, for each file and inner folder of `folder`, the others that it imports.

    An inner folder counts as one, except that its `configuration.py` is a part of the schema of `folder`.
    """

    def part_of(module):
        return "configuration" if module.stem == "configuration" else module.with_suffix("").parts[0]

    graph = defaultdict(set)
    for path, tree in TREES.items():
        if path.is_relative_to(folder):
            part = part_of(path.relative_to(folder))
            inside = [module.relative_to(folder) for module in imported_modules(tree) if module.is_relative_to(folder)]
            graph[part] |= {part_of(module) for module in inside if module.parts} - {part}
    return graph


def outside_functions(tree):
    """Yield the nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from outside_functions(node)


def public_functions(tree):
    """Yield the public functions and methods of a module, with their names."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((f"{node.name}.{name}", function) for name, function in public_functions(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node


def signature(function):
    return ast.unparse(function.args) + (ast.unparse(function.returns) if function.returns else "")


def test_imports_point_one_way():
    wrong = [
        f"{path}:{line} imports upfield.{folder}"
        for path, tree in TREES.items()
        for folder, line in imported_folders(ast.walk(tree))
        if folder != path.parts[0] and folder not in MAY_IMPORT[path.parts[0]]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", PACKAGES, ids=str)
def test_the_files_and_inner_folders_of_a_folder_import_one_way(folder):
    TopologicalSorter(imports_within(folder)).prepare()  # raises CycleError and names the cycle


def test_the_folders_of_shard_sets_import_one_way():
    graph = imports_within(Path("sharding"))
    assert "configuration" in graph["shardset"]
    assert graph["shardset"] | graph["cohorts"] | graph["previews"] == {"configuration", "shardset"}
    assert graph["verification"] == {"configuration", "shardset"}
    assert graph["building"] == {"configuration", "shardset", "cohorts", "phantoms", "physics"}
    assert graph["coverage"] == {"configuration", "shardset", "building"}


def test_the_python_interface_imports_inside_functions_only():
    tree = TREES[Path("api/__init__.py")]
    tree = ast.Module([node for node in tree.body if not is_for_type_checkers(node)], [])
    assert list(imported_folders(outside_functions(tree))) == []
    assert [str(path) for path in TREES if path.parts[0] == "api"] == ["api/__init__.py"]


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_the_dispatcher_and_the_demo_import_the_stages_inside_functions_only():
    wrong = [
        f"{path}:{line} imports upfield.{folder}"
        for path, tree in TREES.items()
        if path in (Path("cli/main.py"), Path("cli/demo.py"))
        for folder, line in imported_folders(outside_functions(tree))
        # `common` holds the command grammar and imports nothing heavy.
        if folder not in ("cli", "common")
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_are_absolute():
    relative = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative, "\n".join(relative)


def test_no_file_shadows_a_module_when_a_script_of_its_folder_runs():
    taken = sys.stdlib_module_names | importlib.metadata.packages_distributions().keys()
    assert [str(path) for path in TREES if path.stem in taken] == []


def test_public_functions_have_docstrings_and_those_with_arrays_state_shapes():
    incomplete = []
    for path, tree in TREES.items():
        for name, function in public_functions(tree):
            docstring = ast.get_docstring(function) or ""
            if not docstring or (ARRAY.search(signature(function)) and not SHAPE.search(docstring)):
                incomplete.append(f"{path}:{function.lineno} {name}")
    assert not incomplete, "\n".join(incomplete)


def test_entry_scripts_start_without_heavy_libraries():
    assert [entry for entry in ENTRIES if not (ROOT / f"{entry.replace('.', '/')}.py").is_file()] == []
    entries = [f"upfield.{entry}" for entry in ENTRIES]
    program = (
        "import importlib, sys\n"
        f"for name in {entries}:\n"
        "    importlib.import_module(name)\n"
        f"    found = [heavy for heavy in {HEAVY} if heavy in sys.modules]\n"
        "    assert not found, f'{name} imports {found}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_typings_link_to_the_folders(folder):
    name, target = ("__init__.py", "api/__init__.py") if folder == "api" else (folder, folder)
    link = ROOT / "typings/upfield" / name
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / target


def test_packages_are_the_folders():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert {path.name for path in (ROOT / "typings/upfield").iterdir()} == MAY_IMPORT.keys() - {"api"} | {"__init__.py"}
    names = [f"upfield.{'.'.join(folder.parts)}".removesuffix(".api") for folder in PACKAGES]
    assert sorted(setuptools["packages"]) == sorted(names)
    assert setuptools["package-dir"] == {f"upfield.{folder}".removesuffix(".api"): folder for folder in MAY_IMPORT}
    assert {folder.parts[0] for folder in PACKAGES} == MAY_IMPORT.keys()


def test_the_examples_are_no_package_and_each_has_a_test():
    tests = (ROOT / "tests/examples/test_examples.py").read_text(encoding="utf-8")
    names = {path.name for path in (ROOT / "examples").iterdir() if path.name != "__pycache__"}
    # This folder has the configuration of the starter model, whose training takes hours.
    names.discard("starter")
    assert {path.suffix for path in (ROOT / "examples/starter").iterdir()} <= {".md", ".yaml"}
    assert {name for name in names if f'"{name}"' in tests} == names
    assert {Path(name).suffix for name in names} == {".py", ".yaml", ".ipynb"}


def test_every_folder_of_modules_is_a_package_of_at_most_16_files():
    sizes = Counter(path.parent for path in TREES if path.name != "__init__.py")
    assert sizes.keys() <= set(PACKAGES)
    assert {str(folder): size for folder, size in sizes.items() if size > MOST_FILES} == {}


def test_no_class_name_stands_for_two_things():
    places = defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("folder", [folder for folder in PACKAGES if folder != Path("api")], ids=str)
def test_a_folders_init_is_one_docstring(folder):
    (only,) = TREES[folder / "__init__.py"].body
    assert isinstance(only, ast.Expr)
    assert isinstance(only.value, ast.Constant)
