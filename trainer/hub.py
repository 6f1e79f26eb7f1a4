"""The one door to the hub: revisions and checked downloads. Torch-free.

The token is read from the file that HF_TOKEN_PATH names and from nowhere else; it is given to the library
call by call and appears in no message.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.durable import fsync_folder
from trainer.flags import UsageError
from trainer.mark import Store, remove_stale, weak_lock
from trainer.refusal import Asked, HubFault, meaning

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DOWNLOADS = 3
"""How often a file is downloaded whose content is not what the hub says."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. digest: `sha256:…` of an LFS file, `git:…` (blob id) of a small one."""

    path: str
    size: int
    digest: str


class Hub:
    """The hub at HF_ENDPOINT with the token of this process. Answers are kept: a branch is resolved once."""

    def __init__(self, store: Store) -> None:
        from huggingface_hub import constants, file_download
        from huggingface_hub.utils import disable_progress_bars

        self.store, self.endpoint = store, constants.ENDPOINT
        self.token_file = Path(constants.HF_TOKEN_PATH)
        self.token = read_token(self.token_file)
        self._commits: dict[tuple[str, str, str], str] = {}
        self._files: dict[tuple[str, str, str], dict[str, RemoteFile]] = {}
        # A log is read afterwards, where bars are noise.
        disable_progress_bars()
        # The library calls its own lock best effort, but waits for ever for one a killed pod left behind.
        file_download.WeakFileLock = weak_lock

    @cached_property
    def api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token or False, library_name="orch")

    def commit(self, asked: Asked) -> str:
        """The commit a revision stands for now."""
        key = (asked.repo_type, asked.name, asked.revision)
        if key not in self._commits:
            with self.explained(asked):
                info = self.api.repo_info(asked.name, repo_type=asked.repo_type, revision=asked.revision)
            if not info.sha:
                raise HubFault(f"{asked.place}: the hub names no commit, got {asked.name!r}; try again")
            self._commits[key] = info.sha
        return self._commits[key]

    def files(self, asked: Asked) -> Mapping[str, RemoteFile]:
        """Every file of the commit, by its path."""
        from huggingface_hub.hf_api import RepoFile

        commit = self.commit(asked)
        key = (asked.repo_type, asked.name, commit)
        if key not in self._files:
            with self.explained(asked):
                tree = self.api.list_repo_tree(
                    asked.name, recursive=True, revision=commit, repo_type=asked.repo_type
                )
                self._files[key] = {
                    entry.path: RemoteFile(
                        entry.path,
                        entry.lfs.size if entry.lfs else entry.size,
                        f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}",
                    )
                    for entry in tree
                    if isinstance(entry, RepoFile)
                }
        return self._files[key]

    def folder(self, asked: Asked) -> str:
        """The snapshot of the commit, relative to the cache."""
        repo = f"{asked.repo_type}s--{asked.name.replace('/', '--')}"
        return f"{repo}/snapshots/{self.commit(asked)}"

    def download(self, asked: Asked, files: Iterable[RemoteFile]) -> Path:
        """The snapshot's folder once every file is there, has the hub's digest and is durable.

        Files that are there already are checked like new ones. Raises HubFault for content that stays wrong.
        """
        files = list(files)
        folder = self.store.cache / self.folder(asked)
        missing = sum(file.size for file in files if not _has_size(folder / file.path, file.size))
        log.info(
            f"{asked.name} at {asked.revision}: commit {self.commit(asked)[:12]}, {len(files)} files, "
            f"{_gb(missing)} of {_gb(sum(file.size for file in files))} to download"
        )
        with self.explained(asked):
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if missing > free:
                raise OSError(errno.ENOSPC, f"{_gb(missing)} needed, {_gb(free)} free")
            for file in files:
                self._bring(asked, file)
            blobs = folder.parents[1] / "blobs"
            for made in (folder, blobs):
                fsync_folder(made)
            remove_stale(blobs.glob("*.incomplete"), folder)
        return folder

    def _bring(self, asked: Asked, file: RemoteFile) -> None:
        from huggingface_hub import hf_hub_download

        for number in range(DOWNLOADS):
            place = hf_hub_download(
                asked.name,
                file.path,
                repo_type=asked.repo_type,
                revision=self.commit(asked),
                cache_dir=self.store.cache,
                endpoint=self.endpoint,
                token=self.token or False,
                force_download=number > 0,
            )
            wrong = difference(Path(place), file)
            if not wrong:
                return
            log.warning(f"{asked.name}: {file.path} {wrong}; downloading it again")
        Path(place).unlink()
        raise HubFault(
            f"{asked.place}: {file.path} of {asked.name} {wrong}, {DOWNLOADS} times; "
            "a proxy or the hub's storage damages it"
        )

    @contextlib.contextmanager
    def explained(self, asked: Asked) -> Iterator[None]:
        """What the libraries raise inside, said in one line of ours."""
        try:
            yield
        except (UsageError, HubFault):
            raise
        except Exception as error:
            meant = meaning(error, asked, self)
            if meant is None:
                raise
            # Without its cause: that is a screen of frames, and only the end of a text is kept.
            raise meant from None


def read_token(file: Path) -> str | None:
    """The token in a file, None when there is none. Raises UsageError for what cannot be a token."""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file}: the hub token cannot be read, got {type(error).__name__}; write the token alone into it"
        ) from None
    if not token or not (token.isascii() and token.isprintable()) or " " in token:
        what = f"{len(token)} characters with spaces or signs among them" if token else "an empty file"
        raise UsageError(f"{file}: must hold the hub token alone, got {what}; mend the file, or the Secret")
    return token


def difference(place: Path, file: RemoteFile) -> str:
    """How a file differs from what the hub says of it, '' if not at all. What is read is made durable."""
    kind, _, expected = file.digest.partition(":")
    size = place.stat().st_size
    if size != file.size:
        return f"must have {file.size} bytes, got {size}"
    with open(place, "rb") as opened:
        os.fsync(opened.fileno())
        if kind == "sha256":
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        else:
            found = hashlib.sha1(b"blob %d\0" % size + opened.read()).hexdigest()
    return "" if found == expected else f"must have {kind} {expected[:12]}, got {found[:12]}"


def _has_size(place: Path, size: int) -> bool:
    return place.is_file() and place.stat().st_size == size


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
