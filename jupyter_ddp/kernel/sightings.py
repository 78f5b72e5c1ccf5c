"""What all ranks do, asked and collected: behind `%ddp where` and `%ddp dump`.

Owns the questions that are open. Their answers come on the exchange's thread.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection

from jupyter_ddp.core.steps import Sight

ANSWER_TIMEOUT_S = 1.8
"""The node agents answer after a second for ranks that do not."""


class Question:
    """One question to these ranks."""

    def __init__(self, number: int, ranks: Collection[int]) -> None:
        self.number = number
        self.sights: dict[int, Sight] = {}
        self.answered = threading.Event()
        self._awaited = set(ranks)
        if not self._awaited:
            self.answered.set()

    def take(self, sight: Sight) -> None:
        """An answer: the first of each rank counts."""
        self.sights.setdefault(sight.rank, sight)
        self._awaited.discard(sight.rank)
        if not self._awaited:
            self.answered.set()


class Sightings:
    """The questions of one cluster. The pool's own, which are below 0, are none of them."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, Question] = {}

    def open(self, ranks: Collection[int]) -> Question:
        """A question under a number of its own, to be put to these ranks."""
        question = Question(next(self._numbers), ranks)
        self._open[question.number] = question
        return question

    def close(self, question: Question) -> None:
        """Whoever asked waits no longer."""
        self._open.pop(question.number, None)

    def take(self, sight: Sight) -> None:
        """Give an answer to whoever asked for it."""
        question = self._open.get(sight.look)
        if question is not None:
            question.take(sight)
