"""Which cells of a notebook another cell needs: those that make, or change, what it names."""

import ast
import symtable

import nbformat
from IPython.core.inputtransformer2 import TransformerManager


def needed(notebook: nbformat.NotebookNode, starts: str) -> list[int]:
    """Places of the code cells whose words begin with ``starts``, and of all that they need."""
    code = {k: cell for k, cell in enumerate(notebook.cells) if cell.cell_type == "code"}
    names = {k: _names(cell.source) for k, cell in code.items()}
    modules = _modules(cell.source for cell in code.values())
    found = {k for k, cell in code.items() if shows(cell, starts)}
    while True:
        before, wanted = len(found), set()
        for k in sorted(code, reverse=True):
            made, changed, read = names[k]
            if k in found or wanted & (made | changed - modules):
                found.add(k)
                wanted = (wanted - made) | read
        # A function may name what is made further down.
        found |= {k for k in code if wanted & names[k][0]}
        if len(found) == before:
            return sorted(found)


def shows(cell: nbformat.NotebookNode, starts: str) -> bool:
    """Whether the words of one of its outputs begin with ``starts``."""
    words = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return any("".join(said).startswith(starts) for said in words)


def _names(source: str) -> tuple[set[str], set[str], set[str]]:
    """Names that a cell makes, those of earlier things that it may change, and that it reads."""
    made, changed, read = set(), set(), set()
    for statement in _tree(source).body:
        stored, loaded = _globals(symtable.symtable(ast.unparse(statement), "cell", "exec"))
        running = {name for loop in ast.walk(statement) for name in _targets(loop)}
        read |= loaded - running - made
        changed |= {owner for part in ast.walk(statement) for owner in _changed(part)} - made
        made |= stored
    return made, changed, read


def _modules(sources) -> set[str]:
    """Names that are imported."""
    parts = [part for source in sources for part in ast.walk(_tree(source))]
    imports = [part for part in parts if isinstance(part, ast.Import | ast.ImportFrom)]
    return {name.asname or name.name for part in imports for name in part.names}


def _tree(source: str) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(source))


def _globals(table: symtable.SymbolTable) -> tuple[set[str], set[str]]:
    """Global names that are assigned and that are read, in nested scopes, too."""
    stored, loaded = set(), set()
    for symbol in table.get_symbols():
        if table.get_type() == "module" and (symbol.is_assigned() or symbol.is_imported()):
            stored.add(symbol.get_name())
        if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
            loaded.add(symbol.get_name())
    for child in table.get_children():
        loaded |= _globals(child)[1]
    return stored, loaded


def _targets(part: ast.AST) -> set[str]:
    """What a loop, or a ``with``, makes before its body reads it."""
    if isinstance(part, ast.For):
        targets = [part.target]
    elif isinstance(part, ast.With):
        targets = [item.optional_vars for item in part.items if item.optional_vars]
    else:
        return set()
    return {
        name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
    }


def _changed(part: ast.AST) -> set[str]:
    """The owner in ``owner.method(...)``, ``owner.part = ...`` and ``owner[...] = ...``."""
    if isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
        part = part.value.func
    elif not isinstance(getattr(part, "ctx", None), ast.Store):
        return set()
    if not isinstance(part, ast.Attribute | ast.Subscript):
        return set()
    while isinstance(part, ast.Attribute | ast.Subscript):
        part = part.value
    return {part.id} if isinstance(part, ast.Name) else set()
