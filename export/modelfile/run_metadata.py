"""The part of a model file's metadata that describes its run: origin and measurements, without folders or dates."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError
from upfield.common.files import hash_file
from upfield.common.progress import say
from upfield.model.weights import MODEL, BestModel

# Paths can contain names of people and machines, and model files are passed on to others.
PATHS = {"data": ("shards", "trace", "cache_dir"), "run": ("out", "resume"), "model": ("init",)}
PACKAGES = ("upfield", "torch", "onnx")
STEP = re.compile(r"\bstep (\d+)\)")


def describe_run(best: BestModel, run: Path, precision: str, evaluation: Path | None) -> dict[str, Any]:
    """Return the metadata that describes a run; `geometry` and `parity` are added later.

    Args:
        best: the run's best model.
        run: folder of the run.
        precision: `fp32` or `fp16`, of the model file.
        evaluation: the metrics.json of an evaluation of this run.

    Raises:
        InputError: `evaluation` is not a metrics.json, or describes another model.
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
        "contrast": best.contrast,
        "skull_stripped": best.skull_stripped,
        "data_sha256": best.data_sha256,
        "weights_sha256": weights_sha256,
        "step": best.step,
        "metrics": metrics,
        "versions": {name: version(name) for name in PACKAGES},
    }


def without_paths(training: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a training configuration without the keys that hold paths."""
    return {
        section: {key: value for key, value in values.items() if key not in PATHS.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in training.items()
    }


def read_evaluation(path: Path, best: BestModel, weights_sha256: str) -> dict[str, Any]:
    """Read the metrics of an evaluation, and check that it evaluated this model.

    Returns:
        Name of the evaluated split -> its metrics, the data they were measured on, and under `checked` the properties
        by which the model was recognised.

    Raises:
        InputError: the file is not a metrics.json, or describes another model.
    """
    tree = _read_json(path)
    try:
        about = tree["about"]
        figures = {"cubic": tree["cubic"], "model": tree["model"]}
        figures |= {key: about[key] for key in ("split", "data_sha256", "slices", "subjects")}
        checked = _expect_same_model(about, best, weights_sha256, path)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} lacks {error}. Name the metrics.json that upfield evaluate wrote.") from error
    if checked != "weights":
        say(f"{path}: the file does not record the hash of the weights, so only {checked} could be compared")
    return {figures["split"]: figures | {"checked": checked}}


def _expect_same_model(about: dict[str, Any], best: BestModel, weights_sha256: str, path: Path) -> str:
    """Compare an evaluation's model with the run's best model, and return the properties that could be compared."""
    recorded = about.get("models", {}).get("model", {})
    step = recorded.get("step", _step_in(about["restorer"]))
    if step != best.step:
        raise InputError(
            f"{path} is an evaluation of step {step} ({about['restorer']}), but the run's best step is {best.step}. "
            "Evaluate the run again."
        )
    if recorded.get("sha256") == weights_sha256:
        return "weights"
    # An evaluation of a run records the hash of the weights; one of a model file records the hash of the whole file.
    if "best model" in about["restorer"] and "sha256" in recorded:
        raise InputError(
            f"{path} is an evaluation of other weights of the same step ({about['restorer']}). Evaluate the run again."
        )
    if recorded.get("trained_on_sha256", best.data_sha256) != best.data_sha256:
        raise InputError(
            f"{path} is an evaluation of a model that was trained on other shards ({about['restorer']}). Evaluate the "
            "run again."
        )
    return "step and training data" if "trained_on_sha256" in recorded else "step"


def _step_in(restorer: str) -> int | None:
    match = STEP.search(restorer)
    return int(match[1]) if match else None


def _read_json(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name the metrics.json in it.")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file. Name the metrics.json of an evaluation.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Name the metrics.json of an evaluation.") from error
    if not isinstance(tree, dict):
        raise InputError(
            f"{path}: expected a JSON object, found {type(tree).__name__}. Name the metrics.json of an evaluation."
        )
    return tree
