"""The only place that uses the network.

huggingface_hub does the work, so its conventions hold: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, its cache
folder, its progress bars. A download that is cut is taken up where it stopped, a few times.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from xlmr_core.checkpoint.cache import COMMIT, NOT_CHECKED, verify
from xlmr_core.checkpoint.catalogue import near_names
from xlmr_core.checkpoint.files import CONFIG, TOKENIZER, WEIGHTS, Files, read_config, read_index
from xlmr_core.checkpoint.guard import HubBusyError, guarded
from xlmr_core.checkpoint.sentence_transformers import MODULES, file_names, transformer_path
from xlmr_core.errors import CheckpointError
from xlmr_core.hub_options import HubOptions

LOG_IN = "log in (`hf auth login`, HF_TOKEN, or token=...)"


@dataclass(frozen=True)
class Hub:
    """A repository on the hub and how to reach it. The fields are the arguments of `from_pretrained`."""

    repo: str
    revision: str | None
    cache_dir: Path | None
    local_files_only: bool
    token: str | bool | None
    within: str = ""  # the model's folder in the repository with a slash behind it, or "": `_config` finds it

    @classmethod
    def of(cls, repo: str, **options: Unpack[HubOptions]) -> "Hub":
        """The repository, reached as `options` say."""
        cache_dir = options.get("cache_dir")
        return cls(
            repo,
            options.get("revision"),
            Path(cache_dir) if cache_dir is not None else None,
            options.get("local_files_only", False),
            options.get("token"),
        )

    def model_files(self, beside: Sequence[str] = (), *, whole: bool = False) -> Files:
        """config.json and weights, of one commit. What is cached is taken first, then the formats as in WEIGHTS.

        beside: names of more files to fetch, those of them that the repository has.
        whole: fetch also the configuration of sentence-transformers; and where the network is switched off and the
            cache does not show whether there is such a file, list it in `Files.unknown` instead of raising.
        """
        config, pinned = self._config()
        weights = pinned._weights()
        root = config.parents[pinned.within.count("/")]
        names = [pinned.within + name for name in beside]
        more, unknown = pinned._fetch_what_there_is([*names, MODULES] if whole else names, or_unknown=whole)
        if whole and root / MODULES in more:
            with suppress(CheckpointError):  # whoever copies it will say why it is not understood
                of_sentences = pinned._fetch_what_there_is(file_names(root)[1:], or_unknown=True)
                more, unknown = more + of_sentences[0], unknown + of_sentences[1]
        return Files(config, weights, root, tuple(more), tuple(unknown))

    def tokenizer_files(self) -> tuple[Path, Path]:
        """sentencepiece.bpe.model and config.json, of one commit."""
        config, pinned = self._config()
        tokenizer = pinned._fetch(pinned.within + TOKENIZER)
        if tokenizer is None:
            raise CheckpointError(f"{self.repo} has no {TOKENIZER}; tokenizers in other formats are not read")
        return tokenizer, config

    def other_files(self, names: Iterable[str]) -> list[Path]:
        """Files by name. Raises CheckpointError for one that the repository does not have."""
        paths = {name: self._fetch(name) for name in names}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise CheckpointError(f"{self.repo} has no {', '.join(missing)}")
        return [path for path in paths.values() if path is not None]

    def _config(self) -> tuple[Path, "Hub"]:
        """config.json, and this repository at the commit it came from: the files after it must be of the same.

        The cache keeps a commit in a folder of its name.
        """
        found = self._fetch(CONFIG)
        pinned = replace(self, revision=found.parent.name) if found else self._in_folder()
        config = found or pinned._fetch(pinned.within + CONFIG)
        if config is None:
            raise CheckpointError(f"{self.repo} has no {CONFIG}: it is not a model in this format")
        read_config(config)  # a wrong architecture is an error before a gigabyte is fetched
        return config, pinned

    def _in_folder(self) -> "Hub":
        """The repository at its commit, with the folder that sentence-transformers keeps the model in, if it does."""
        modules = self._fetch(MODULES)
        if modules is None:
            return self
        path = transformer_path(modules.parent)
        return replace(self, revision=modules.parent.name, within=f"{path}/" if path else "")

    def _weights(self) -> Path:
        names = [self.within + name for name in WEIGHTS]
        for name in sorted(names, key=lambda name: self._cached(name) is None):
            weights = self._fetch(name)
            if weights is not None:
                self._fetch_shards(weights)
                return weights
        raise CheckpointError(f"{self.repo} has no weights that can be read: none of {', '.join(WEIGHTS)}")

    def _fetch_shards(self, index: Path) -> None:
        if not index.name.endswith(".index.json"):
            return
        for shard in sorted(set(read_index(index).values())):
            if self._fetch(self.within + shard) is None:
                raise CheckpointError(f"{self.repo} has no {shard}, which {index.name} names")

    def _fetch_what_there_is(self, names: Iterable[str], *, or_unknown: bool) -> tuple[list[Path], list[str]]:
        """Those of the files that exist, and the names of those that may exist, for all that is known offline."""
        found: list[Path] = []
        unknown: list[str] = []
        for name in names:
            if or_unknown and self._is_offline() and self._in_cache(name) is None:
                unknown.append(name)
            elif path := self._fetch(name):
                found.append(path)
        return found, unknown

    def _cached(self, name: str) -> Path | None:
        path = self._in_cache(name)
        return Path(path) if isinstance(path, str) else None

    def _in_cache(self, name: str) -> Any:
        """A path, None if the cache knows nothing, or something else if it knows that there is no such file."""
        from huggingface_hub import try_to_load_from_cache

        return try_to_load_from_cache(self.repo, name, self.cache_dir, self.revision)

    def _is_offline(self) -> bool:
        from huggingface_hub import constants

        return self.local_files_only or constants.HF_HUB_OFFLINE

    def _is_missing(self, name: str) -> bool:
        """Whether the cache knows that there is no such file. A commit never changes; a branch does."""
        known = self._in_cache(name)
        lasting = self._is_offline() or re.fullmatch(COMMIT, self.revision or "") is not None
        return lasting and known is not None and not isinstance(known, str)

    def _fetch(self, name: str) -> Path | None:
        """The file in the cache, downloaded if need be and verified; None if the repository does not have it."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            if self._is_missing(name):
                return None
            path, etag = self._download(name)
            if etag is None and not path.is_symlink() and verify(path) == NOT_CHECKED and not self._is_offline():
                etag = self._etag(name)  # where the cache has no links, it does not keep what was promised
            verify(path, etag)
            return path
        except CheckpointError as error:
            raise CheckpointError(f"{self.repo} ({name}): {error}") from error
        except Exception as error:  # huggingface_hub has changed its HTTP library twice: no class covers a cut line
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            raise CheckpointError(f"{self.repo} ({name}): {self._cause(error)}") from error

    def _download(self, name: str) -> tuple[Path, str | None]:
        """The file in the cache, and the ETag that the hub promised, if it was asked."""
        from huggingface_hub import hf_hub_download

        with guarded(patient="/" in self.repo) as question:
            try:
                path = hf_hub_download(
                    self.repo,
                    name,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    local_files_only=self.local_files_only,
                    token=self.token,
                )
            except HubBusyError:
                path = self._cached(name)
                if path is None:
                    raise
            return Path(path), question.etag

    def _etag(self, name: str) -> str | None:
        """What the hub promises now."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        return get_hf_file_metadata(hf_hub_url(self.repo, name, revision=self.revision), token=self.token).etag

    def _near(self) -> str:
        """More for a name without a slash, which may have been meant for something else than a hub id."""
        if "/" in self.repo:
            return ""
        near = near_names(self.repo)
        hint = f"; near: {', '.join(near)}" if near else " (`xlmr models` lists the known ones)"
        return f". There is no file or folder {self.repo!r} here, nor is it a name in the catalogue{hint}"

    def _cause(self, error: Exception) -> str:
        """What went wrong, and what to do about it."""
        from huggingface_hub import constants, errors

        if isinstance(error, errors.HFValidationError):
            return f"this is neither a file, nor a folder, nor a repository id ({error})"
        if isinstance(error, errors.GatedRepoError):
            return f"the repository is gated: accept its conditions on its page, then {LOG_IN}"
        if isinstance(error, errors.RepositoryNotFoundError):
            return (
                f"there is no such repository at {constants.ENDPOINT}, or it is private: "
                f"check the name, or {LOG_IN}{self._near()}"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return f"the repository has no revision {self.revision!r}"
        if self._is_offline():
            return (
                f"not in the cache ({self.cache_dir or constants.HF_HUB_CACHE}), and the network is switched off "
                "(--offline, local_files_only or HF_HUB_OFFLINE). Load it once with the network on, or give the path "
                f"of a folder{self._near()}"
            )
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            return f"the hub refuses access ({status}): {LOG_IN} with a token that may read it"
        if status is not None:
            return f"the hub answered with an error ({status}): try again later{self._near()}"
        return (
            f"the hub at {constants.ENDPOINT} cannot be reached, or the download was cut "
            f"({type(cause).__name__}: {cause}). Run it again, or give the path of a folder{self._near()}"
        )
