"""What an expression of a cell is on one rank, where ranks, sizes and literals alone decide it.

Never evaluates the user's code: everything that is not plainly known is UNKNOWN.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

UNKNOWN: Any = object()
_MAX_RANGE = 64


class RankValues:
    """The names with known values, and what follows from them."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self.known: dict[str, Any] = {
            "rank": rank,
            "local_rank": rank,
            "world_size": world_size,
            "__name__": "__main__",
        }
        """May be changed as the cell assigns; a name that is not here is unknown."""

    def of(self, node: ast.expr) -> Any:
        """What an expression is on this rank, where ranks, sizes and literals say it; else unknown."""
        try:
            return self._plain(node)
        except (ArithmeticError, TypeError, ValueError, KeyError):
            return UNKNOWN

    def _plain(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | str() | None as value):
                return value
            case ast.Name(id=name):
                return self.known.get(name, UNKNOWN)
            case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
                values = tuple(map(self.of, parts))
                return UNKNOWN if UNKNOWN in values else values
            case ast.UnaryOp(op=op, operand=operand):
                return _unary(op, self.of(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return _binary(op, self.of(left), self.of(right))
            case ast.BoolOp(op=op, values=operands):
                return self._bool(isinstance(op, ast.Or), operands)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._comparison([left, *others], ops)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                truth = self.of(test)
                return UNKNOWN if truth is UNKNOWN else self.of(body if truth else orelse)
            case ast.NamedExpr(value=value):
                return self.of(value)
            case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str() as name)):
                return self._environ(name)
            case ast.Call():
                return self._result(node)
            case _:
                return UNKNOWN

    def _bool(self, stops: bool, operands: Sequence[ast.expr]) -> Any:
        values = [self.of(operand) for operand in operands]
        if any(value is not UNKNOWN and bool(value) is stops for value in values):
            return stops
        return UNKNOWN if any(value is UNKNOWN for value in values) else not stops

    def _comparison(self, nodes: Sequence[ast.expr], ops: Sequence[ast.cmpop]) -> Any:
        values = [self.of(node) for node in nodes]
        if any(value is UNKNOWN for value in values):
            return UNKNOWN
        return all(_compare(op, a, b) for a, op, b in zip(values, ops, values[1:], strict=False))

    def _result(self, node: ast.Call) -> Any:
        function, arguments = node.func, node.args
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if not arguments and not node.keywords:
            return {"get_rank": self._rank, "get_world_size": self._world_size, "is_initialized": True}.get(
                name, UNKNOWN
            )
        first = self.of(arguments[0]) if arguments else UNKNOWN
        if first is UNKNOWN:
            return UNKNOWN
        match function:
            case (
                ast.Attribute(value=ast.Attribute(attr="environ"), attr="get") | ast.Attribute(attr="getenv")
            ):
                return self._environ(first)
            case ast.Name(id="int" | "bool" | "str" as kind) if len(arguments) == 1:
                return {"int": int, "bool": bool, "str": str}[kind](first)
            case ast.Name(id="range") if len(arguments) == 1:
                return tuple(range(min(first, _MAX_RANGE)))
            case _:
                return UNKNOWN

    def _environ(self, name: object) -> Any:
        known = {"RANK": self._rank, "LOCAL_RANK": self._rank, "WORLD_SIZE": self._world_size}
        return str(known[name]) if isinstance(name, str) and name in known else UNKNOWN


def _unary(op: ast.unaryop, value: Any) -> Any:
    if value is UNKNOWN:
        return UNKNOWN
    match op:
        case ast.Not():
            return not value
        case ast.USub():
            return -value
        case _:
            return UNKNOWN


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    if not (isinstance(left, int) and isinstance(right, int)):
        return UNKNOWN
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.FloorDiv():
            return left // right
        case ast.Mod():
            return left % right
        case _:
            return UNKNOWN


def _compare(op: ast.cmpop, left: Any, right: Any) -> bool:
    match op:
        case ast.Eq():
            return bool(left == right)
        case ast.NotEq():
            return bool(left != right)
        case ast.Lt():
            return bool(left < right)
        case ast.LtE():
            return bool(left <= right)
        case ast.Gt():
            return bool(left > right)
        case ast.GtE():
            return bool(left >= right)
        case ast.In():
            return left in right
        case ast.NotIn():
            return left not in right
        case ast.Is():
            return left is right
        case ast.IsNot():
            return left is not right
        case _:
            raise TypeError(op)
