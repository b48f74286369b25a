"""Remove or refuse variables that would change what is computed, and record those that change its rounding."""

import locale
import logging
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

from upfield.common.environment.influences import TRAINS, USES_RAY, find
from upfield.common.environment.treatments import ANY, RECORDED, REFUSED, REMOVED, Influence
from upfield.common.errors import InputError
from upfield.common.files import NO_HOME
from upfield.common.progress import say

# Without this variable, ONNX Runtime sends telemetry over the network.
ALWAYS_SET = {"ORT_DISABLE_TELEMETRY": "1"}
# Accelerate raises an error at other values of these flags.
FLAGS = ("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY")
# torch and torchmetrics read these as numbers when they are imported.
NUMBERS_OF_LAUNCHERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
MAY_HAVE_LAUNCHER = (*TRAINS.split(), "evaluate", "export")
TRUTH_VALUES = ("y", "yes", "t", "true", "on", "1", "n", "no", "f", "false", "off", "0")
# Ray reads these variables when it is imported.
SET_FOR_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_TRAIN_V2_ENABLED": "1"}
# Ray's sockets are at FOLDER/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store, which Unix limits to
# 107 characters.
LONGEST_TEMPORARY = 39


def use_utf8() -> None:
    """Start this process again if it reads names of files in another encoding than UTF-8.

    The ids of subjects are parts of file names, so another encoding would give other ids, and other synthetic pairs.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    # The terminal keeps its own encoding.
    os.environ.setdefault("PYTHONIOENCODING", f"{locale.getencoding()}:backslashreplace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def settle_environment(verb: str, in_worker: bool = False) -> None:
    """Remove the variables that must not have an effect, and say so. Call it before heavy libraries are imported.

    Only the first process of a job prints a line, and processes that Ray or another program has started print none.

    Args:
        verb: command that runs.
        in_worker: whether another program, such as Ray, has started this process.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    for name, influence in _present(REMOVED):
        if in_worker and influence.belongs_to_worker:
            continue
        value = os.environ.pop(name)
        if is_first and not in_worker and _concerns(influence, verb) and not _is_usual(influence, value):
            remedy = f"; use {influence.instead} instead" if influence.instead else ""
            say(f"the environment variable {name}={value} has no effect on upfield{remedy}")
    os.environ |= ALWAYS_SET
    if any(option.startswith("error") for option in sys.warnoptions):
        # Libraries warn while they are imported, which must not end the command.
        warnings.simplefilter("default")
    for name in NUMBERS_OF_LAUNCHERS[1:]:
        if os.environ.get(name) == "":
            del os.environ[name]
    # Without a home folder, matplotlib keeps its cache in a temporary folder, and would say so in each process.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if verb in USES_RAY.split():
        _prepare_for_ray()
    if verb == "tune" and not _has_home():
        # Ray Train cannot be imported by a user without a home folder.
        os.environ["HOME"] = str(NO_HOME)


def refuse_environment(verb: str) -> None:
    """Check that no variable asks for something that upfield does not do.

    Raises:
        InputError: a variable is set that upfield refuses, a flag is neither true nor false, or a variable of a
            launcher is not a number.
    """
    for name, influence in _present(REFUSED):
        if _concerns(influence, verb) and not _is_usual(influence, os.environ[name]):
            raise InputError(
                f"{name}={os.environ[name]}: this environment variable {influence.changes}, which upfield does not "
                f"support. Unset it or change the launcher's configuration, and use {influence.instead} instead."
            )
    if verb in MAY_HAVE_LAUNCHER:
        _expect_numbers()
    for name in (name for name in FLAGS if name in os.environ and verb in TRAINS.split()):
        if os.environ[name].lower() not in TRUTH_VALUES:
            raise InputError(
                f"{name}: expected true or false in this environment variable, found {os.environ[name]!r}."
            )


def explain_variable(error: Exception) -> str | None:
    """Return what is wrong with the environment variable that made a library fail, or None if none did."""
    if "TORCH_LOGS" in os.environ and "log settings" in str(error):
        return (
            f"TORCH_LOGS={os.environ['TORCH_LOGS']}: PyTorch does not know this setting. Correct or unset the variable."
        )
    return None


def _expect_numbers() -> None:
    # In Kubernetes, a service called `master` sets MASTER_PORT to an address.
    for name in NUMBERS_OF_LAUNCHERS if "WORLD_SIZE" in os.environ else NUMBERS_OF_LAUNCHERS[:-1]:
        if not re.fullmatch(r"-?[0-9]{1,9}", os.environ.get(name, "0")):
            raise InputError(
                f"{name}: expected a number in this environment variable, found {os.environ[name]!r}. Launchers such "
                "as torchrun set it; to run one process, unset it."
            )
    level = os.environ.get("ACCELERATE_LOG_LEVEL", "INFO")
    if level.upper() not in logging.getLevelNamesMapping():
        raise InputError(f"ACCELERATE_LOG_LEVEL: expected a level such as INFO, found {level!r}. Correct or unset it.")


def recorded_environment() -> dict[str, str]:
    """Return the variables, with their values, that change rounding or the device, sorted by name."""
    return {name: os.environ[name] for name, _ in _present(RECORDED)}


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def _prepare_for_ray() -> None:
    os.environ |= SET_FOR_RAY
    # Without this variable, Ray uses TMPDIR, or else /tmp even if it cannot be written.
    if "RAY_TMPDIR" not in os.environ and len(os.environ.get("TMPDIR", "")) not in range(1, LONGEST_TEMPORARY + 1):
        os.environ["RAY_TMPDIR"] = str(short_temporary_folder())


def short_temporary_folder() -> Path:
    """Return /tmp if it can be written, because Ray needs a folder with a short name, or else Python's choice.

    Raises:
        FileNotFoundError: no folder for temporary files can be written.
    """
    return Path("/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir())


def _present(treatment: str) -> list[tuple[str, Influence]]:
    """Return the variables of the environment that are treated in this way, sorted by name."""
    entries = [(name, find(name)) for name in sorted(os.environ)]
    return [(name, influence) for name, influence in entries if influence and influence.treatment == treatment]


def _concerns(influence: Influence, verb: str) -> bool:
    return not influence.verbs or verb in influence.verbs.split()


def _is_usual(influence: Influence, value: str) -> bool:
    return influence.usual == ANY or value.strip().lower() in ("", *influence.usual.split())
