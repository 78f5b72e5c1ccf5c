"""Who asks for a cell, as far as its request tells."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_ddp.kernel.front_end import somebody_watches

BROWSERS = "0f8fad5b-d9cb-469f-a165-70867728950e"
CLIENTS = "f1c62aea-94213a8f9bd8d1a7a3a37b5a_1234_5"


def request(msg_id: str = CLIENTS, cell: bool = False, **content: Any) -> dict[str, Any]:
    return {
        "header": {"msg_id": msg_id},
        "metadata": {"cellId": "1"} if cell else {},
        "content": {"allow_stdin": True, "stop_on_error": True, **content},
    }


@pytest.mark.parametrize(
    ("asked", "watches"),
    [
        pytest.param(request(BROWSERS, cell=True), True, id="JupyterLab"),
        pytest.param(request(BROWSERS), True, id="a browser"),
        pytest.param(request(), False, id="jupyter console"),
        pytest.param(request(cell=True), True, id="a client that names its cells"),
        pytest.param(request(stop_on_error=False), True, id="a client with a mind of its own"),
        pytest.param(request(allow_stdin=False), False, id="nbclient"),
        pytest.param({}, False, id="no notebook kernel"),
    ],
)
def test_who_can_watch(asked: dict[str, Any], watches: bool) -> None:
    """Live output is for those that redraw what they show; a terminal cannot, and batch runs have nobody."""
    assert somebody_watches(asked) is watches
