"""What is to be reviewed, in which order, and what people decide: all of a review but the page."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from types import MappingProxyType

from aligner_chain.exchange import Outcome
from bootstrap.errors import RecordError
from bootstrap.records import Feedback, Record, Split, now_ms
from bootstrap.store import CorrectionStore

LIMIT = 500
"""Corrections of one sitting: so many are looked up when a review begins."""

# A text box cannot hold half a character, shows nothing for a NUL, and knows one kind of line end.
_UNTYPABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a review has come, all who take part together.

    `total` corrections are to be reviewed. Of these some were accepted, rejected or edited, each counted once, by what was
    decided last.
    """

    total: int
    accepted: int = 0
    rejected: int = 0
    edited: int = 0

    @property
    def decided(self) -> int:
        """How many were accepted, rejected or edited."""
        return self.accepted + self.rejected + self.edited


class ReviewQueue:
    """The corrections to be reviewed, the newest first, for any number of people at once.

    Only their ids are held; records are read one by one. Nobody is given what somebody else of the same queue is looking
    at. Two queues, as two processes have them, know nothing of each other until a decision is written.

    Args:
        store: where they are, and where decisions go.
        split: of which split. Reviews of held-out records judge models; they never become training data.
        outcome: only these; None for all.
        criterion: only those of which the Aligner says that they broke it.
        unreviewed: leave out what was accepted, rejected or edited before.
        limit: the most corrections, found when the queue is made.
        redact: what replaces personal data in an edit before it is written.

    Raises:
        ValueError: `limit` is below 1.
        StoreError: the store cannot be read.
    """

    def __init__(
        self,
        store: CorrectionStore,
        *,
        split: Split = "train",
        outcome: Outcome | None = "corrected",
        criterion: str | None = None,
        unreviewed: bool = True,
        limit: int = LIMIT,
        redact: Callable[[Feedback], Feedback] | None = None,
    ) -> None:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        self.store = store
        self._redact = redact
        self._outcome, self._criterion, self._unreviewed = outcome, criterion, unreviewed
        wanted = filter(self._is_wanted, store.records(split, feedback=True, newest_first=True))
        self._waiting = deque(record.correction.id for record in islice(wanted, limit))
        self._total = len(self._waiting)
        self._decisions: dict[str, str] = {}
        self._lock = Lock()

    @property
    def progress(self) -> Progress:
        """How far everybody has come."""
        with self._lock:
            return Progress(total=self._total, **Counter(self._decisions.values()))

    def take(self) -> Record | None:
        """The next record, which nobody else is given; None where there is none left.

        What was deleted, or decided elsewhere since the queue was made, is left out.
        """
        while True:
            with self._lock:
                if not self._waiting:
                    return None
                correction_id = self._waiting.popleft()
            record = self.store.get(correction_id)
            if record is not None and self._is_wanted(record):
                return record
            with self._lock:
                self._total -= 1

    def give_back(self, ids: Iterable[str]) -> None:
        """Lets somebody else have those of these records that nobody decided, as the next ones."""
        with self._lock:
            self._waiting.extendleft([one for one in ids if one not in self._decisions][::-1])

    def decide(self, record: Record, value: bool | str, author: str | None = None) -> Feedback:
        """Writes a decision at once and returns it: True to accept, False to reject, or the text as it should be.

        It is newer than what was said before, by whatever clock that was written, and so takes its place.

        Raises:
            RecordError: the text is empty, or the correction was deleted meanwhile.
            StoreError: it could not be written.
        """
        said = Feedback(
            kind="edit" if isinstance(value, str) else "review",
            value=value,
            correction_id=record.correction.id,
            author=author,
            at_ms=max([now_ms(), *(one.at_ms + 1 for one in record.feedback)]),
        )
        said = said if self._redact is None else self._redact(said)
        if not self.store.add_feedback([said]):
            raise RecordError("This correction was deleted meanwhile; nothing was written. Go on with the next one.")
        with self._lock:
            self._decisions[record.correction.id] = decided(said)
        return said

    def _is_wanted(self, record: Record) -> bool:
        correction = record.correction
        return (
            self._outcome in (None, correction.outcome)
            and (self._criterion is None or self._criterion in correction.criteria)
            and not (self._unreviewed and record.decision)
        )


class Sitting:
    """One person's way through a queue: `record` is what they look at, None where nothing is left.

    Not safe for threads: one person does one thing at a time.

    Args:
        queue: what they share with others.
        author: who they are, kept with every decision.
    """

    def __init__(self, queue: ReviewQueue, author: str | None = None) -> None:
        self.queue = queue
        self.author = author
        self.record: Record | None = None
        self._seen: list[str] = []  # in the order in which they came
        self._at = -1
        self.forward()

    @property
    def text(self) -> str:
        """The text to be edited: the newest edit of a person, else the correction."""
        if self.record is None:
            return ""
        edit = self.record.latest("edit")
        return typable(str(edit.value) if edit else self.record.correction.text)

    @property
    def is_first(self) -> bool:
        """Whether there is no way back."""
        return self._at <= 0

    def accept(self) -> None:
        """Says that the correction is right, and goes on. Raises as `ReviewQueue.decide`."""
        self._decide(True)

    def reject(self) -> None:
        """Says that the correction is wrong, and goes on. Raises as `ReviewQueue.decide`."""
        self._decide(False)

    def edit(self, text: str) -> None:
        """Says what the answer should have been, and goes on.

        Raises:
            RecordError: nothing was changed, or as `ReviewQueue.decide` says.
        """
        if typable(text) == self.text:
            raise RecordError("The text is as it was. Change it first, or accept the correction.")
        self._decide(typable(text))

    def forward(self) -> None:
        """Goes to the next record; what was not decided stays as it is."""
        self._at = min(self._at + 1, len(self._seen))
        while self._at < len(self._seen):
            if self._look_again():
                return
        self.record = self.queue.take()
        if self.record is not None:
            self._seen.append(self.record.correction.id)

    def back(self) -> None:
        """Goes to the record before this one. Deciding it anew takes the place of what was decided."""
        while self._at > 0:
            self._at -= 1
            if self._look_again():
                return

    def close(self) -> None:
        """Lets somebody else have what was looked at and not decided."""
        self.queue.give_back(self._seen)
        self._seen, self._at, self.record = [], 0, None

    def _decide(self, value: bool | str) -> None:
        if self.record is not None:
            self.queue.decide(self.record, value, self.author)
            self.forward()

    def _look_again(self) -> bool:
        """Reads the record at this place; forgets it where it was deleted."""
        record = self.queue.store.get(self._seen[self._at])
        if record is None:
            del self._seen[self._at]
            return False
        self.record = record
        return True


def decided(said: Feedback) -> str:
    """An edit or a review in a word: "accepted", "rejected" or "edited"."""
    return "edited" if said.kind == "edit" else _REVIEWS[bool(said.value)]


def typable(text: str) -> str:
    """The text as a text box holds it: lines end with a line feed, and what nobody can type is a replacement character."""
    return _UNTYPABLE.sub("�", text.replace("\r\n", "\n").replace("\r", "\n"))


_REVIEWS: Mapping[bool, str] = MappingProxyType({True: "accepted", False: "rejected"})
