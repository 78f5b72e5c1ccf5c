"""From a cell's syntax tree to the code that a rank runs: statements, and the value to be shown."""

from __future__ import annotations

import ast
from collections.abc import Callable
from types import CodeType
from typing import Any

_ASSIGNMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign)


def compile_cell(
    compiler: Any, tree: ast.Module, name: str, interactivity: str, awaits: bool
) -> list[CodeType]:
    """The code of `tree`, compiled under the file name `name` by IPython's `compiler`.

    `interactivity` is IPython's `ast_node_interactivity`: which values are shown. Raises SyntaxError.
    """
    run, shown = _split(tree.body, interactivity)
    if not awaits:
        return _compile(compiler, run, shown, name)
    with compiler.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
        return _compile(compiler, run, shown, name)


def _compile(
    compiler: Callable[..., CodeType], run: list[ast.stmt], shown: list[ast.stmt], name: str
) -> list[CodeType]:
    codes = [compiler(ast.Module(run, []), name, "exec")] if run else []
    return codes + [compiler(ast.Interactive([node]), name, "single") for node in shown]


def _split(body: list[ast.stmt], interactivity: str) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """(what is only run, what is run and shown)."""
    last = body[-1] if body else None
    match interactivity:
        case "all":
            return [], body
        case "none":
            return body, []
        case "last":
            return body[:-1], body[-1:]
        case "last_expr_or_assign" if isinstance(last, _ASSIGNMENTS):
            return body, _assigned(last)
        case _:
            return (body[:-1], body[-1:]) if isinstance(last, ast.Expr) else (body, [])


def _assigned(node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> list[ast.stmt]:
    """An expression that gives what was assigned, where that is one name."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
        return []
    shown = ast.Expr(ast.Name(targets[0].id, ast.Load()))
    return [ast.fix_missing_locations(ast.copy_location(shown, node))]
