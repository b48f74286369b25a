"""`upfield enhance`: enhance single files or whole folders of NIfTI scans."""

import sys

from upfield.common.command import Command, execute
from upfield.export.configuration import EnhanceConfig


def enhance(config: EnhanceConfig) -> None:
    """Enhance every scan; a scan that cannot be enhanced does not stop the others."""
    from upfield.export.scans.enhance_scans import enhance_scans

    enhance_scans(config)


COMMAND = Command(
    "enhance",
    EnhanceConfig,
    enhance,
    positional=("model", "scans"),
    suffixes={"model": ".onnx"},
    examples=(
        "upfield enhance scan.nii.gz --out enhanced.nii.gz",
        "upfield enhance model.onnx scans/ --out enhanced/ --match '*_T1w*'",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
