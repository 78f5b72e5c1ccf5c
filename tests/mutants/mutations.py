"""Small changes to a module's source, each of which makes it another program: what a good test notices."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

from msgspec import Struct

_OTHER_COMPARISON: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
}  # fmt: skip
_BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip
_OTHER_OPERATOR: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.Mult: ast.Add,
}  # fmt: skip


class Mutant(Struct, frozen=True):
    """One change: where it is, in words, and the whole source with it."""

    line: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    inert = _inert(tree)
    for at, node in enumerate(list(ast.walk(tree))):
        if node in inert:
            continue
        for number, _ in enumerate(_changes(node)):
            changed = copy.deepcopy(tree)
            victim = list(ast.walk(changed))[at]
            before = ast.unparse(victim)
            replacement = list(_changes(victim))[number]
            mutated = _replace(changed, victim, replacement)
            after = ast.unparse(replacement) if replacement is not None else "(nothing)"
            text = ast.unparse(ast.fix_missing_locations(mutated))
            yield Mutant(getattr(node, "lineno", 0), f"{_short(before)} → {_short(after)}", text)


def _inert(tree: ast.Module) -> set[ast.AST]:
    """What a change of shows nothing about the tests: no program without it, or none but with it."""
    found: set[ast.AST] = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            found |= set(ast.walk(node.annotation))  # never evaluated: `from __future__ import annotations`
        elif isinstance(node, ast.arg | ast.FunctionDef) and (note := _annotation(node)) is not None:
            found |= set(ast.walk(note))
        elif isinstance(node, ast.ClassDef):
            found |= {part for keyword in node.keywords for part in ast.walk(keyword)}  # frozen=True
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.List) and not node.value.elts:
            found.add(node)
        elif isinstance(node, ast.Expr) and ast.unparse(node).startswith("assert_never"):
            found |= set(ast.walk(node))
    return found


def _annotation(node: ast.arg | ast.FunctionDef) -> ast.expr | None:
    return node.annotation if isinstance(node, ast.arg) else node.returns


def _changes(node: ast.AST) -> Iterator[ast.AST | None]:
    """What could stand in this node's place; None: nothing."""
    match node:
        case ast.Compare(left, [op], [right]):
            yield ast.Compare(left, [_OTHER_COMPARISON[type(op)]()], [right])
            if type(op) in _BOUNDARY:
                yield ast.Compare(left, [_BOUNDARY[type(op)]()], [right])
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
            for left_out in range(len(values)):
                rest = values[:left_out] + values[left_out + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, op, right) if type(op) in _OTHER_OPERATOR:
            yield ast.BinOp(left, _OTHER_OPERATOR[type(op)](), right)
        case ast.AugAssign(target, op, value) if type(op) in _OTHER_OPERATOR:
            yield ast.AugAssign(target, _OTHER_OPERATOR[type(op)](), value)
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.Constant(value) if isinstance(value, bool):
            yield ast.Constant(not value)
        case ast.Constant(value) if isinstance(value, int | float):
            yield ast.Constant(value + 1)
        case ast.List(elements) if any(isinstance(e, ast.Starred) for e in elements):
            for left_out in range(len(elements)):  # one of the effects is forgotten
                yield ast.List(elements[:left_out] + elements[left_out + 1 :], ast.Load())
        case ast.Return(ast.List() | ast.Call()):
            yield ast.Return(ast.List([], ast.Load()))
        case ast.Expr(ast.Call()) | ast.Assign() | ast.AugAssign():
            yield None
        case _:
            return


class _Exchange(ast.NodeTransformer):
    def __init__(self, victim: ast.AST, replacement: ast.AST | None) -> None:
        self._victim, self._replacement = victim, replacement

    def visit(self, node: ast.AST) -> ast.AST | None:
        if node is self._victim:
            return self._replacement or ast.Pass()
        return super().generic_visit(node)


def _replace(tree: ast.AST, victim: ast.AST, replacement: ast.AST | None) -> ast.AST:
    changed = _Exchange(victim, replacement).visit(tree)
    assert changed is not None
    return changed


def _short(text: str) -> str:
    return " ".join(text.split())[:90]
