"""What is known here of torch.distributed's functions is what the installed torch has."""

from __future__ import annotations

import inspect

import torch.distributed as dist

from jupyter_ddp.core.foreseen_calls import GROUP_AT


def test_where_each_collective_takes_its_group() -> None:
    """A group given by position is recognised; new_group takes none."""
    for name, at in GROUP_AT.items():
        function = getattr(dist, name, None)
        if function is None:
            continue  # of another version
        parameters = list(inspect.signature(function).parameters)
        assert (parameters.index("group") if "group" in parameters else -1) == at, name
