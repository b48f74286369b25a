"""A run's log, metrics.jsonl, as its readers see it."""

import json
from typing import Any

LOG = "metrics.jsonl"


def parse_log(text: str) -> list[dict[str, Any]]:
    """Read the lines of a log; one that a killed job left unfinished says nothing."""
    return [entry for line in text.splitlines() if (entry := _parsed(line))]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
