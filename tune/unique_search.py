"""Optuna's sampler, kept from proposing a point twice: lists and ranges of integers hold only so many."""

import json
from typing import Any

from ray.tune.search.optuna import OptunaSearch

from upfield.common.progress import say

MOST_PROPOSALS = 200


class DistinctOptunaSearch(OptunaSearch):
    """Asks again where a point comes twice, having told Optuna what became of it; ends where nothing new comes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what OptunaSearch takes."""
        super().__init__(*arguments, **options)
        # Point -> what became of it; None while it is trained.
        self._scores: dict[str, float | None] = {}
        # Ray's trial -> Optuna's, and its point.
        self._asked: dict[str, tuple[str, str]] = {}

    def suggest(self, trial_id: str) -> Any:
        """Give a point that was not proposed before, or FINISHED."""
        for number in range(MOST_PROPOSALS):
            asked = f"{trial_id}-{number}"
            point = super().suggest(asked)
            key = json.dumps(point, sort_keys=True)
            if key not in self._scores:
                self._scores[key] = None
                self._asked[trial_id] = asked, key
                return point
            score = self._scores[key]
            super().on_trial_complete(asked, None if score is None else {self.metric: score}, error=score is None)
        say(f"optuna: {len(self._scores)} points, and none else in {MOST_PROPOSALS} proposals; the search ends there")
        return self.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep a trial's reports from Optuna, whose sampler asks for the last only and wants none of them twice."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on what became of a trial, and keep it."""
        asked, key = self._asked[trial_id]
        self._scores[key] = (result or {}).get(self.metric)
        super().on_trial_complete(asked, result, error)
