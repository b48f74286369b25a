"""Optuna's sampler without repeated points: a space of lists and integer ranges holds only so many."""

import json
from typing import Any

from ray.tune.search.optuna import OptunaSearch

from upfield.common.progress import say

MOST_PROPOSALS = 200


class UniqueOptunaSearch(OptunaSearch):
    """Proposes each point once.

    If Optuna repeats a point, it receives the score of that point again and is asked for another one. The search ends
    when MOST_PROPOSALS proposals in a row hold no new point.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of OptunaSearch."""
        super().__init__(*arguments, **options)
        # Point -> its score; None while it is trained, or if it has none.
        self._scores: dict[str, float | None] = {}
        # Ray's trial id -> the id that Optuna knows it by, and its point.
        self._proposals: dict[str, tuple[str, str]] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return a point that was not proposed before, or FINISHED."""
        for number in range(MOST_PROPOSALS):
            proposal = f"{trial_id}-{number}"
            point = super().suggest(proposal)
            key = json.dumps(point, sort_keys=True)
            if key not in self._scores:
                self._scores[key] = None
                self._proposals[trial_id] = proposal, key
                return point
            score = self._scores[key]
            super().on_trial_complete(proposal, None if score is None else {self.metric: score}, error=score is None)
        say(f"optuna: {len(self._scores)} points, and no other one in {MOST_PROPOSALS} proposals; the search ends here")
        return self.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore the report of a running trial: the sampler uses only the last one, and must not get it twice."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Keep the score of a trial, and pass it to Optuna."""
        proposal, key = self._proposals[trial_id]
        self._scores[key] = (result or {}).get(self.metric)
        super().on_trial_complete(proposal, result, error)
