"""A rank's accelerator, asked after an error whether it still works."""

from __future__ import annotations

import threading

import pytest

from jupyter_ddp.core import messages as m

pytest.importorskip("torch")
from jupyter_ddp.worker import accelerator
from jupyter_ddp.worker.accelerator import Accelerator, probe_cuda

ERROR = m.CellError("RuntimeError", "CUDA error", 3, [])
ASSERT = "CUDA error: device-side assert triggered"


def test_a_device_that_is_lost_is_named_with_the_cause_and_the_line() -> None:
    """One line: which device, what its driver says, the cell's line that it was noticed on."""
    lost = Accelerator("cpu", {"cpu": lambda device: f"{ASSERT} on {device}"})
    assert lost.doom(ERROR) == f"cpu: {ASSERT} on cpu (line 3)"


def test_a_device_that_works_dooms_nobody() -> None:
    """Nor does one of a kind that cannot break."""
    assert Accelerator("cpu", {"cpu": lambda device: ""}).doom(ERROR) == ""
    assert Accelerator("cpu").doom(ERROR) == ""


@pytest.mark.parametrize("ename", ["KeyboardInterrupt", "SystemExit"])
def test_what_is_no_error_is_no_reason_to_ask(ename: str) -> None:
    """An interrupted cell is not held up by a device that is busy."""
    asked: list[object] = []
    device = Accelerator("cpu", {"cpu": lambda device: asked.append(device) or ASSERT})
    assert device.doom(m.CellError(ename, "", 3, [])) == ""
    assert not asked


def test_a_probe_that_raises_has_found_something() -> None:
    """A driver that is gone does not say so in the expected way."""

    def gone(device: object) -> str:
        raise OSError("no such device")

    assert Accelerator("cpu", {"cpu": gone}).doom(ERROR) == "cpu: OSError: no such device (line 3)"


def test_a_device_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known then, and nothing is said."""
    monkeypatch.setattr(accelerator, "PROBE_TIMEOUT_S", 0.01)
    let_go = threading.Event()
    busy = Accelerator("cpu", {"cpu": lambda device: str(let_go.wait(10))})
    assert busy.doom(ERROR) == ""
    let_go.set()


def test_an_error_that_passes_dooms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA raises at once what an earlier call did wrong; only what stays is for good."""
    said = [ASSERT, ""]
    monkeypatch.setattr(accelerator, "_is_in_use", lambda: True)
    monkeypatch.setattr(accelerator, "_cuda_failure", lambda device: said.pop(0))
    assert probe_cuda(accelerator.torch.device("cuda:0")) == ""
    said = [ASSERT, ASSERT]
    assert probe_cuda(accelerator.torch.device("cuda:0")) == ASSERT


def test_a_gpu_that_was_never_used_is_not_touched() -> None:
    """Asking would make a context on it, of hundreds of megabytes."""
    assert probe_cuda(accelerator.torch.device("cuda:0")) == ""
