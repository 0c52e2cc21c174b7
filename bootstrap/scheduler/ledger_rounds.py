"""What carries out the rounds of a schedule: the ledger's, resumed where a killed process left one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from bootstrap.database.fences import Fence
from bootstrap.errors import (
    NotEnoughPairsError,
    RoundChangedError,
    RoundStoppedError,
    StageError,
    TriesSpentError,
)
from bootstrap.rounds import Ledger, Round, Rounds, abort
from bootstrap.scheduler.rounds import RoundOutcome, Status

_STATUSES: Mapping[str, Status] = {"promoted": "promoted", "held": "held", "skipped": "held", "rejected": "rejected"}


@dataclass(frozen=True, kw_only=True)
class LedgerRounds:
    """Rounds of one configuration, by the fires of a schedule.

    A round that cannot come to its end is given up, so that it does not keep the next fire from its round: one of whose
    stages was tried as often as it may be, or that was begun with other settings than there are now.

    Args:
        rounds: what they are made of.
        around: is entered before a round and left after it, to write its report.
    """

    rounds: Rounds
    around: Callable[[], AbstractContextManager[object]] = nullcontext

    def run(self, fire_key: str, *, fence: Fence, stop: threading.Event) -> RoundOutcome | None:
        """As `bootstrap.scheduler.Rounds.run`. The rounds' own lease keeps others out, so the schedule's is not asked."""
        del fence
        rounds = replace(self.rounds, stop=stop)
        ledger = Ledger(rounds.open_registry().database)
        begun = next((one for one in ledger.rounds() if one.fire_key == fire_key), None)
        if begun is not None and begun.finished:
            return None
        try:
            with self.around():
                result = rounds.run(fire_key=fire_key) if begun is None else rounds.resume()
        except NotEnoughPairsError as error:
            return self._outcome(fire_key, "held", error)
        except RoundStoppedError as error:
            return self._outcome(fire_key, "stopped", error)
        except (TriesSpentError, RoundChangedError) as error:
            self._give_up(fire_key, error)
            return self._outcome(fire_key, "failed", error)
        except StageError as error:
            return self._outcome(fire_key, "failed", error)
        if result is None:
            return None
        status: Status = (
            "promoted" if result.status == "promoted" else "held" if result.status == "held" else "rejected"
        )
        return RoundOutcome(status=status, reason=result.reason, number=result.number)

    def _outcome(self, fire_key: str, status: Status, error: Exception) -> RoundOutcome:
        found = self._find(fire_key)
        return RoundOutcome(status=status, reason=str(error), number=None if found is None else found.number)

    def _give_up(self, fire_key: str, error: Exception) -> None:
        found = self._find(fire_key)
        if found is not None and not found.finished:
            abort(self.rounds.open_registry(), found.number, str(error).partition("\n")[0])

    def _find(self, fire_key: str) -> Round | None:
        rounds = Ledger(self.rounds.open_registry().database).rounds()
        return next((one for one in rounds if one.fire_key == fire_key), None)
