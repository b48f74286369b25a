"""Name and parser of a run's log file, `metrics.jsonl`."""

import json
from typing import Any

LOG = "metrics.jsonl"


def parse_log(text: str) -> list[dict[str, Any]]:
    """Parse the lines of a log, and drop an unfinished line that a killed process left behind."""
    return [entry for line in text.splitlines() if (entry := _parse(line))]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
