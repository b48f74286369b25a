"""Count how often the host waits for the GPU in the steps of a run."""

import warnings
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch

from acceptance.report import Report
from acceptance.stepping import run_config, train
from upfield.distributed import loop
from upfield.distributed.configuration import ModelConfig

STEPS, FIRST, LAST = 12, 6, 10


def report_waits(report: Report) -> None:
    """Train a few steps through `fit`, and report the waits of the host between two of them, and where they are."""
    if not report.on_gpu:
        report.needs_gpu("waits of the host for the device in a step")
        return
    config = run_config(
        report, "waits", ModelConfig(preset="report"), STEPS, 4, log_every=STEPS, data_num_workers=2, precision="bf16"
    )
    waits = Waits()
    original = loop.train_step
    loop.train_step = waits.around(original)
    try:
        train(config)
    finally:
        loop.train_step = original
        torch.cuda.set_sync_debug_mode("default")
    report.text("waits of the host by place", "\n".join(f"{count} {place}" for place, count in waits.places.items()))
    if not waits.counts_a_wait:
        report.expect("a deliberate wait is counted", False, "torch announced no wait of the host")
    per_step = waits.places.total() / (LAST - FIRST)
    report.figure("waits_per_step", per_step)
    report.expect("the host does not wait in a step", per_step == 0, ", ".join(waits.places))


class Waits:
    """Watches the steps from FIRST up to LAST, and everything between them: reading, logging, and the step itself."""

    def __init__(self) -> None:
        """Start with no waits."""
        self.places: Counter[str] = Counter()
        self.counts_a_wait = False
        """Whether a deliberate wait was seen; otherwise, the number of waits means nothing."""
        self._step = 0
        self._watch = ExitStack()
        self._caught: list[warnings.WarningMessage] = []

    def around(self, step: Any) -> Any:
        """Return a function that takes a step like `step`, and starts and ends the watch."""

        def watched(*arguments: Any, **named: Any) -> Any:
            if self._step == FIRST:
                self._caught = self._watch.enter_context(warnings.catch_warnings(record=True)) or []
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
            elif self._step == LAST:
                own = len(self._caught)
                torch.ones((), device="cuda").item()
                torch.cuda.set_sync_debug_mode("default")
                self._watch.close()
                for number, each in enumerate(self._caught):
                    if "synchronizing" not in str(each.message):
                        continue
                    if number < own:
                        self.places[f"{each.filename}:{each.lineno}"] += 1
                    else:
                        self.counts_a_wait = True
            self._step += 1
            return step(*arguments, **named)

        return watched
