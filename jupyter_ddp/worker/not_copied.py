"""What stands in a new rank's namespace for something that could not be copied into it."""

from __future__ import annotations

from typing import Any, NoReturn


class NotCopied:
    """Says what it stands for when it is shown, and raises with the same words when it is used."""

    def __init__(self, words: str) -> None:
        object.__setattr__(self, "_words", words)

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_words')}>"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(object.__getattribute__(self, "_words"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # somebody looks whether it has a protocol: it has none
            raise AttributeError(name)
        self._refuse()

    __call__ = __iter__ = __len__ = __bool__ = __getitem__ = __enter__ = __setattr__ = _refuse
