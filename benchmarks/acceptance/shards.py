"""The shards that the acceptance run trains on: 4 phantoms of 16 slices, 14 MB."""

import sys
import tempfile
from pathlib import Path


def make_shards(folder: Path) -> None:
    """Write the shards to `folder`. This needs the whole installation of upfield.

    Raises:
        SystemExit: a library that makes phantoms is missing, or the folder holds other files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"{folder}: expected shards or an empty folder. Delete it, or choose another --shards.")
    try:
        from loop import make_shards as write_shards
    except ModuleNotFoundError as error:
        sys.exit(
            f"{folder}: there are no shards here, and {error.name}, which is needed to make them, is not installed. "
            "Run `make gpu-shards` where upfield is installed, and copy the folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        write_shards(Path(work))
        (Path(work) / "shards").rename(folder)
