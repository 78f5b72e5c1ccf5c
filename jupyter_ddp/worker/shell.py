"""IPython in a rank: runs a cell's source and turns what it shows into messages.

Owns the user's variables. The notebook kernel has transformed the source; here it is only run.
"""

from __future__ import annotations
import __future__

import ast
import asyncio
import base64
import builtins
import contextlib
import functools
import gc
import inspect
import json
import operator
import os
import signal
import subprocess
import sys
import types
import warnings
from typing import Any, NoReturn

from IPython.core.autocall import ExitAutocall
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult, InteractiveShell
from traitlets import Any as AnyTrait
from traitlets import Instance, Type
from traitlets.config import Config

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.compiled_cell import cell_file, unpack
from jupyter_ddp.worker.cell_code import compile_cell
from jupyter_ddp.worker.cell_sources import CellSources
from jupyter_ddp.worker.interrupts import InterruptGate
from jupyter_ddp.worker.tracebacks import forget_sources, left_out, settle_scopes, user_traceback

_MAX_ERROR_CHARS = 256 * 1024
_MAX_TEXT_CHARS = 1024 * 1024
_MAX_SHOWN_BYTES = 64 * 1024 * 1024
_FUTURES = functools.reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
"""What `from __future__ import …` leaves in a code object's flags, and holds in the next cells."""
_UNWATCHED = ExecutionResult(None)
"""Of a cell that nobody has registered to hear of."""


class RankDisplayHook(DisplayHook):
    """The value of a cell's last expression."""

    shell: RankShell

    def __call__(self, result: Any = None) -> None:
        # As DisplayHook does, without the prompt that it writes to stdout.
        self.check_for_underscore()
        if result is None or self.quiet():
            return
        data, metadata = self.compute_format_data(result)
        self.update_user_ns(result)
        self.shell.result.result = result
        if data:
            self.shell.say_display(data, metadata, result=True)

    @property
    def prompt_count(self) -> int:
        """The number of the cell that runs. IPython's own, since version 9, counts on before it runs one."""
        return self.shell.execution_count

    def cull_cache(self) -> None:
        """As IPython's, which then still has what `Out` has let go of among its hidden names."""
        super().cull_cache()
        kept, hidden = self.shell.user_ns.get("_oh", {}), self.shell.user_ns_hidden
        for name in [name for name in hidden if name[1:].isdigit() and int(name[1:]) not in kept]:
            del hidden[name]

    def quiet(self) -> bool:
        return bool(self.semicolon_at_end_of_expression(self.shell.current_source))


class RankDisplayPublisher(DisplayPublisher):
    """`display()`, figures and `clear_output()`."""

    shell: RankShell

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: Any = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        display_id = str((transient or {}).get("display_id", ""))
        self.shell.say_display(data, metadata or {}, display_id=display_id, update=update)

    def clear_output(self, wait: bool = False) -> None:
        self.shell.outbox.say(m.ClearOutput, wait=wait)


class RankExit(ExitAutocall):
    """`exit` and `quit`, called or not, with a code or without: they end the cell, and the rank lives on."""

    def __call__(self, code: object = 0) -> NoReturn:
        raise SystemExit(code)


class RankShell(InteractiveShell):
    """A shell without a terminal and without history, whose namespace is `__main__`."""

    displayhook_class = Type(RankDisplayHook)
    display_pub_class = Type(RankDisplayPublisher)
    exiter = Instance(RankExit, ())
    execution_count: int = 1  # no trait: nobody observes it, and each cell sets it
    outbox: Any = AnyTrait()
    """The rank's Outbox. Set in the rank: the shell is made before the rank is forked."""

    def __init__(self, **kwargs: Any) -> None:
        self.current_source = ""
        self.gate = InterruptGate()  # in the rank: its own
        self._failure: m.CellError | None = None
        self.result = _UNWATCHED
        self.raised: BaseException | None = None
        """What ended the last cell; let go when the next one begins."""
        main = types.ModuleType("__main__")
        main.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = main
        # Without history there is neither its thread nor its file.
        config = Config({"HistoryManager": {"enabled": False}})
        super().__init__(config=config, user_module=main, **kwargs)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sources = CellSources(self.compile._filename_map)
        self.compile.format_code_name = self._sources.label  # type: ignore[method-assign]
        warnings.formatwarning = self._sources.format_warning
        for event, registered in self.events.callbacks.items():  # IPython's own: a rank does it itself
            for callback in list(registered):
                self.events.unregister(event, callback)
        self.builtin_trap.__enter__()  # for good: no one else lives in this process
        builtins.input = _no_input
        inspect.getfile = _getfile_of_cells(inspect.getfile)

    # -- parts of IPython that a rank has no use for ---------------------------------------------

    def init_sys_modules(self) -> None:
        """`__main__` is the user's module already."""

    def enable_gui(self, gui: Any = None) -> None:
        """A rank has no event loop of a window system."""

    def system(self, cmd: str) -> None:
        """`!command`: its output goes to fd 1 and 2, in order with what the cell prints."""
        command = self.var_expand(cmd, depth=1)
        with subprocess.Popen(command, shell=True, stdin=subprocess.DEVNULL, process_group=0) as process:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                _end_group(process)
                raise
        self.user_ns["_exit_code"] = status

    # -- running ---------------------------------------------------------------------------------

    def run(self, order: m.RunCell) -> m.CellError | None:
        """Run a cell; give what it raised, if anything. KeyboardInterrupt is raised through.

        What `run_cell_async` does for a cell that was transformed already, in fewer steps: on a rank
        whose caches other ranks have just emptied, its general way costs half a cell's time.
        """
        self.current_source, self._failure = order.source, None
        self.execution_count = order.count or order.cell
        if self.raised is not None:
            self.forget_last_error()
        self.user_ns.pop("__warningregistry__", None)  # a line number means another line in this cell
        sys.displayhook = self.displayhook
        watched = any(self.events.callbacks.values())
        self.result = self._trigger_before(order.source) if watched else _UNWATCHED
        error: BaseException | None = None
        try:
            codes = self._compiled(order)
        except Exception as rejected:  # noqa: BLE001  # an AST transformer of the user's may raise anything
            error = self.result.error_before_exec = rejected
        else:
            error = self.result.error_in_exec = self._run_codes(codes)
        # Of an interrupt no traceback is shown; to make one takes long enough for the next to come.
        if error is not None and self._failure is None and not isinstance(error, KeyboardInterrupt):
            self._note_error(type(error), error, error.__traceback__)
        try:
            if watched or any(self.events.callbacks.values()):  # the cell may have registered one
                self.events.trigger("post_execute")
                self.events.trigger("post_run_cell", self.result)
            if isinstance(error, KeyboardInterrupt):
                raise error
        finally:
            # A frame of the traceback holds these: a cycle would keep all that the frames refer to.
            self.result.error_before_exec = self.result.error_in_exec = self.result.result = None
            del error
        return self._failure

    def _trigger_before(self, source: str) -> ExecutionResult:
        """Tell who has registered for it that a cell begins."""
        info = ExecutionInfo(source, False, False, True, None)
        info.transformed_cell = source
        self.events.trigger("pre_execute")
        self.events.trigger("pre_run_cell", info)
        return ExecutionResult(info)

    def _compiled(self, order: m.RunCell) -> list[types.CodeType]:
        """The cell's code, under a file name that tracebacks and `inspect` find its lines by."""
        source = order.source
        name = cell_file(order.cell, order.count)
        self._sources.add(name, self.execution_count, source)
        codes = self._codes_of(order, name)
        self._sources.compiled(name, codes)
        return codes

    def _codes_of(self, order: m.RunCell, name: str) -> list[types.CodeType]:
        source = order.source
        settings = self._trait_values  # two traits, read without what traitlets does around it
        last_expr = settings.get("ast_node_interactivity", "last_expr") == "last_expr"
        if last_expr and not (order.shows or settings.get("ast_transformers")):
            code = None if self.compile.flags & _FUTURES else unpack(order.code)
            if code is None:
                flags = self.compile.flags | (ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if order.awaits else 0)
                code = compile(source, name, "exec", flags, dont_inherit=True)
            self.compile.flags |= code.co_flags & _FUTURES
            return [code]
        tree = self.transform_ast(self.compile.ast_parse(source, filename=name))
        return compile_cell(self.compile, tree, name, self.ast_node_interactivity, order.awaits)

    def _run_codes(self, codes: list[types.CodeType]) -> BaseException | None:
        """Run a cell's code; give what it raised."""
        gate = self.gate
        gate.in_code = True
        try:
            for code in codes:
                if code.co_flags & inspect.CO_COROUTINE:
                    self._run_in_loop(eval(code, self.user_ns))
                else:
                    exec(code, self.user_ns)
        except BaseException as error:  # noqa: BLE001  # whatever a cell raises is its own affair
            gate.in_code = False
            if isinstance(error, self.custom_exceptions):
                self.CustomTB(type(error), error, error.__traceback__)
            return error
        gate.in_code = False
        return None

    def _run_in_loop(self, coroutine: Any) -> Any:
        """One event loop for all cells, so that what a cell leaves in it goes on in the next."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()  # or it would go on inside the next cell
            self._loop.run_until_complete(asyncio.wait([task], timeout=1))
            raise

    def forget_last_error(self) -> None:
        """A traceback holds every tensor of its frames: the failed cell's go when the next begins."""
        if self.raised is None:
            return
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            if hasattr(sys, name):
                delattr(sys, name)
        self.raised = None
        self.InteractiveTB.tb = None
        self.last_execution_result = None
        self.last_execution_succeeded = True
        # What made the traceback readable (stack_data) refers to the frames in cycles. What was there before
        # the fork is frozen, and is not looked at.
        gc.collect()

    def showtraceback(self, exc_tuple: Any = None, *_: Any, **__: Any) -> None:
        kind, error, tb = exc_tuple or sys.exc_info()
        if error is not None:
            self._note_error(kind, error, tb)

    def showsyntaxerror(self, filename: Any = None, running_compiled_code: bool = False) -> None:
        self.showtraceback()

    def show_usage_error(self, exc: BaseException) -> None:
        self._note_error(type(exc), exc, None)

    def _note_error(self, kind: Any, error: BaseException, tb: types.TracebackType | None) -> None:
        self.raised = error
        sys.last_type, sys.last_value, sys.last_traceback = kind, error, tb
        with user_traceback(error, tb, self.is_cell_file) as (shown, line):
            with contextlib.suppress(Exception):  # no descriptor may be free to import it with
                settle_scopes()
            try:
                lines = self.InteractiveTB.structured_traceback(kind, error, shown, tb_offset=0)
            except Exception as broken:  # noqa: BLE001  # the user's own __str__ or __repr__ may raise anything
                lines = [f"{kind.__name__} (its text could not be made: {type(broken).__name__})"]
            if missing := left_out(tb, shown, self.is_cell_file):
                lines.insert(len(lines) - 1, missing)
        forget_sources(self.is_cell_file)
        traceback = [_sendable(str(text)) for text in lines]
        self._failure = m.CellError(kind.__name__, _sendable(_text_of(error)), line, traceback)

    def note_failure(self, error: BaseException) -> m.CellError:
        """What went wrong around the cell's code, as an error of the cell."""
        self._note_error(type(error), error, error.__traceback__)
        assert self._failure is not None
        return self._failure

    def is_cell_file(self, filename: str) -> bool:
        """The name that a cell's code was compiled under."""
        return filename in self.compile._filename_map or filename.startswith("<ipython-input-")

    # -- showing ---------------------------------------------------------------------------------

    def say_display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any],
        *,
        display_id: str = "",
        update: bool = False,
        result: bool = False,
    ) -> None:
        self.outbox.say(
            m.Display,
            data=_json(self._bounded(data)),
            metadata=_json(metadata),
            display_id=display_id,
            update=update,
            result=result,
        )

    def _bounded(self, data: dict[str, Any]) -> dict[str, Any]:
        """What can be sent and shown: of the text its beginning, of the rest what has a sensible size."""
        text = data.get("text/plain")
        if isinstance(text, str) and len(text) > _MAX_TEXT_CHARS:
            rest = f"… ({len(text):,} characters; the rest was left out)"
            data = {**data, "text/plain": text[:_MAX_TEXT_CHARS] + rest}
        for kind, value in list(data.items()):
            if isinstance(value, str | bytes) and len(value) > _MAX_SHOWN_BYTES:
                data = {other: it for other, it in data.items() if other != kind}
                limit, size = _MAX_SHOWN_BYTES // 2**20, len(value) // 10**6
                why = f"{kind} of {size} MB was left out: what is shown may have {limit} MiB"
                self.outbox.say(m.Notice, text=why)
        return data


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and all that it started; kill what has not ended a second later."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _json(bundle: dict[str, Any]) -> str:
    return json.dumps(bundle, default=_encodable)


def _encodable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return repr(value)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  # the user's own __str__ may raise anything
        return f"(its text could not be made: {type(broken).__name__})"


def _sendable(text: str) -> str:
    """Text that every message can carry: of bounded length, without lone surrogates."""
    return text[:_MAX_ERROR_CHARS].encode("utf-8", "backslashreplace").decode()


def _no_input(prompt: object = "") -> NoReturn:
    raise RuntimeError("input() has nobody to ask on a rank: ask in the notebook, and use the answer here")


def _getfile_of_cells(real: Any) -> Any:
    """`inspect.getfile` for a class from a cell: where its methods are, since `__main__` is no file."""

    def getfile(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__ == "__main__":
            for member in vars(thing).values():
                code = getattr(inspect.unwrap(member) if callable(member) else member, "__code__", None)
                if isinstance(code, types.CodeType):
                    return code.co_filename
        return str(real(thing))

    return getfile
