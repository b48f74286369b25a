"""The keys that all commands share that read a shard set. This file imports nothing heavy."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """How the files of a remote shard set are downloaded and cached. All commands that read a set have these keys."""

    cache_dir: Path | None = None
    """Folder in which downloaded shards are kept for all processes of the node and for later runs. Use a local disk,
    because a network drive is no faster than the store. The default is `~/.cache/upfield/shards`."""
    cache_bytes: int = 50_000_000_000
    """Maximum size of `cache_dir` in bytes. The least recently used shards are evicted first. In training, the cache
    must hold two windows of shards of each group that the node reads. If it holds all shards of these groups, each
    shard is downloaded only once. Otherwise, shards are downloaded again in each epoch. The default holds 34
    windows of 16 shards of 90 MB, and most nodes have that much free space."""
    fetch_retries: int = 5
    """Number of retries if a download fails or the downloaded file does not match the manifest. The pause before the
    first retry is half a second at most, and each further pause is twice as long. More retries survive longer outages.
    Fewer retries stop the run sooner if a shard is lost."""
    fetch_timeout_s: float = 60.0
    """Time in seconds after which a transfer that receives no data is tried again. A shorter timeout detects stalls
    sooner. A longer timeout tolerates stores that respond slowly."""
    fetch: Literal["shards", "samples"] = "shards"
    """What is downloaded from a remote set. `shards` downloads whole shards and keeps them in `cache_dir`, so a later
    epoch or run reads them from the disk. `samples` downloads single samples shortly before they are read, and keeps
    none of them. Choose it for a set that does not fit the cache, or to read few samples of a large set. The store must
    answer requests for ranges of bytes, and the set must have checksums of its samples. Each process sends up to 64
    requests at once. Before they are read, it holds up to 64 MiB of samples in memory, or `prefetch` + 1 batches if
    these are larger. The order of the samples does not depend on this key, and the key has no effect on a folder."""
    fetch_command: str | None = None
    """Command that downloads a file and writes it to its standard output, for example `s5cmd cat {url}` or
    `aws s3 cp {url} -`. `{url}` stands for the address of the file. Every file of the set is then downloaded by this
    command, which runs once per file and without a shell. By default, no command is run. The files of a run contain the
    command, so keep passwords out of it."""

    # Part of the command's configuration that holds these keys, for messages, and their title in the help. Both have no
    # annotation, so they are no keys.
    part = ""
    title = "Access to remote shard sets"

    def flag(self, name: str) -> str:
        """Return the flag of a key, such as `--cache_dir`, or `--data.cache_dir` for `upfield train`."""
        return f"--{self.part}{name}"

    def __post_init__(self) -> None:
        """Check that the numbers are in range, and that the command has a place for an address."""
        for name, least in (("cache_bytes", 1), ("fetch_retries", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{self.part}{name}: expected at least {least}, found {value}.")
        if not self.fetch_timeout_s > 0:
            raise ValueError(f"{self.part}fetch_timeout_s: expected a positive time, found {self.fetch_timeout_s}.")
        if self.fetch_command is not None:
            refuse_bad_command(f"{self.part}fetch_command", self.fetch_command)
            if self.fetch == "samples":
                raise ValueError(
                    f"{self.part}fetch: a command downloads whole files, so single samples cannot be fetched. Leave "
                    f"out {self.flag('fetch_command')} or {self.flag('fetch')}."
                )


def refuse_bad_command(name: str, command: str) -> None:
    """Raise ValueError if a command cannot be split into words, or has no place for the address of a file."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{name}: {command!r} cannot be split into words ({error}). Correct the quotes.") from error
    if not any("{url}" in word for word in words[1:]):
        raise ValueError(
            f"{name}: expected a program with {{url}} in place of the file's address, found {command!r}. Write, for "
            "example, s5cmd cat {url}."
        )
