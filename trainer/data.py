"""Rows of a dataset to tokenised prompt and completion, in an order that is a function of the seed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.counters import permutation
from trainer.rows import open_rows, rows_of, split_of
from trainer.text import split_topics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_COMPLETION_ROOM = 16
"""A row whose prompt leaves fewer tokens than this is dropped."""
MAX_DROPPED_SHARE = 0.05
HELDOUT_ONE_IN = 100
"""One row in so many, chosen by its hash, is never trained on, whatever the run."""
SCAN_ROWS = 256


class DataError(ValueError):
    """The data cannot be trained on; exit 65."""


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of the dataset's completion, with the end of turn where the data has one."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(json.dumps(self.prompt).encode()).hexdigest()


@dataclass
class Item:
    """One sequence of a step: its place in the global batch, and who wrote its completion.

    log_probs: nats of a rollout's tokens, as the policy sampled them.
    """

    sample: int
    example: Example
    on_policy: bool
    completion: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()


class Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


def load_rows(config: TrainConfig) -> Rows:
    """The dataset's rows: pydoc_topics, a local .jsonl or .parquet file, or a hub dataset's split.

    Raises DataError for a file that cannot be read, UsageError for a hub dataset or split that is not there.
    """
    name = config.dataset_name
    if name == "pydoc_topics":
        return [{"text": split_topics()[0]}]
    suffix = Path(name).suffix
    if suffix in (".jsonl", ".parquet"):
        return _local_rows(Path(name), suffix)
    splits = open_rows(rows_of(name, config.dataset_revision), "dataset_name")
    return cast(Rows, split_of(splits, config.dataset_split, "dataset_split"))


def _local_rows(path: Path, suffix: str) -> Rows:
    if not path.is_file():
        raise DataError(f"dataset {path}: no such file; give an existing .jsonl or .parquet file")
    if suffix == ".parquet":
        from datasets import Dataset

        try:
            rows: Rows = Dataset.from_parquet(str(path))
        except Exception as error:
            raise DataError(f"dataset {path}: is no parquet file, got {type(error).__name__}") from error
        return rows
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"dataset {path}: is no UTF-8 text, got {error.reason}; write it as UTF-8") from error
    return _parsed(path, lines)


def _parsed(path: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"dataset {path}:{number}: is no JSON, got {error.msg}; mend the line") from error
        if not isinstance(row, dict):
            raise DataError(f"dataset {path}:{number}: must be a JSON object, got {type(row).__name__}")
        parsed.append(row)
    return parsed


def is_heldout(row: dict[str, Any]) -> bool:
    """Whether a row is kept out of all training: by the hash of its content, so the same for all runs."""
    content = json.dumps(row, sort_keys=True, ensure_ascii=True, default=str)
    return int(hashlib.sha256(content.encode()).hexdigest()[:8], 16) % HELDOUT_ONE_IN == 0


class TrainData:
    """The training sequence: `data[position]` is the example at a place of the global order.

    Rows are tokenised only as far as the run reaches into them; later epochs permute the examples found.
    `seen` and `dropped` count rows; `check` is called for every 256 of them. Raises DataError when more
    than 5 % of the rows are of no use, or surely will be: three standard errors above that so far.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        if len(rows) == 0:
            raise DataError(f"dataset {config.dataset_name}: must have rows, got none")
        self.rows, self.tokenizer, self.config = rows, tokenizer, config
        self.seen, self.dropped, self.heldout = 0, 0, 0
        self._check = check
        self._skip_heldout = len(rows) > HELDOUT_ONE_IN
        self._reasons: dict[str, int] = {}
        self._examples: list[Example] = []
        self._order = permutation(config.seed, 0, len(rows))

    def __getitem__(self, position: int) -> Example:
        while position >= len(self._examples) and self.seen < len(self.rows):
            self._scan()
        size = len(self._examples)
        if size == 0:
            raise self._too_many_dropped()
        if position < size:
            return self._examples[position]
        epoch, place = divmod(position, size)
        return self._examples[int(permutation(self.config.seed, epoch, size)[place])]

    def _scan(self) -> None:
        """Tokenise the next rows of the order."""
        start, found = self.seen, []
        for index in self._order[start : start + SCAN_ROWS]:
            row = dict(self.rows[int(index)])
            self.seen += 1
            if self._skip_heldout and is_heldout(row):
                self.heldout += 1
                continue
            try:
                found += examples_of(row, self.tokenizer, self.config)
            except DataError as error:
                self.dropped += 1
                self._reasons[str(error)] = self._reasons.get(str(error), 0) + 1
        # A long text gives many windows in reading order: mix what was found together.
        mixed = permutation(self.config.seed, 0, len(found), block=1 + start)
        self._examples += [found[int(place)] for place in mixed]
        self._check()
        allowed = MAX_DROPPED_SHARE * self.seen
        if self.seen < len(self.rows):
            allowed += 3 * math.sqrt(allowed * (1 - MAX_DROPPED_SHARE))
        if self.dropped > allowed:
            raise self._too_many_dropped()

    def _too_many_dropped(self) -> DataError:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in sorted(self._reasons.items()))
        return DataError(
            f"dataset {self.config.dataset_name}: at most 5 % of the rows may be of no use, got "
            f"{self.dropped} of {self.seen} ({reasons}); mend the data or raise --max-length"
        )


def examples_of(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, config: TrainConfig
) -> list[Example]:
    """The examples of a row: `messages`, `prompt` + `completion`, or `text` (cut into windows).

    The completion is the last assistant message with its end of turn; the template's generation prompt
    belongs to the prompt. Raises DataError saying why the row is of no use.
    """
    if "messages" in row:
        return [_fit(*_chat_tokens(row["messages"], tokenizer), config)]
    if "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return [_fit(*_chat_tokens([*prompt, *completion], tokenizer), config)]
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError("prompt and completion must both be text or both messages")
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [_fit(_ids(tokenizer, prompt, True), [*_ids(tokenizer, completion, False), *eos], config)]
    if isinstance(row.get("text"), str):
        return _windows(_ids(tokenizer, row["text"], True), config)
    raise DataError("a row needs messages, prompt and completion, or text")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _chat_tokens(messages: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages
    ):
        raise DataError("messages must be a list of {role, content}")
    last = max((i for i, m in enumerate(messages) if m.get("role") == "assistant"), default=None)
    if last is None or last == 0:
        raise DataError("no assistant message that answers something")
    from jinja2 import TemplateError

    try:
        prompt = tokenizer.apply_chat_template(messages[:last], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(messages[: last + 1], tokenize=False)
    except (TemplateError, ValueError) as error:
        raise DataError(f"the chat template refuses it ({str(error).splitlines()[0]})") from error
    if not whole.startswith(prompt):
        raise DataError("the chat template does not extend its own prompt")
    # Cut as text first: tokens of prompt + completion in one go could merge across the border.
    completion = _ids(tokenizer, whole[len(prompt) :], False)
    ends = [i for i, token in enumerate(completion) if token == tokenizer.eos_token_id]
    return _ids(tokenizer, prompt, False), completion[: ends[-1] + 1] if ends else completion


def _fit(prompt: Sequence[int], completion: Sequence[int], config: TrainConfig) -> Example:
    room = config.max_length - len(prompt)
    if room < MIN_COMPLETION_ROOM:
        raise DataError(f"the prompt leaves fewer than {MIN_COMPLETION_ROOM} tokens")
    if not completion or not prompt:
        raise DataError("an empty prompt or completion")
    return Example(tuple(prompt), tuple(completion[:room]))


def _windows(ids: Sequence[int], config: TrainConfig) -> list[Example]:
    """Windows of max_length tokens; a last one without room for a completion is left out."""
    least = config.prompt_length + MIN_COMPLETION_ROOM
    pieces = (ids[start : start + config.max_length] for start in range(0, len(ids), config.max_length))
    found = [
        Example(tuple(piece[: config.prompt_length]), tuple(piece[config.prompt_length :]))
        for piece in pieces
        if len(piece) >= least
    ]
    if not found:
        raise DataError(f"the text is shorter than {least} tokens, or max_length is")
    return found


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences [batch, time]. No mask: causal attention never looks at padding on the right.

    predicts: True where a token is predicted and counts, i.e. at the position before each completion token.
    """

    ids_BT: Tensor
    predicts_BT: Tensor

    @property
    def tokens(self) -> int:
        """Completion tokens."""
        return int(self.predicts_BT.sum())


def collate(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], pad: int, device: torch.device) -> Batch:
    """A Batch of (prompt, completion) pairs; what counts is told by position, for pad may be a real token."""
    pairs = list(pairs)
    longest = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids = torch.full((len(pairs), longest), pad, dtype=torch.long)
    predicts = torch.zeros((len(pairs), longest), dtype=torch.bool)
    for row, (prompt, completion) in enumerate(pairs):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor([*prompt, *completion])
        predicts[row, len(prompt) - 1 : end - 1] = True
    return Batch(ids.to(device), predicts.to(device))


def micro_batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
