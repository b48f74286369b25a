"""Files at an address as Arrow opens them. Ray opens the storage of a sweep with Arrow."""

from typing import Any

from upfield.common.stores.store_errors import bad_address, store_errors


def open_with_arrow(address: str) -> tuple[Any, str]:
    """Open an address with Arrow, as Ray does. Return Arrow's file system and the path in it.

    Ray reads and writes a sweep's storage with Arrow, which accepts options at the end of the address
    (`s3://bucket/folder?region=eu-central-1`). `Store` does not know these options, so it could open another store.

    Raises:
        InputError: Arrow cannot open the address.
    """
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(address)
    except (OSError, ValueError) as error:
        raise bad_address(address, error) from error


def read_with_arrow(filesystem: Any, path: str, place: str) -> bytes | None:
    """Read a small file. Return None if it does not exist.

    Args:
        filesystem: Arrow's file system.
        path: path of the file in it.
        place: address of the file for messages.

    Raises:
        InputError: access is denied.
        RunError: the request fails for another reason.
    """
    with store_errors(place, "reading"):
        try:
            with filesystem.open_input_file(path) as file:
                return file.readall()
        except FileNotFoundError:
            return None


def write_with_arrow(filesystem: Any, path: str, place: str, data: bytes) -> None:
    """Write a small file, and create its folder.

    Args:
        filesystem: Arrow's file system.
        path: path of the file in it.
        place: address of the file for messages.
        data: content of the file.

    Raises:
        InputError: access is denied, or there is no such bucket.
        RunError: the request fails for another reason.
    """
    with store_errors(place, "writing"):
        # A file system needs the folder before the file is written; an object store creates it with the file.
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(path) as file:
            file.write(data)
