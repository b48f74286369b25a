"""Optuna's sampler without repeated points, for spaces of lists and integer ranges, which have few points."""

import json
from typing import Any

from ray.tune.search.optuna import OptunaSearch

from upfield.common.progress import say

MAX_PROPOSALS = 200


class UniqueOptunaSearch(OptunaSearch):
    """Proposes each point once.

    If Optuna repeats a point, it receives the score of that point again and is asked for another one. The search ends
    when MAX_PROPOSALS proposals in a row contain no new point.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Initialise the search with the arguments of OptunaSearch."""
        super().__init__(*arguments, **options)
        # Point -> its score; None while the point is trained, or if it has no score.
        self._scores: dict[str, float | None] = {}
        # Ray's trial id -> the id that Optuna knows it by, and its point.
        self._proposals: dict[str, tuple[str, str]] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return a point that was not proposed before, or FINISHED."""
        for number in range(MAX_PROPOSALS):
            proposal = f"{trial_id}-{number}"
            point = super().suggest(proposal)
            key = json.dumps(point, sort_keys=True)
            if key not in self._scores:
                self._scores[key] = None
                self._proposals[trial_id] = proposal, key
                return point
            score = self._scores[key]
            super().on_trial_complete(proposal, None if score is None else {self.metric: score}, error=score is None)
        say(f"optuna: {len(self._scores)} points; the search ends because {MAX_PROPOSALS} proposals had no new point")
        return self.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore the report of a running trial: `on_trial_complete` passes the last one to the sampler, once."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Store the score of a trial, and pass it to Optuna."""
        proposal, key = self._proposals[trial_id]
        self._scores[key] = (result or {}).get(self.metric)
        super().on_trial_complete(proposal, result, error)
