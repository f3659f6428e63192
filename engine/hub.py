"""Files of a checkpoint on the hub, through the hub's cache on this machine.

transformers fetches the files that it knows; this module fetches those that are ours, of the same
commit, so that a checkpoint says the same of itself from the hub as from a folder.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    _CACHED_NO_EXIST,
    get_cached_repo_tree,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One commit of a repository as far as it was fetched.

    Attributes:
        folder: of its files; the folder's name is the commit.
        unknown: optional files that may be there but could not be looked for: there was no
            connection, and the cache does not say.
    """

    folder: Path
    unknown: tuple[str, ...]

    @property
    def commit(self) -> str:
        """The commit's 40 hexadecimal digits."""
        return self.folder.name


def fetch_snapshot(
    repository: str, required: str, optional: tuple[str, ...], cache_dir: Path | None = None
) -> Snapshot:
    """Fetches small files of a repository's newest commit, or of the newest one in the cache.

    Args:
        repository: the hub id.
        required: a file that every usable repository has.
        optional: files that it may have.
        cache_dir: folder of the hub's cache; its own default when None.

    Raises:
        OSError: the required file can neither be fetched nor found in the cache.
        HFValidationError: the id is not one that a hub could have.
    """
    folder = Path(hf_hub_download(repository, required, cache_dir=cache_dir)).parent
    unknown = []
    for name in optional:
        try:
            hf_hub_download(repository, name, revision=folder.name, cache_dir=cache_dir)
        except RemoteEntryNotFoundError:
            continue
        except LocalEntryNotFoundError:
            if not _is_known_to_lack(repository, name, folder.name, cache_dir):
                unknown.append(name)
    return Snapshot(folder=folder, unknown=tuple(unknown))


def fetch_weights(repository: str, commit: str, cache_dir: Path | None = None) -> None:
    """Fetches the safetensors of a commit into the cache, where transformers will find them.

    What cannot be fetched is left to transformers, which says so.

    Args:
        repository: the hub id.
        commit: its 40 hexadecimal digits.
        cache_dir: folder of the hub's cache; its own default when None.
    """

    def fetched(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=commit, cache_dir=cache_dir))

    with contextlib.suppress(RemoteEntryNotFoundError, LocalEntryNotFoundError):
        fetched(SAFE_WEIGHTS_NAME)
        return
    with contextlib.suppress(RemoteEntryNotFoundError, LocalEntryNotFoundError):
        index = json.loads(fetched(SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        for name in sorted(set(index["weight_map"].values())):
            fetched(name)


def _is_known_to_lack(repository: str, name: str, commit: str, cache_dir: Path | None) -> bool:
    """Whether the cache says, without a connection, that a commit has no such file."""
    cached = try_to_load_from_cache(repository, name, cache_dir=cache_dir, revision=commit)
    if cached is _CACHED_NO_EXIST:
        return True
    try:
        listing = get_cached_repo_tree(repository, revision=commit, cache_dir=cache_dir)
    except CachedRepoTreeNotFoundError:
        return False
    return name not in {file.path for file in listing}
