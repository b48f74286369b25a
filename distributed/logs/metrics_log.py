"""The file `metrics.jsonl` of a run, for its readers."""

import json
from typing import Any

LOG = "metrics.jsonl"


def parse_log(text: str) -> list[dict[str, Any]]:
    """Parse the lines of a log, and drop one that a killed process left unfinished."""
    return [entry for line in text.splitlines() if (entry := _parse(line))]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
