"""Sending questions from several threads at once, and gathering what came back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from showcase.clients import Client, Reply


class Traffic:
    """Threads asking questions, one client each.

    The threads are daemons: a demo that is told to stop does not wait for an answer.
    """

    def __init__(self) -> None:
        self.replies: list[Reply] = []  # appended to by the threads, which needs no lock
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def share_out(self, clients: Sequence[Client], questions: Sequence[str]) -> None:
        """Have *clients* answer *questions* between them, each asked once, as fast as they can.

        Each client has one of the first, however fast the others are.
        """
        left = iter(questions[len(clients) :])
        lock = threading.Lock()

        def ask(client: Client) -> None:
            place = clients.index(client)
            question = questions[place] if place < len(questions) else None
            while question is not None:
                self.replies.append(client.ask(question))
                with lock:
                    question = next(left, None)

        self._start(ask, clients)

    def ask_each(self, clients: Sequence[Client], questions: Sequence[str]) -> None:
        """Have every client answer all of *questions*, each beginning at another place."""

        def ask(client: Client) -> None:
            start = len(questions) * clients.index(client) // len(clients)
            for question in (*questions[start:], *questions[:start]):
                self.replies.append(client.ask(question))

        self._start(ask, clients)

    def keep_asking(
        self, clients: Sequence[Client], questions: Sequence[str], *, every_s: float
    ) -> None:
        """Have every client ask some of *questions* at a steady pace until `stop()`.

        Always the same questions in the same order, so that two runs can be compared.
        """

        def ask(client: Client) -> None:
            picks = random.Random(clients.index(client))
            due = time.monotonic() + every_s * picks.random()
            while not self._stopped:
                time.sleep(max(0.0, due - time.monotonic()))
                self.replies.append(client.ask(picks.choice(questions)))
                due = max(due + every_s, time.monotonic())

        self._start(ask, clients)

    def stop(self) -> None:
        """Let no thread ask another question."""
        self._stopped = True

    def watch(self) -> Iterator[int]:
        """Yield the number of replies about ten times a second, until all threads are done."""
        while any(thread.is_alive() for thread in self._threads):
            yield len(self.replies)
            time.sleep(0.1)
        yield len(self.replies)

    def _start(self, ask: Callable[[Client], None], clients: Sequence[Client]) -> None:
        for client in clients:
            thread = threading.Thread(target=ask, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()
