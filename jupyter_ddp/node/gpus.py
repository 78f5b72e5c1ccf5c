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
