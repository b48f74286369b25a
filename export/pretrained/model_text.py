"""The models that come with the package as text: their list, and their cards with the figures of the model files."""

import sys
from collections.abc import Sequence
from typing import Any

from upfield.common.files import hash_file
from upfield.common.tables import PLAIN_WIDTH, terminal_width, text_table
from upfield.export.modelfile.card import ModelCard, read_card
from upfield.export.pretrained.packaged_model import PackagedModel
from upfield.imaging.contrast import format_contrasts
from upfield.model.metric_names import is_error

# The place in a card's Markdown where the figures are printed.
FIGURES = "<!-- figures -->"
METHODS = ("cubic", "model")
# Ends of the names of statistics other than the mean.
STATISTICS = ("_std", "_min", "_max", "_median")


def list_text(models: Sequence[PackagedModel]) -> str:
    """Return a table with the name, the use, the size and the summary of each model."""
    header = ("name", "enhances", "size", "what it is")
    rows = [(model.name, model.enhances, _size(model), model.summary) for model in models]
    table = text_table(
        header, rows, wrapped=("enhances", "what it is"), width=terminal_width(sys.stdout) or PLAIN_WIDTH
    )
    return f"{table}\nupfield models NAME prints the card of a model."


def card_text(model: PackagedModel) -> str:
    """Return a model's card in Markdown, with the figures of its file in their place.

    Raises:
        InputError: the model file is damaged.
    """
    card = read_card(model.path)
    head = f"# {model.name}, version {model.version}\n\n{model.summary}."
    return f"{head}\n\n{model.text.replace(FIGURES, figures_text(model, card))}"


def figures_text(model: PackagedModel, card: ModelCard) -> str:
    """Return the figures of a model as tables: about its file, from its evaluation, and the card's own."""
    metrics = card.tree.get("metrics", {})
    parts = [text_table(("file", ""), _file_rows(model, card)), _validation_text(metrics.get("validation", {}))]
    parts += [_evaluation_text(name, split) for name, split in metrics.items() if METHODS[1] in split]
    if model.measured:
        own = [(what, str(result)) for what, result in model.measured.items()]
        parts.append(text_table(("measured with this file", ""), own))
    return "\n\n".join(f"```text\n{part}\n```" for part in parts if part)


def _file_rows(model: PackagedModel, card: ModelCard) -> list[tuple[str, str]]:
    tree: dict[str, Any] = card.tree
    parity = tree.get("parity", {})
    preset = tree["config"].get("model", {}).get("preset")
    rows = [
        ("path", str(model.path)),
        ("size", _size(model)),
        ("sha256", hash_file(model.path)),
        ("trained on data with hash", tree["data_sha256"]),
        ("network", f"AMIR, preset {preset}, {tree.get('precision', 'fp32')}"),
        ("input", f"a slice with {card.context} neighbours on each side" if card.context else "a single slice"),
        ("optimizer steps", str(tree["step"])),
        ("contrast", format_contrasts(card.contrasts or ("not known",))),
        ("made with", ", ".join(f"{name} {number}" for name, number in tree.get("versions", {}).items())),
    ]
    if parity:
        largest = f"{parity['max_abs_difference']:.2g} on {parity['slices']} validation slices"
        rows.append(("largest difference from PyTorch", largest))
    return rows


def _validation_text(metrics: dict[str, Any]) -> str:
    """Return a table of the metrics that training computed: those that it computed for cubic interpolation too."""
    names = [name for name in metrics if f"cubic_{name}" in metrics and not name.endswith(STATISTICS)]
    rows = [(_label(name), _number(metrics[f"cubic_{name}"]), _number(metrics[name])) for name in names]
    slices = f"validation, {metrics['slices']} slices" if "slices" in metrics else "validation"
    return text_table((slices, *METHODS), rows, numeric=True) if rows else ""


def _evaluation_text(split: str, metrics: dict[str, Any]) -> str:
    """Return a table of the means of an evaluation."""
    cubic, model = (metrics[method] for method in METHODS)
    rows = [
        (_label(name), _number(cubic[name]["mean"]), _number(model[name]["mean"]))
        for name in cubic
        if name in model and None not in (cubic[name]["mean"], model[name]["mean"])
    ]
    subjects = metrics["subjects"]
    title = f"{split}, {metrics['slices']} slices of {subjects} subject{'' if subjects == 1 else 's'}"
    return text_table((title, *METHODS), rows, numeric=True)


def _label(metric: str) -> str:
    return f"{metric} (lower)" if is_error(metric) else metric


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 2 else f"{value:.4f}"


def _size(model: PackagedModel) -> str:
    return f"{model.path.stat().st_size / 1e6:.1f} MB"
