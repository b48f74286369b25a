"""Prove on a GPU what tests on a CPU cannot, in one command: 12 checks, each a process of its own with a time limit.

`make gpu` runs it. The folder that `--out` names receives `results.jsonl` (one line per check, written as soon as the
check ends), `log.txt` (everything that the checks printed) and `table.txt`. A check that fails, hangs or crashes does
not stop the next one. The exit code is 1 if any check did not pass. `--only 4,6` repeats single checks. Their results
replace the earlier ones in the folder, and the table shows the others too.

The program runs from a plain copy of the repository, without an installed upfield and without a network. It trains on
shards that `--make_shards` writes beforehand, which needs an installed upfield. The whole run takes at most 420
seconds, and checks for which no time is left are reported as not run. With `--device cpu`, every check is scaled down.
This only shows that the program works: the table lists everything that still needs a GPU.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The links to the package folders, for a copy of the repository in which upfield is not installed.
sys.path.insert(1, str(ROOT / "typings"))

from acceptance.plan import CHECKS, Check, choose_checks  # noqa: E402
from acceptance.runner import refuse_absent_gpu, run_checks  # noqa: E402


def main(argv: Sequence[str] | None = None, checks: Sequence[Check] = CHECKS) -> int:
    """Run the checks and return the exit code."""
    arguments = parse_arguments(argv)
    if arguments.check:
        from acceptance.report import run_check

        run_check(arguments.check, arguments.settings)
    if arguments.rank:
        from acceptance.ranks import run_rank

        return run_rank(arguments.rank)
    wanted = choose_checks(checks, arguments.only)
    refuse_absent_gpu(arguments.device)
    if arguments.make_shards or not (arguments.shards / "manifest.json").exists():
        from acceptance.shards import make_shards

        make_shards(arguments.shards)
        if arguments.make_shards:
            return 0
    return run_checks(wanted, arguments.out, arguments.device, arguments.shards, arguments.total_s, arguments.against)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", help="numbers of the checks to run, such as 1,4")
    parser.add_argument("--shards", type=Path, default=ROOT / ".acceptance/shards", help="shards to train on")
    parser.add_argument("--make_shards", action="store_true", help="write the shards and end")
    parser.add_argument("--total_s", type=float, help="time for the whole run; default: 420 on a GPU, 290 on a CPU")
    parser.add_argument("--against", default="", help="the published network, as FILE.py:Class, for check 5")
    # For the processes that this program starts.
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
