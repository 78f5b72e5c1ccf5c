"""Whether a rank's accelerator still works after an error.

Some errors of CUDA end a process's context for good: a device-side assert, an illegal address, a memory
error of the hardware, a GPU that is lost. Every later call of CUDA raises then, in the middle of whatever it
is in, and only a new process helps: the rank is doomed. Which errors those are is not read from their
words; the accelerator is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch

from jupyter_ddp.core import messages as m

PROBE_TIMEOUT_S = 1.0
"""An accelerator that is busy for longer (with a collective that nobody ends, say) is not called broken."""
_NO_FAULT = ("KeyboardInterrupt", "SystemExit")
_MAX_REASON_CHARS = 200

Probe = Callable[[torch.device], str]
"""Why the device is lost to this process, in one line; "" when it works, or nothing can be said."""


def probe_cuda(device: torch.device) -> str:
    """Allocate and compute a little, twice: an error that passes is raised once."""
    if not _is_in_use():
        return ""
    return _cuda_failure(device) and _cuda_failure(device)


def _cuda_failure(device: torch.device) -> str:
    try:
        torch.cuda.synchronize(device)
        (torch.ones(1, device=device) + 1).item()
    except torch.cuda.OutOfMemoryError:
        return ""
    except RuntimeError as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _is_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch's own


PROBES: Mapping[str, Probe] = {"cuda": probe_cuda}
"""By the device's type. What is not here never breaks."""


class Accelerator:
    """One rank's."""

    def __init__(self, device: str, probes: Mapping[str, Probe] = PROBES) -> None:
        self._device, self._probes = torch.device(device), probes

    def doom(self, error: m.CellError) -> str:
        """After a cell's error: why this process is doomed, with device and line; "" when it is not."""
        probe = self._probes.get(self._device.type)
        if probe is None or error.ename in _NO_FAULT:
            return ""
        if not (why := self._ask(probe)):
            return ""
        line = f" (line {error.line})" if error.line else ""
        return f"{self._name()}: {why[:_MAX_REASON_CHARS]}{line}"

    def _ask(self, probe: Probe) -> str:
        """In a thread: what the driver does not answer is waited for in vain."""
        answers: list[str] = []

        def ask() -> None:
            try:
                answers.append(probe(self._device))
            except Exception as failure:  # noqa: BLE001  # a driver that is gone may raise anything
                answers.append(f"{type(failure).__name__}: {failure}")

        thread = threading.Thread(target=ask, name="jupyter_ddp probe", daemon=True)
        thread.start()
        thread.join(PROBE_TIMEOUT_S)
        return answers[0] if answers else ""

    def _name(self) -> str:
        """The device, with the name of its model where it is a GPU that was in use."""
        if self._device.type != "cuda" or not _is_in_use():
            return str(self._device)
        try:
            return f"{self._device} ({torch.cuda.get_device_properties(self._device).name})"
        except (RuntimeError, AssertionError):  # it does not even say that any more
            return str(self._device)
