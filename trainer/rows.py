"""Rows of hub datasets: prepared once by fetch, then read in place, offline and from any mount. Torch-free.

`datasets` is given a cache of its own each time: in its shared one, offline, it takes whatever revision was
prepared last. What it makes of a revision is kept as Arrow, which reading neither locks nor writes.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.durable import new_folder
from trainer.flags import UsageError
from trainer.hub import Hub, RemoteFile
from trainer.mark import Mark, Store, Wanted, remove_stale, sizes, weak_lock
from trainer.refusal import Asked

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

WIKITEXT = Wanted("rows", "Salesforce/wikitext", subset="wikitext-2-raw-v1")
FORMATS = ("json", "csv", "parquet", "arrow", "text")
"""Names that `datasets` takes for a format, with files given by their addresses, not for a repository."""


def rows_of(dataset_name: str, revision: str = "main") -> Wanted:
    """The rows meant by a dataset's name; `wikitext` is WikiText-2, as perplexity reads it."""
    if dataset_name == "wikitext":
        return Wanted("rows", WIKITEXT.name, revision, WIKITEXT.subset)
    return Wanted("rows", dataset_name, revision)


def open_rows(wanted: Wanted, place: str, *, in_memory: bool = False) -> dict[str, Dataset]:
    """Every split, read from the volume; fetched first where that is allowed.

    place: heads messages. in_memory: what is derived from the rows goes elsewhere than beside them. Raises
    UsageError when they are not there and may not be fetched, or are damaged.
    """
    from datasets import Dataset

    store = Store.here()
    folder = store.find(wanted, place)
    if folder is None:
        prepare(Hub(store), wanted, place)
        folder = store.find(wanted, place)
    assert folder is not None
    splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return {name: Dataset.load_from_disk(folder / name, keep_in_memory=in_memory) for name in splits}


def split_of(splits: Mapping[str, Dataset], spec: str, place: str) -> Dataset:
    """The rows of a split as `datasets` spells it: train, train[:1000], train+test. Raises UsageError."""
    from datasets import ReadInstruction, concatenate_datasets

    try:
        parts = ReadInstruction.from_spec(spec).to_absolute({name: len(one) for name, one in splits.items()})
    except (ValueError, AssertionError) as error:
        raise UsageError(
            f"{place}: no such split, got {spec!r}; there is {', '.join(splits)}, or a part: train[:1000]"
        ) from error
    chosen = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return chosen[0] if len(chosen) == 1 else concatenate_datasets(chosen)


def prepare(hub: Hub, wanted: Wanted, place: str) -> None:
    """Download the files of a dataset, check them, make rows of them and mark them; unless that is done.

    Raises UsageError for what the hub does not have or `datasets` cannot read, HubFault for the hub's faults.
    """
    store = hub.store
    with weak_lock(store.rows / f".{wanted.key}.lock"):
        if store.is_whole(wanted):
            return
        asked = Asked(place, "dataset", wanted.name, wanted.revision)
        from_hub = wanted.name not in FORMATS
        commit = hub.commit(asked) if from_hub else None
        with tempfile.TemporaryDirectory(prefix="orch-rows-") as work, hub.explained(asked):
            builder = _builder(hub, wanted, commit, Path(work))
            sources = list(_sources(hub, asked, builder)) if from_hub else []
            if sources:
                hub.download(asked, sources)
            builder.download_and_prepare()
            folder = store.rows / f"{wanted.key}--{uuid.uuid4().hex[:8]}"
            with new_folder(folder) as aside:
                for split, rows in builder.as_dataset().items():
                    rows.save_to_disk(aside / str(split))
        digests = {file.path: file.digest for file in sources}
        store.write(Mark(wanted, commit, folder.name, sizes(folder), digests))
        remove_stale(store.rows.glob(".rows--*--*.*"), store.mark_file(wanted))


def _builder(hub: Hub, wanted: Wanted, commit: str | None, work: Path) -> DatasetBuilder:
    import datasets

    datasets.disable_progress_bars()
    options: dict[str, Any] = json.loads(wanted.options)
    return datasets.load_dataset_builder(
        wanted.name, wanted.subset, revision=commit, cache_dir=str(work), token=hub.token or False, **options
    )


def _sources(hub: Hub, asked: Asked, builder: DatasetBuilder) -> Iterator[RemoteFile]:
    """The files of the repository that the rows are made of, as the hub lists them."""
    listed = hub.files(asked)
    ours = re.compile(rf"hf://datasets/{re.escape(asked.name)}@[^/]+/(.+)")
    for files in (builder.config.data_files or {}).values():
        for file in files:
            if match := ours.fullmatch(str(file)):
                yield listed[match[1]]
