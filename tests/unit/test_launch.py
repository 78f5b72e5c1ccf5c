"""Where no pool can run, one line says what is missing, and everything else works."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from jupyter_ddp import Cluster, PoolError
from jupyter_ddp.launch import local


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_a_system_other_than_linux(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package imports there; starting a pool names the system and a way out, in one line."""
    monkeypatch.setattr(
        local, "sys", SimpleNamespace(platform=platform, path=sys.path, executable=sys.executable)
    )
    with pytest.raises(PoolError) as caught:
        Cluster(2).start()
    assert "needs Linux" in str(caught.value)
    assert platform in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_linux_without_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old kernel, or a Python built for one, is named."""
    monkeypatch.delattr("os.pidfd_open")
    assert "os.pidfd_open is missing" in local.missing_from_system()


def test_this_system_can_run_ranks() -> None:
    """The suite runs on Linux."""
    assert local.missing_from_system() == ""


def test_the_notebooks_directory_is_not_imported_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the notebook that is named as a library's module must not stand in for it."""
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    assert "" not in local._import_path()
    assert "/somewhere" in local._import_path()
