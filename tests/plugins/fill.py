"""Filling a skeleton: what stands in a file of patches takes the places of the same names in a generated one."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable
from pathlib import Path

__all__ = ["fill"]


def fill(package: Path, patches: Path, *, but: Iterable[int] = ()) -> None:
    """Fill a generated package from a folder of patches: new files are added, places of the others filled.

    but: guarantees whose places are left as they are.
    """
    for patch in sorted(patches.glob("*.py")):
        target = package / patch.name
        if target.exists():
            target.write_text(filled(target.read_text(), patch.read_text(), frozenset(but)))
        else:
            shutil.copy(patch, target)


def filled(skeleton: str, patch: str, but: frozenset[int] = frozenset()) -> str:
    """Return a module with the members of a patch's classes in place of those of the same names.

    Of a function whose body is ``...`` in the patch only the decorators go. What a class does not have is added at its
    end, and what stands outside of classes after the imports of the module.
    """
    lines, patches = skeleton.splitlines(), patch.splitlines()
    module, changes = ast.parse(skeleton), list[tuple[int, int, list[str]]]()  # from line, to line, the new lines
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    imports = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    known = {alias.name for node in imports for alias in node.names}
    for node in ast.parse(patch).body[1:]:  # the first is the docstring
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                changes.append(_change(classes[node.name], member, patches, lines, but))
            continue
        end, new = max(each.end_lineno or 0 for each in imports), patches[node.lineno - 1 : node.end_lineno]
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if alias.name not in known]
            new = [ast.unparse(node)] if node.names else []
        changes.append((end, end, new))
    # From the bottom, so that the numbers of the lines above stay true.
    for _, (start, end, new) in sorted(enumerate(changes), key=lambda each: (-each[1][0], -each[0])):
        lines[start:end] = new
    return "\n".join(lines) + "\n"


def _change(
    target: ast.ClassDef, member: ast.stmt, patches: list[str], lines: list[str], but: frozenset[int]
) -> tuple[int, int, list[str]]:
    new = patches[member.lineno - 1 : member.end_lineno]
    (old,) = [each for each in target.body if _name(each) == _name(member)] or [None]
    if old is None:
        end = target.end_lineno or 0
        return end, end, ["", *new]
    start, end = old.lineno - 1, old.end_lineno or 0
    if not (isinstance(old, ast.FunctionDef) and isinstance(member, ast.FunctionDef)):
        return start, end, new
    marks = [int(ast.unparse(each.args[0])) for each in old.decorator_list if isinstance(each, ast.Call)]
    first = min((each.lineno for each in old.decorator_list), default=old.lineno) - 1
    if but.intersection(marks):
        return first, end, lines[first:end]
    if len(member.body) == 1 and ast.unparse(member.body[0]) == "...":
        return first, start, []
    return first, end, new


def _name(node: ast.stmt) -> str:
    match node:
        case ast.FunctionDef():
            return node.name
        case ast.Assign():
            return ast.unparse(node.targets[0])
        case ast.AnnAssign():
            return ast.unparse(node.target)
    return ""
