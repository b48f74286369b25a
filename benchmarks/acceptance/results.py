"""The results of checks, and the table of all results."""

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from upfield.common.cores import processor_name
from upfield.common.tables import text_table


@dataclass(frozen=True)
class Result:
    """The result of one check."""

    check: int
    title: str
    status: str
    """`passed`, `failed`, `timed out`, `crashed`, `not run` or `needs a GPU`."""
    seconds: float
    limit_s: float
    device: str
    figures: dict[str, Any] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)
    """Statements that were checked and hold."""
    failures: list[str] = field(default_factory=list)
    """Statements that do not hold, and what ended the check early."""
    needs_gpu: list[str] = field(default_factory=list)
    """Parts of the check that a CPU cannot show."""
    done: bool = False
    """Whether the check reached its end."""

    @classmethod
    def from_records(
        cls, check: int, title: str, seconds: float, limit_s: float, device: str, records: Iterable[dict[str, Any]]
    ) -> Self:
        """Build the result of a check that ended, from the lines that it wrote."""
        figures: dict[str, Any] = {}
        lists: dict[str, list[str]] = {"held": [], "failure": [], "needs_gpu": []}
        done = False
        for kind, value in (item for record in records for item in record.items()):
            if kind == "figure":
                figures[value[0]] = value[1]
            elif kind == "done":
                done = True
            else:
                lists[kind].append(value)
        failures, needs_gpu = lists["failure"], lists["needs_gpu"]
        nothing_shown = needs_gpu and not figures and not lists["held"]
        status = "failed" if failures else "needs a GPU" if nothing_shown else "passed"
        seconds, limit_s = round(seconds, 1), round(limit_s, 1)
        return cls(check, title, status, seconds, limit_s, device, figures, lists["held"], failures, needs_gpu, done)

    def ended(self, status: str, reason: str) -> Self:
        """Return the result of a check that did not reach its end."""
        return replace(self, status=status, failures=[*self.failures, reason])

    def to_tree(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)

    def summary(self) -> str:
        """Return a line for the terminal, and a line for each failure."""
        lines = [f"{self.check:>2} {self.title:<16} {self.status} in {self.seconds:.1f} s"]
        return "\n".join([*lines, *(f"   - {failure}" for failure in self.failures)])


def format_table(results: Sequence[Result], device: str, seconds: float) -> str:
    """Format all results: the machine, a row for each check, the figures, the failures, and what needs a GPU."""
    figures = next((result.figures for result in results if "torch" in result.figures), {})
    named = ("card", "driver", "cuda", "cudnn", "torch", "triton", "accelerate", "python")
    machine = [f"{name} {figures[name]}" for name in named if figures.get(name)]
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"acceptance run on {device}{', every check scaled down' if device == 'cpu' else ''}",
        ", ".join([*machine, f"{processor_name()}, {cores} cores, {platform.system()}"]),
        "",
    ]
    rows = [
        [
            str(result.check),
            result.title,
            result.status,
            str(len(result.needs_gpu)),
            f"{result.seconds:.1f}",
            f"{result.limit_s:.0f}",
            f"{len(result.held)} of {len(result.held) + len(result.failures)}",
        ]
        for result in results
    ]
    lines.append(
        text_table(["check", "title", "status", "need a GPU", "time (s)", "limit (s)", "statements that hold"], rows)
    )
    lines.append(f"\n{seconds:.0f} s in all")
    for title, entries in (
        ("Failures", [(result, result.failures) for result in results]),
        ("Figures", [(result, [f"{k}: {format_value(v)}" for k, v in result.figures.items()]) for result in results]),
        ("Statements that hold", [(result, result.held) for result in results]),
        ("Needs a GPU", [(result, result.needs_gpu) for result in results]),
    ):
        if any(texts for _, texts in entries):
            lines.append(f"\n{title}")
            lines += [f"  {result.check:>2} {text}" for result, texts in entries for text in texts]
    return "\n".join(lines) + "\n"


def format_value(value: Any) -> str:
    """Format a figure with four digits, and a dictionary as a list."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_value(each)}" for key, each in value.items())
    return f"{value:z.4g}" if isinstance(value, float) else str(value)
