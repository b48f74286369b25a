"""The models that come with the package: which there are, and which file a user means by a name or a path."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from upfield.common.errors import InputError
from upfield.common.grammar.suggestions import nearest
from upfield.common.grammar.yaml_files import load_yaml
from upfield.common.places import recognise, shown_whole

FOLDER = Path(__file__).parent
# A card begins with these lines and YAML between them.
FENCE = "---\n"


@dataclass(frozen=True)
class PackagedModel:
    """A model file of this folder, with the card beside it."""

    name: str
    """Name of both files without their suffixes."""
    version: int
    """Number of the model's version. It grows when the weights change."""
    enhances: str
    """Scans that the model was trained for."""
    summary: str
    """What the model is and what it was trained on, in one line without a full stop."""
    caution: str
    """What every user must know about the results, in one line without a full stop."""
    sha256: str
    """Hash of the model file that `measured` is about."""
    measured: Mapping[str, str]
    """What was measured -> result, for figures that the model file's metadata does not hold."""
    text: str
    """The rest of the card, in Markdown."""

    @property
    def path(self) -> Path:
        """The model file."""
        return FOLDER / f"{self.name}.onnx"

    @property
    def introduction(self) -> str:
        """Two lines about the model for people who use it without having chosen it."""
        return (
            f"{self.name}, version {self.version}: {self.summary} (upfield models {self.name})\n"
            f"{self.name}: {self.caution}"
        )


def model_names() -> list[str]:
    """Return the names of all models, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.onnx"))


def read_model(name: str) -> PackagedModel:
    """Read the card of the model with this name, which exists."""
    _, head, text = (FOLDER / f"{name}.md").read_text(encoding="utf-8").split(FENCE, 2)
    return PackagedModel(name=name, text=text.strip(), **load_yaml(head))


def all_models() -> list[PackagedModel]:
    """Return all models, in the order of their names."""
    return [read_model(name) for name in model_names()]


def model_named(name: str) -> PackagedModel:
    """Return a model by its name.

    Raises:
        InputError: no model has this name.
    """
    names = model_names()
    if name not in names:
        raise InputError(
            f"{name}: no model with this name comes with the package{nearest(name, names)}. Known models: "
            f"{', '.join(names)}."
        )
    return read_model(name)


def model_at(path: Path) -> PackagedModel | None:
    """Return the model whose file lies at `path`; None if the file does not come with the package."""
    own = path.suffix == ".onnx" and path.resolve().parent == FOLDER.resolve() and path.stem in model_names()
    return read_model(path.stem) if own else None


def describe_model(path: Path) -> dict[str, int | str | None]:
    """Return the version and the caution of the model whose file lies at `path`, as records hold them.

    Both are None if the file does not come with the package.
    """
    model = model_at(path)
    return {"model_version": model and model.version, "model_caution": model and model.caution}


def find_model(model: Path, or_run: bool = False) -> Path:
    """Return the model file that a user means: one that comes with the package, or any other.

    A name counts before a file or folder of the same name, so that no file in the user's folder takes the place of the
    default.

    Args:
        model: name of a model, or path of a model file, which need not exist.
        or_run: whether the folder of a run will do, too.

    Raises:
        InputError: the text is neither the name of a model nor a path, or the path is something else, such as a run.
    """
    names = model_names()
    if str(model) in names:
        return model_named(str(model)).path
    if model.exists():
        refuse_other_place(model, or_run)
        return model
    if model.suffix.lower() != ".onnx" and model.parent == Path():
        return model_named(str(model)).path
    if model.stem in names:
        raise InputError(f"{model}: there is no such file. For the model of the package, write {model.stem}.")
    return model


def refuse_other_place(model: Path, or_run: bool = False) -> None:
    """Raise InputError if a path that should be a model file is recognised as something else.

    Args:
        model: the path.
        or_run: whether the folder of a run will do, too.
    """
    found = recognise(model)
    if found is None or found.kind == "a model file" or (or_run and found.kind == "the folder of a run"):
        return
    if found.kind in ("the folder of a run", "a part of a run"):
        raise InputError(
            f"{model} is {found.kind}, not a model file. Write one with upfield export {shown_whole(found)} --out "
            "model.onnx, and name model.onnx."
        )
    raise InputError(f"{model} is {found.kind}, not a model. Name an .onnx file or a model that upfield models lists.")


def run_or_model(place: Path) -> Path:
    """Return the folder or file at a path, or if there is none, the file of the model with this name.

    Args:
        place: folder of a run, path of a model file, or name of a model that comes with the package.
    """
    return FOLDER / f"{place}.onnx" if not place.exists() and str(place) in model_names() else place
