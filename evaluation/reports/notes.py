"""Notes for readers of the metrics: the amount of data, and the limits of the conclusions."""

from typing import Any

from upfield.common.tables import counted
from upfield.evaluation.measurements import AGAINST, CUBIC, MODEL
from upfield.evaluation.metrics import METRICS

NOT_HELD_OUT = {
    "train": "split train: the model was trained on these subjects, so the figures say nothing about other subjects",
    "val": "split val: the best model was chosen on these subjects, so the figures are too favourable",
}
# A paired test over fewer subjects cannot reach p < 0.05.
FEW_SUBJECTS = 6


def counts_text(about: dict[str, Any]) -> str:
    """Describe the amount of data: slices, volumes of each kind, subjects, and the split."""
    subjects = "1 subject" if about["subjects"] == 1 else f"{about['subjects']} subjects"
    volumes = " and ".join(f"{count} {kind}" for kind, count in about["volumes"].items())
    plural = "s" if sum(about["volumes"].values()) > 1 else ""
    return f"{about['slices']} slices of {volumes} volume{plural}, {subjects}, split {about['split']}"


def notes(tree: dict[str, Any]) -> list[str]:
    """Return notes on the limits of the conclusions: subjects seen in training, values left out, too few subjects.

    Args:
        tree: the contents of metrics.json.
    """
    return [*_notes_on_subjects(tree["about"]), *_notes_on_values(tree), *_notes_on_tests(tree["about"]["subjects"])]


def _notes_on_subjects(about: dict[str, Any]) -> list[str]:
    texts = [NOT_HELD_OUT[about["split"]]] if about["split"] in NOT_HELD_OUT else []
    if failed := sorted({failure["volume"] for failure in about.get("failed_volumes", ())}):
        texts.append(f"{counted(len(failed), 'volume')} could not be measured: {', '.join(failed)}")
    if len(about["volumes"]) > 1:
        texts.append("these means mix real and synthetic volumes, which the report also lists separately")
    for name, origin in about["models"].items():
        if (trained_on := origin["trained_on_sha256"]) != (measured_on := about["data_sha256"]):
            texts.append(
                f"{name}: trained on a shard set with data hash {trained_on[:12]}, not on this set "
                f"({measured_on[:12]}), so it is unknown whether the model was trained on these subjects"
            )
    return texts


def _notes_on_values(tree: dict[str, Any]) -> list[str]:
    texts = ["means are over all slices or volumes, and differences are over subjects"]
    for method in (CUBIC, MODEL, AGAINST):
        for name, metric in METRICS.items():
            counts = tree.get(method, {}).get(name, {})
            if counts.get("infinite"):
                texts.append(f"{method}, {name}: {counts['infinite']} {metric.level}s without any error are left out")
            # Slices with little of the head are left out by definition.
            if counts.get("undefined") and counts["count"] and metric.level == "volume":
                texts.append(f"{method}, {name}: undefined for {counts['undefined']} volumes, which are left out")
    undefined = [name for name in METRICS if tree[MODEL][name]["mean"] is None]
    if undefined:
        texts.append(f"these metrics are undefined for images of this size or content: {', '.join(undefined)}")
    return texts


def _notes_on_tests(subjects: int) -> list[str]:
    if subjects < 2:
        return ["one subject has neither an interval nor a p-value, because its slices are not independent"]
    if subjects < FEW_SUBJECTS:
        smallest = f"{2 / 2**subjects:.3g}"
        return [f"a paired test over {subjects} subjects cannot give a p-value below {smallest}"]
    return []
