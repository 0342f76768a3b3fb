"""The layers of the package: imports go downwards only, files stay short, and each name is defined once."""

import ast
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter

from conftest import ROOT

PACKAGE = 'yolov7_simple'
# A folder may import from those on the lines below its own, and not from one on the same line.
TIERS = [
    {'tools', 'configs'},
    {PACKAGE},  # its __init__.py, which registers everything
    {'doctor'},
    {'report', 'own_data', 'deploy'},
    {'engine', 'apis', 'evaluation'},
    {'models', 'datasets'},
    {'visualization', 'utils'},
    {'runtime', 'ops'},
]
TIER_OF = {folder: i for i, tier in enumerate(TIERS) for folder in tier}
MAX_LINES = 350


def read_modules():
    """Name -> syntax tree, of all modules of the package (`models.head`) and of the tools (`tools.detect`)."""
    trees = {}
    for root in (ROOT / PACKAGE, ROOT / 'tools'):
        for path in sorted(root.rglob('*.py')):
            parts = path.relative_to(root).with_suffix('').parts
            if '.mim' in parts:  # of an editable install: links to configs and tools
                continue
            name = f'tools.{path.stem}' if root.name == 'tools' else '.'.join(p for p in parts if p != '__init__')
            trees[name or PACKAGE] = ast.parse(path.read_text(encoding='utf-8'))
    return trees


MODULES = read_modules()
PACKAGES = {'.'.join(path.parent.relative_to(ROOT / PACKAGE).parts) for path in (ROOT / PACKAGE).rglob('__init__.py')}


def imported_names(module):
    """Full dotted names that a module imports, wherever in the file: `yolov7_simple.models.head.YOLOv7SimpleHead`."""
    is_tool, is_package = module.startswith('tools.'), module in PACKAGES or module == PACKAGE
    parents = [] if module == PACKAGE else module.split('.')
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                assert not is_tool, f'{module} imports relatively, but the tools are no package'
                outer = parents[: len(parents) + is_package - node.level]
                base = '.'.join([PACKAGE, *outer, *filter(None, [base])])
            yield from (f'{base}.{alias.name}' for alias in node.names)


def imported_modules(module):
    """Modules of ours that a module imports, without itself."""
    found = set()
    for name in imported_names(module):
        parts = name.split('.')
        if parts[0] == PACKAGE:
            inner = parts[1:]
            while inner and '.'.join(inner) not in MODULES:
                inner = inner[:-1]
            found.add('.'.join(inner) or PACKAGE)
        elif module.startswith('tools.') and f'tools.{parts[0]}' in MODULES:
            found.add(f'tools.{parts[0]}')
    return found - {module}


def top_level_names(tree):
    """Functions, classes and variables that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        for target in getattr(node, 'targets', [getattr(node, 'target', None)]):
            yield from (name.id for name in ast.walk(target or ast.Pass()) if isinstance(name, ast.Name))


def folder_of(module):
    return module.split('.')[0]


def test_imports_go_downwards():
    wrong = []
    for module in MODULES:
        for target in imported_modules(module):
            here, there = folder_of(module), folder_of(target)
            if here != there and TIER_OF[here] >= TIER_OF[there]:
                wrong.append(f'{module} imports {target}')
    assert not wrong


def test_imports_have_no_circles():
    try:
        TopologicalSorter({module: imported_modules(module) for module in MODULES}).prepare()
    except CycleError as error:
        raise AssertionError(f'imports in a circle: {" -> ".join(error.args[1])}') from None


def test_the_runtime_needs_little():
    allowed = {*sys.stdlib_module_names, PACKAGE, 'numpy', 'cv2', 'onnxruntime', 'openvino', 'trackers', 'supervision'}
    wrong = [
        f'{module} imports {name}'
        for module in MODULES
        if folder_of(module) == 'runtime'
        for name in imported_names(module)
        if name.split('.')[0] not in allowed
    ]
    assert not wrong


def test_files_fit_one_sitting():
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / PACKAGE).rglob('*.py')}
    assert not {
        str(path): length for path, length in lengths.items() if length > MAX_LINES and '.mim' not in path.parts
    }


def test_a_name_is_defined_once():
    owners, foreign = defaultdict(list), defaultdict(list)
    for module, tree in MODULES.items():
        if folder_of(module) == 'tools':
            continue
        for name in set(top_level_names(tree)):
            if not name.startswith('_'):  # private names may repeat
                owners[name].append(module)
        for name in imported_names(module):
            if not name.startswith(PACKAGE):
                foreign[name.split('.')[-1]].append(f'{module} (from {name})')
    several = {name: modules for name, modules in owners.items() if len(modules) > 1}
    assert not several
    assert not {name: [*owners[name], *users] for name, users in foreign.items() if name in owners}
