"""The machine's GPUs, by the driver's management library: CUDA is never initialised for it."""

from __future__ import annotations

from pathlib import Path

from jupyter_ddp.core.messages import Gpu

_DRIVER = ("/dev/nvidiactl", "/dev/dxg")  # the second: Windows' subsystem for Linux


def list_gpus() -> list[Gpu]:
    """All physical GPUs; none where there is no driver."""
    if not any(Path(device).exists() for device in _DRIVER):
        return []
    import pynvml  # two megabytes that an agent without GPUs has no use for

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_describe(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _describe(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
    )


class GpuMeter:
    """One GPU's use, read again and again. What the driver does not tell is -1."""

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml = pynvml
        self._handle = None
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:
            pass  # each reading says that there is none

    def read(self) -> tuple[float, int, int]:
        """(share of its time in use, from 0 to 1; bytes of its memory in use; bytes of its memory)."""
        nvml = self._nvml
        use, used, total = -1.0, -1, -1
        if self._handle is None:
            return use, used, total
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle)
            used, total = int(memory.used), int(memory.total)
            use = nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        except nvml.NVMLError:
            pass  # a slice of a GPU tells its memory and no use
        return use, used, total

    def close(self) -> None:
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            pass  # it was never there
