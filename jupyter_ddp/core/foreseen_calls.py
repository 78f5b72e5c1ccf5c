"""What one rank will call, read from a cell's syntax tree: as far as that is known.

Owns the way through the tree: what a rank's number decides is decided, everything else may go either way.
Point-to-point calls, groups that are named and functions that are only defined are left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from jupyter_ddp.core.rank_values import UNKNOWN, RankValues

GROUP_AT = {
    "all_reduce": 2, "all_reduce_coalesced": 2, "broadcast": 2, "reduce": 3, "all_gather": 2,
    "all_gather_into_tensor": 2, "all_gather_single": 2, "all_gather_object": 2, "gather": 3,
    "gather_object": 3, "scatter": 3, "scatter_object_list": 3, "reduce_scatter": 3,
    "reduce_scatter_tensor": 3, "reduce_scatter_single": 3, "all_to_all": 2, "all_to_all_single": 4,
    "broadcast_object_list": 2, "barrier": 0, "monitored_barrier": 0, "new_group": -1,
}  # fmt: skip
"""torch.distributed's collectives, and the position of their argument `group`."""

_UNMISTAKABLE = {name for name in GROUP_AT if "all_" in name or "scatter_" in name or "object" in name}
"""What is a collective also where a cell has not imported it: the last cell may have."""

_MAX_DEPTH = 20
_Leaves = Literal["", "loop", "function", "cell"]
"""What a statement surely leaves: nothing, the innermost loop, the function, the cell."""


class Site(NamedTuple):
    line: int
    column: int
    operation: str


class Condition(NamedTuple):
    """A test that decides whether something runs, and which way; `words` is how a remark names it."""

    test: ast.expr
    words: str


class Either(NamedTuple):
    """What may be called, or something else."""

    ways: tuple[Trace, ...]


Trace = tuple["str | Either", ...]
"""The operations that a rank calls, in order."""


class ForeseenCalls:
    """Follows the tree as one rank would, as far as that is known."""

    def __init__(self, tree: ast.Module, rank: int, world_size: int) -> None:
        self._values = RankValues(rank, world_size)
        self._modules = {"dist"}
        self._imported: dict[str, str] = {}
        self._bound: set[str] = set()
        self._functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self._calling: list[str] = []
        self._conditions: list[Condition] = []
        self._called: list[str | Either] = []
        self.decided: dict[int, bool | None] = {}
        """Of each test, by its id: how it ends on this rank, None if that is not known."""
        self.sites: dict[Site, tuple[Condition, ...]] = {}
        """The calls that this rank may come to, and under which conditions."""
        self.exits: list[tuple[int, str]] = []
        """(line, words) where this rank leaves the cell, a function or a loop by a condition."""
        self._block(tree.body)
        self.trace: Trace = tuple(self._called)

    # statements

    def _block(self, body: Iterable[ast.stmt]) -> _Leaves:
        for statement in body:
            if leaves := self._statement(statement):
                return leaves
        return ""

    def _statement(self, node: ast.stmt) -> _Leaves:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._functions[node.name] = node
                self._bind(node.name, UNKNOWN)
            case ast.ClassDef():
                self._bind(node.name, UNKNOWN)
            case ast.Import() | ast.ImportFrom():
                self._import(node)
            case ast.If():
                return self._if(node)
            case ast.For() | ast.AsyncFor():
                self._calls(node.iter)
                self._assign(node.target, UNKNOWN)
                if not _is_empty(self._values.of(node.iter)):
                    return self._loop(node.body, node.orelse)
                return self._block(node.orelse)
            case ast.While():
                return self._while(node)
            case ast.Try() | ast.TryStar():
                return self._try(node)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    self._calls(item.context_expr)
                    if item.optional_vars is not None:
                        self._assign(item.optional_vars, UNKNOWN)
                return self._block(node.body)
            case ast.Match():
                self._calls(node.subject)
                self._either([case.body for case in node.cases])
            case ast.Assign(targets=targets, value=value):
                self._calls(value)
                for target in targets:
                    self._assign(target, self._values.of(value))
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._calls(value)
                self._assign(target, self._values.of(value))
            case ast.AugAssign():
                self._calls(node.value)
                self._assign(node.target, UNKNOWN)
            case ast.Return() | ast.Raise() | ast.Break() | ast.Continue():
                for child in ast.iter_child_nodes(node):
                    self._calls(child)
                return self._leave(node)
            case ast.Expr(value=value):
                self._calls(value)
                return "cell" if _ends_the_process(value) else ""
            case _:
                for child in ast.iter_child_nodes(node):
                    self._calls(child)
        return ""

    def _leave(self, node: ast.stmt) -> _Leaves:
        match node:
            case ast.Return():
                return "function"
            case ast.Raise():
                return "cell"
            case _:
                return "loop"

    def _if(self, node: ast.If) -> _Leaves:
        self._calls(node.test)
        truth = self._decide(node.test)
        words = f'"if {_shortened(node.test)}"'
        if truth is None:
            return self._either([node.body, node.orelse], node.test, [words, f'the "else" of {words}'])
        body = node.body if truth else node.orelse
        with_else = words if truth else f'the "else" of {words}'
        with _Under(self._conditions, node.test, with_else):
            leaves = self._block(body)
        if leaves and body:
            last = ast.unparse(body[-1]).partition("\n")[0]
            said = f'"if {_shortened(node.test)}: {last[:40]}"' if truth else with_else
            self.exits.append((node.lineno, said))
        return leaves

    def _while(self, node: ast.While) -> _Leaves:
        self._forget(node.body)
        self._calls(node.test)
        if self._decide(node.test) is False:
            return self._block(node.orelse)
        with _Under(self._conditions, node.test, f'"while {_shortened(node.test)}"'):
            return self._loop(node.body, node.orelse)

    def _loop(self, body: list[ast.stmt], orelse: list[ast.stmt]) -> _Leaves:
        """Any number of times: looked at once."""
        self._forget(body)
        leaves = self._block(body)
        self._forget(body)
        after = self._block(orelse)
        return "" if leaves in ("", "loop") else after

    def _try(self, node: ast.Try | ast.TryStar) -> _Leaves:
        leaves = self._block(node.body) or self._block(node.orelse)
        if node.handlers:
            self._forget(node.body)
            self._either([handler.body for handler in node.handlers])
            leaves = ""
        return self._block(node.finalbody) or leaves

    def _either(
        self,
        bodies: Sequence[Sequence[ast.stmt]],
        test: ast.expr | None = None,
        words: Sequence[str] = (),
    ) -> _Leaves:
        """One of these, it is not known which."""
        before, kept = self._called, dict(self._values.known)
        ways: list[Trace] = []
        leaves: list[_Leaves] = []
        for at, body in enumerate(bodies):
            self._called, self._values.known = [], dict(kept)
            if test is None:
                leaves.append(self._block(body))
            else:
                with _Under(self._conditions, test, words[at]):
                    leaves.append(self._block(body))
            ways.append(tuple(self._called))
        self._called, self._values.known = before, kept
        for body in bodies:
            self._forget(body)
        self._may_call(ways)
        return leaves[0] if test is not None and len(set(leaves)) == 1 else ""

    def _may_call(self, ways: Sequence[Trace]) -> None:
        if any(ways):
            self._called.append(Either(tuple(ways)))

    # expressions

    def _calls(self, node: ast.AST) -> None:
        """Note the collectives that evaluating this calls."""
        match node:
            case ast.Lambda():
                pass
            case ast.IfExp():
                self._calls(node.test)
                words = f'"if {_shortened(node.test)}"'
                match self._decide(node.test):
                    case None:
                        self._either_expression(node.test, words, [node.body, node.orelse])
                    case truth:
                        with _Under(
                            self._conditions, node.test, words if truth else f'the "else" of {words}'
                        ):
                            self._calls(node.body if truth else node.orelse)
            case ast.BoolOp():
                self._operands(node)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                kept = dict(self._values.known)
                for generator in node.generators:
                    self._calls(generator.iter)
                    self._assign(generator.target, UNKNOWN)
                for child in ast.iter_child_nodes(node):
                    if not isinstance(child, ast.comprehension):
                        self._calls(child)
                self._values.known = kept
            case ast.NamedExpr():
                self._calls(node.value)
                self._assign(node.target, self._values.of(node.value))
            case ast.Call():
                for child in ast.iter_child_nodes(node):
                    self._calls(child)
                self._call(node)
            case _:
                for child in ast.iter_child_nodes(node):
                    self._calls(child)

    def _operands(self, node: ast.BoolOp) -> None:
        """`and` and `or` evaluate an operand only where those before it have not decided."""
        stops = isinstance(node.op, ast.Or)
        sign = "or" if stops else "and"
        self._calls(node.values[0])
        for test, following in zip(node.values, node.values[1:], strict=False):
            words = f'"{_shortened(test)} {sign} …"'
            truth = self._decide(test)
            if truth is stops:
                return
            if truth is None:
                self._either_expression(test, words, [following])
            else:
                with _Under(self._conditions, test, words):
                    self._calls(following)

    def _either_expression(self, test: ast.expr, words: str, ways: Sequence[ast.expr]) -> None:
        before, traces = self._called, []
        for way in ways:
            self._called = []
            with _Under(self._conditions, test, words):
                self._calls(way)
            traces.append(tuple(self._called))
        self._called = before
        self._may_call([*traces, ()])

    def _call(self, node: ast.Call) -> None:
        operation = self._operation(node.func)
        if operation:
            if not _names_group(node, operation):
                self.sites.setdefault(Site(node.lineno, node.col_offset, operation), tuple(self._conditions))
                self._called.append(operation)
            return
        if isinstance(node.func, ast.Name) and node.func.id in self._functions:
            self._enter(node, self._functions[node.func.id])

    def _enter(self, call: ast.Call, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Follow a call of a function that this cell has defined."""
        if function.name in self._calling or len(self._calling) >= _MAX_DEPTH or _yields(function):
            return
        given = self._arguments(call, function.args)
        outside = self._values.known
        self._values.known = {**outside, **dict.fromkeys(_assigned(function.body), UNKNOWN), **given}
        self._calling.append(function.name)
        self._block(function.body)
        self._calling.pop()
        self._values.known = outside

    def _arguments(self, call: ast.Call, wanted: ast.arguments) -> dict[str, Any]:
        names = [one.arg for one in (*wanted.posonlyargs, *wanted.args)]
        rest = [one.arg for one in (*wanted.kwonlyargs, wanted.vararg, wanted.kwarg) if one is not None]
        given: dict[str, Any] = dict.fromkeys([*names, *rest], UNKNOWN)
        for name, default in zip(reversed(names), reversed(wanted.defaults), strict=False):
            given[name] = self._values.of(default)
        if any(isinstance(value, ast.Starred) for value in call.args):
            return dict.fromkeys(given, UNKNOWN)
        given |= {name: self._values.of(value) for name, value in zip(names, call.args, strict=False)}
        given |= {word.arg: self._values.of(word.value) for word in call.keywords if word.arg in given}
        return given

    def _operation(self, function: ast.expr) -> str:
        """The collective's name, if that is what is called; "" if not."""
        match function:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in self._modules:
                return name if name in GROUP_AT else ""
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id="torch"), attr="distributed"), attr=name
            ):
                return name if name in GROUP_AT else ""
            case ast.Name(id=name) if name in self._imported:
                return self._imported[name]
            case ast.Name(id=name) if name in _UNMISTAKABLE and name not in self._bound:
                return name
            case _:
                return ""

    # names

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            self._bind(name, UNKNOWN)
            whole = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
            if whole == "torch.distributed" and (alias.asname or isinstance(node, ast.ImportFrom)):
                self._modules.add(name)
            elif whole == "torch.distributed.*":
                self._imported |= {name: name for name in GROUP_AT}
            elif whole.startswith("torch.distributed.") and alias.name in GROUP_AT:
                self._imported[name] = alias.name

    def _assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name):
                self._bind(name, value)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                fits = isinstance(value, tuple) and len(value) == len(parts)
                for at, part in enumerate(parts):
                    self._assign(part, value[at] if fits else UNKNOWN)
            case ast.Starred(value=inner):
                self._assign(inner, UNKNOWN)
            case _:
                self._calls(target)

    def _bind(self, name: str, value: Any) -> None:
        self._values.known[name] = value
        self._bound.add(name)
        self._imported.pop(name, None)
        self._modules.discard(name)

    def _forget(self, body: Iterable[ast.stmt]) -> None:
        """Names that these statements assign have a value that depends on whether they ran."""
        self._values.known |= dict.fromkeys(_assigned(body), UNKNOWN)

    # tests

    def _decide(self, test: ast.expr) -> bool | None:
        value = self._values.of(test)
        truth = None if value is UNKNOWN else bool(value)
        before = self.decided.setdefault(id(test), truth)
        if before is not truth:  # in a function that is called twice
            self.decided[id(test)] = None
        return truth


class _Under:
    """Inside, what is called is called under this condition."""

    def __init__(self, conditions: list[Condition], test: ast.expr, words: str) -> None:
        self._conditions, self._condition = conditions, Condition(test, words)

    def __enter__(self) -> None:
        self._conditions.append(self._condition)

    def __exit__(self, *_: object) -> None:
        self._conditions.pop()


def _names_group(call: ast.Call, operation: str) -> bool:
    """The call is for a group that it names, or that cannot be known."""
    if any(isinstance(one, ast.Starred) for one in call.args):
        return True
    words = {word.arg: word.value for word in call.keywords}
    if None in words:
        return True
    if operation == "new_group":
        return "use_local_synchronization" in words
    at = GROUP_AT[operation]
    group = words.get("group", call.args[at] if len(call.args) > at else None)
    match group:
        case None | ast.Constant(value=None) | ast.Attribute(attr="WORLD"):
            return False
        case _:
            return True


def _ends_the_process(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="exit" | "quit")):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="sys" | "os"), attr="exit" | "_exit" | "abort")):
            return True
        case _:
            return False


def _assigned(body: Iterable[ast.stmt]) -> Iterator[str]:
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _yields(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))


def _is_empty(value: Any) -> bool:
    return isinstance(value, tuple) and not value


def _shortened(node: ast.expr, chars: int = 60) -> str:
    text = ast.unparse(node).replace("\n", " ")
    return text if len(text) <= chars else text[: chars - 1] + "…"
