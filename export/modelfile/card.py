"""What a model file says of itself: where it comes from and what was measured, and no folder, name or time."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError
from upfield.common.files import hash_file
from upfield.common.progress import say
from upfield.model.weights import MODEL, BestModel

# They name people and machines, and a model file travels.
PATHS = {"data": ("shards", "trace", "cache_dir"), "run": ("out", "resume"), "model": ("init",)}
PACKAGES = ("upfield", "torch", "onnx")
STEP = re.compile(r"\bstep (\d+)\)")


def describe(best: BestModel, run: Path, precision: str, evaluation: Path | None) -> dict[str, Any]:
    """Give a run's metadata, all but the parity.

    Args:
        best: the run's best model.
        run: its folder.
        precision: of the file, `fp32` or `fp16`.
        evaluation: a metrics.json about this run.

    Raises:
        InputError: the evaluation is none, or of another model.
    """
    weights_sha256 = hash_file(run / "best" / MODEL)
    metrics = {"validation": best.validation}
    if evaluation is not None:
        metrics |= read_evaluation(evaluation, best, weights_sha256)
    return {
        "config": without_paths(best.config),
        "model": best.network.config.to_tree(),
        "precision": precision,
        "context": best.context,
        "normalisation": best.normalisation,
        "data_sha256": best.data_sha256,
        "weights_sha256": weights_sha256,
        "step": best.step,
        "metrics": metrics,
        "versions": {name: version(name) for name in PACKAGES},
    }


def without_paths(training: dict[str, Any]) -> dict[str, Any]:
    """Give a training configuration without its folders."""
    return {
        section: {key: value for key, value in values.items() if key not in PATHS.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in training.items()
    }


def read_evaluation(path: Path, best: BestModel, weights_sha256: str) -> dict[str, Any]:
    """Give, under the name of its split, what an evaluation measured and on what.

    Raises:
        InputError: no evaluation, or one of another model.
    """
    measured = _read_json(path)
    try:
        about = measured["about"]
        found = {"cubic": measured["cubic"], "model": measured["model"]}
        found |= {key: about[key] for key in ("split", "data_sha256", "slices", "subjects")}
        checked = _expect_same_model(about, best, weights_sha256, path)
        if checked != "weights":
            say(f"{path}: it does not say which weights it is of; checked by {checked} alone")
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the metrics.json of upfield evaluate, found no {error} in it") from error
    return {found["split"]: found | {"checked": checked}}


def _expect_same_model(about: dict[str, Any], best: BestModel, weights_sha256: str, path: Path) -> str:
    """Compare what an evaluation says of its model with the run's, and tell by what they were found to be the same."""
    said = about.get("models", {}).get("model", {})
    step = said.get("step", _step_in(about["restorer"]))
    if step != best.step:
        raise InputError(
            f"{path}: expected an evaluation of this run's best model, of step {best.step}, found one of step {step} "
            f"({about['restorer']}); evaluate the run again"
        )
    if said.get("sha256") == weights_sha256:
        return "weights"
    # A model file's hash is not its weights'; of a run it is.
    if "PyTorch" in about["restorer"] and "sha256" in said:
        raise InputError(
            f"{path}: expected an evaluation of this run's weights, found one of others of the same step "
            f"({about['restorer']}); evaluate the run again"
        )
    if said.get("trained_on_sha256", best.data_sha256) != best.data_sha256:
        raise InputError(
            f"{path}: expected an evaluation of a model trained on this run's shards, found one trained on others "
            f"({about['restorer']}); evaluate the run again"
        )
    return "step and training data" if "trained_on_sha256" in said else "step"


def _step_in(restorer: str) -> int | None:
    found = STEP.search(restorer)
    return int(found[1]) if found else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        found = "a folder; name the file in it" if path.is_dir() else "none; check the path"
        raise InputError(f"{path}: expected the metrics.json of an evaluation, found {found}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON file, found none that can be read: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected the metrics.json of an evaluation, found {type(tree).__name__}")
    return tree
