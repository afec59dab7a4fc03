"""Messages between the searching process and the workers of a Ray cluster. Without torch: it runs as a small actor."""

from __future__ import annotations


class Mailbox:
    """An actor between the workers and the process that searches: questions whether a trial is hopeless, requests to stop."""

    def __init__(self) -> None:
        self._questions: list[tuple[int, int, float]] = []
        self._answers: dict[tuple[int, int], bool] = {}
        self._reason: str | None = None

    def ask(self, number: int, epoch: int, value: float) -> None:
        """A trial's value after an epoch."""
        self._questions.append((number, epoch, value))

    def questions(self) -> list[tuple[int, int, float]]:
        """Unanswered questions."""
        taken, self._questions = self._questions, []
        return taken

    def answer(self, number: int, epoch: int, hopeless: bool) -> None:
        """The answer to a question."""
        self._answers[number, epoch] = hopeless

    def take_answer(self, number: int, epoch: int) -> bool | None:
        """None: not yet."""
        return self._answers.pop((number, epoch), None)

    def stop(self, reason: str) -> None:
        """Ask all trials to stop."""
        self._reason = reason

    def stop_reason(self) -> str | None:
        """Reason why the trials are to stop; None when they are not."""
        return self._reason
