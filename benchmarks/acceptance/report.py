"""The report that a check writes while it runs, and the process that runs the check."""

import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a check's process is told."""

    device: str
    """`cuda` or `cpu`."""
    shards: str
    """Shard set to train on."""
    work: str
    """Empty folder for the check's files, deleted afterwards."""
    records: str
    """File to which the report is written, line by line."""
    limit_s: float
    """Seconds after which the process is killed."""
    against: str = ""
    """The published network as FILE.py:Class, to be measured beside ours."""

    def to_json(self) -> str:
        """Return the settings as one line."""
        return json.dumps(asdict(self))


class Report:
    """Figures, expectations and gaps of one check. Each is written at once, so that a killed check keeps them."""

    def __init__(self, settings: Settings) -> None:
        """Start an empty report."""
        self.settings = settings
        self.on_gpu = settings.device == "cuda"
        self.device = settings.device
        self.shards = Path(settings.shards)
        self.work = Path(settings.work)
        self._records = Path(settings.records)
        self._deadline_s = time.monotonic() + settings.limit_s

    def pick(self, *, gpu: T, cpu: T) -> T:
        """Return the size for the device of this run: the real size on a GPU, a small one on a CPU."""
        return gpu if self.on_gpu else cpu

    def seconds_left(self) -> float:
        """Return the seconds until the check is killed, without the start of its process."""
        return self._deadline_s - time.monotonic()

    def figure(self, name: str, value: Any) -> None:
        """Report a measured value; the unit is part of its name."""
        value = rounded(value)
        self._write("figure", [name, value])
        print(f"{name}: {value}", flush=True)

    def expect(self, statement: str, holds: bool, found: str = "") -> None:
        """Report whether a statement holds. If it does not, the check fails but goes on.

        Args:
            statement: what must be true.
            holds: whether it is.
            found: what was measured instead.
        """
        text = f"{statement} ({found})" if found else statement
        self._write("held" if holds else "failure", text)
        print(f"{'held' if holds else 'FAILED'}: {text}", flush=True)

    def fail(self, what: str, error: BaseException) -> None:
        """Report that a part of the check raised an error, with its traceback in the log."""
        traceback.print_exception(error, file=sys.stdout)
        lines = str(error).strip().splitlines() or [""]
        self.expect(f"{what} runs", False, f"{type(error).__name__}: {lines[0][:300]}")

    def needs_gpu(self, what: str) -> None:
        """Report a part that this run cannot show without a GPU."""
        self._write("needs_gpu", what)
        print(f"needs a GPU: {what}", flush=True)

    def text(self, title: str, text: str) -> None:
        """Write details to the log only."""
        print(f"\n-- {title}\n{text}\n", flush=True)

    def finish(self) -> None:
        """Report that the check reached its end."""
        self._write("done", True)

    def _write(self, kind: str, value: Any) -> None:
        with self._records.open("a", encoding="utf-8") as file:
            file.write(json.dumps({kind: value}) + "\n")


def rounded(value: Any) -> Any:
    """Round floats to five digits, also inside a dictionary."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:z.5g}") if isinstance(value, float) else value


def run_check(module: str, settings: str) -> NoReturn:
    """Run one check in this process, and end the process.

    Args:
        module: module with a function `run`, which takes a report.
        settings: line of `Settings.to_json`.
    """
    report = Report(Settings(**json.loads(settings)))
    # The log of a check that hangs ends with the place where it hangs.
    faulthandler.enable(sys.stdout)
    limit_s = report.settings.limit_s
    faulthandler.dump_traceback_later(max(0.2, min(limit_s - 5.0, 0.8 * limit_s)), file=sys.stdout)
    try:
        importlib.import_module(module).run(report)
    except Exception as error:
        report.fail(module.rpartition(".")[2], error)
    report.finish()
    # Nothing that libraries do when the interpreter ends is part of the check, and some of it can hang.
    for child in psutil.Process().children(recursive=True):
        child.kill()
    sys.stdout.flush()
    os._exit(0)
