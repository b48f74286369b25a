"""`upfield models`: list the models that come with the package, or print the card of one of them."""

import sys

from upfield.common.command import Command, execute
from upfield.export.configuration import ModelsConfig


def models(config: ModelsConfig) -> None:
    """Print the list of models or a card."""
    from upfield.export.pretrained.model_text import card_text, list_text
    from upfield.export.pretrained.packaged_model import all_models, model_named

    print(list_text(all_models()) if config.name is None else card_text(model_named(config.name)))


COMMAND = Command(
    "models",
    ModelsConfig,
    models,
    positional=("name",),
    examples=("upfield models", "upfield models starter-t1"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
