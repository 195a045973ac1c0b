"""Which source decides what a stage computes: its class, and every definition of ours that it reaches by name.

A list kept by hand goes out of date, and then old results pass for new ones. So references are followed: names in the
class, to definitions in its module, to what those import from `transforms` and `lake`, and so on. Comments, docstrings
and layout do not count. The framework itself (`transforms.stage`, errors) is left out: it hands values over and
computes none.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from lake.errors import BadInput

_OURS = ("transforms.", "lake.")
_FRAMEWORK = ("transforms.stage", "transforms.ports", "lake.errors", "lake.box", "lake.volume_spec")

Definition = tuple[str, str]  # module, name


@dataclass(frozen=True, slots=True)
class _Module:
    definitions: dict[str, ast.stmt]
    imports: dict[str, Definition]  # local name -> where it comes from; "" = the module itself


def closure(module: str, name: str) -> dict[Definition, str]:
    """Map every definition reached from `module.name` to what it says."""
    found: dict[Definition, str] = {}
    waiting = [(module, name)]
    while waiting:
        here = waiting.pop()
        if here in found:
            continue
        known = _parsed(here[0])
        node = known.definitions.get(here[1])
        if node is None:
            if here[1] in known.imports:
                waiting += _ours(known.imports[here[1]])
            continue
        found[here] = ast.dump(node)
        for target in _references(node, known):
            # A name may be defined in this module, or have come into it from another one.
            waiting += [target] if target[0] == "" else _ours(target)
        waiting = [(here[0], n) if m == "" else (m, n) for m, n in waiting]
    return found


def whole_module(module: str) -> str:
    """Say what a module says, without docstrings."""
    return ast.dump(_tree(module))


def digest_of(parts: dict[Definition, str]) -> str:
    """Digest definitions, in the order of their names."""
    digest = hashlib.sha256()
    for (module, name), text in sorted(parts.items()):
        digest.update(f"{module}\0{name}\0{text}\0".encode())
    return digest.hexdigest()


def _starts_with_text(body: list[ast.stmt]) -> bool:
    first = body[0] if body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _ours(target: Definition) -> list[Definition]:
    module, name = target
    if not module.startswith(_OURS) or module in _FRAMEWORK:
        return []
    return [(module, name)] if name else []


def _references(node: ast.AST, known: _Module) -> Iterator[Definition]:
    """Yield what a definition refers to; module "" stands for its own."""
    local = dict(known.imports)
    for part in ast.walk(node):
        if isinstance(part, ast.Import | ast.ImportFrom):
            local.update(_imported(part))
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in local:
            module, name = local[part.value.id]
            if name == "" or _is_module(f"{module}.{name}"):
                yield (f"{module}.{name}" if name else module), part.attr
        if isinstance(part, ast.Name):
            if part.id in known.definitions:
                yield "", part.id
            elif part.id in local:
                yield local[part.id]


@lru_cache(maxsize=512)
def _parsed(module: str) -> _Module:
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, Definition] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            definitions.update(
                {t.id: node for target in node.targets for t in ast.walk(target) if isinstance(t, ast.Name)}
            )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            definitions[node.target.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(_imported(node))
    return _Module(definitions, imports)


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, Definition]:
    if isinstance(node, ast.Import):
        return {alias.asname: (alias.name, "") for alias in node.names if alias.asname}
    return {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}


@lru_cache(maxsize=4096)
def _is_module(name: str) -> bool:
    try:
        return name.startswith(_OURS) and find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@lru_cache(maxsize=512)
def _tree(module: str) -> ast.Module:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise BadInput(f"there is no module {module!r}, which a stage names as its kernel", fix="correct the name")
    tree = ast.parse(Path(spec.origin).read_text())
    for part in ast.walk(tree):
        if isinstance(part, ast.Module | ast.ClassDef | ast.FunctionDef) and _starts_with_text(part.body):
            part.body = part.body[1:] or [ast.Pass()]
    return tree
