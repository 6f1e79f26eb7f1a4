"""The rollouts' own decoder: one preallocated cache written in place, finished sequences leave the batch.

It runs any Hugging Face decoder of full or sliding attention through its own forward; only cache, masks and
positions are ours. The twin is `trainer.plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from trainer.noise import Draw, Noise, Sampler, Trace, choose

if TYPE_CHECKING:
    from trainer.graphs import Graphs
    from trainer.linear import Mode
    from trainer.student import Student

PREFILL_TOKENS = 4096
"""Tokens of prompts, padding included, that one forward reads."""
WORTH_A_FORWARD = 256
"""Tokens from which a forward pass of its own costs less than the padding it saves."""


def unsupported(student: Student, length: int) -> str | None:
    """Why this decoder cannot serve the model at `length` tokens a sequence, or None."""
    config = student.model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return f"attention is {config._attn_implementation}, not sdpa"
    if getattr(config, "num_kv_shared_layers", 0):
        return "layers share keys and values"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds <= {"full_attention", "sliding_attention"} and "sliding_attention" in kinds:
        return None if getattr(config, "sliding_window", None) else "sliding layers have no window"
    if kinds != {"full_attention"}:
        return f"it has layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    if window is not None and window < length:
        return f"a window of {window} tokens is not said layer by layer"
    return None


def prefill_chunks(lengths: Sequence[int]) -> list[slice]:
    """Cuts of prompts sorted by length, longest first, into forward passes with little padding.

    A pass ends at PREFILL_TOKENS, or where its tokens are worth a forward and the next prompt is shorter
    than 3/4 of its longest.
    """
    cuts = [0]
    for number in range(1, len(lengths)):
        longest, rows = lengths[cuts[-1]], number - cuts[-1]
        shorter = longest * rows >= WORTH_A_FORWARD and lengths[number] < 0.75 * longest
        if shorter or longest * (rows + 1) > PREFILL_TOKENS:
            cuts.append(number)
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(lengths)], strict=True)]


def fill_holes(stay: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Moves (to, from) that bring the rows `stay` of `size` into the first len(stay) places, fewest moved."""
    kept = set(stay)
    holes = [row for row in range(len(stay)) if row not in kept]
    return list(zip(holes, [row for row in range(len(stay), size) if row in kept], strict=True))


class Slots:
    """Which rows and slots of the cache the next forward writes and attends; shared by all layers.

    It writes [start, end) and attends [first, end). index: where it writes one slot that only the device
    knows, in place of start."""

    def __init__(self, rows: int, length: int) -> None:
        self.size, self.length = rows, length
        self.index: Tensor | None = None
        self.rows, self.first, self.start, self.end = slice(0, rows), 0, 0, 0


class SlotLayer(CacheLayerMixin):
    """Keys and values [rows, heads, length, width] of one layer."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: what is masked is multiplied by 0, and memory as it comes may hold nan.
        self.keys, self.values = (
            states.new_zeros(self.slots.size, states.shape[1], self.slots.length, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = self.slots
        keys, values = self.keys[slots.rows], self.values[slots.rows]
        if slots.index is not None:
            keys.index_copy_(2, slots.index, key_states)
            values.index_copy_(2, slots.index, value_states)
        else:
            keys[:, :, slots.start : slots.end] = key_states
            values[:, :, slots.start : slots.end] = value_states
        return keys[:, :, slots.first : slots.end], values[:, :, slots.first : slots.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.end - self.slots.first, self.slots.first

    def get_seq_length(self) -> int:
        return self.slots.start

    def get_max_length(self) -> int:
        return self.slots.length


class Batch:
    """Sequences that are decoded together: cache, padding, and the forward passes that fill them.

    Row r's tokens stand left-padded in the slots of the cache, so all rows write the same slot at a step.
    Only the first rows are alive; who ends gives its place to a later row.
    """

    def __init__(self, student: Student, mode: Mode, rows: int, length: int) -> None:
        self.student, self.mode, self.width = student, mode, 0
        self.device, self.dtype = student.lora_parameters()[0].device, student.head(mode).dtype
        config = student.model.config.get_text_config()
        self.slots = Slots(rows, length)
        layers = [SlotLayer(self.slots) for _ in range(config.num_hidden_layers)]
        self.cache = Cache(layers=layers)
        self.layers = layers
        kinds = getattr(config, "layer_types", None) or []
        self.window = config.sliding_window if "sliding_attention" in kinds else None
        self.places = torch.arange(length, device=self.device)
        self.pads = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.valid = torch.zeros(rows, length, dtype=torch.bool, device=self.device)
        # What a step reads that may be a graph: its inputs stand where they stood.
        self.tokens = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.index = torch.zeros(1, dtype=torch.long, device=self.device)

    def begin(self, lengths: Sequence[int]) -> None:
        """Take rows of these prompt lengths, in tokens; those that the batch has beyond are of no meaning."""
        self.width = max(lengths)
        self.pads.zero_()
        self.pads[: len(lengths)] = torch.tensor([self.width - length for length in lengths])
        self.valid.copy_(self.places >= self.pads[:, None])

    def read(self, prompts: Sequence[Sequence[int]], rows: slice) -> Tensor:
        """Fill the cache of `rows` with their prompts; returns logits [rows, vocabulary] after them."""
        longest = max(map(len, prompts))
        slots = self.slots
        slots.rows, slots.start, slots.end = rows, self.width - longest, self.width
        slots.first, slots.index = slots.start, None
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        span = self.places[slots.start : slots.end]
        # A row of padding sees itself: a softmax over nothing would be nan.
        causal = (span <= span[:, None])[None] & self.valid[rows, None, slots.start : slots.end]
        causal |= torch.eye(longest, dtype=torch.bool, device=self.device)
        positions = (span - self.pads[rows, None]).clamp(min=0)
        return self._logits(ids.to(self.device), causal, span, positions)

    def step(self, tokens: Tensor, end: int) -> Tensor:
        """Write `tokens` [alive] in slot `end - 1`; returns logits [alive, vocabulary] after them."""
        slots = self.slots
        slots.rows, slots.start, slots.end = slice(0, len(tokens)), end - 1, end
        slots.first, slots.index = 0, None
        seen = self.valid[slots.rows, None, :end]
        span = self.places[end - 1 : end]
        return self._logits(tokens[:, None], seen, span, (span - self.pads[slots.rows, None]))

    def aim(self, tokens: Tensor, end: int) -> None:
        """Say on the device what `static_step` reads: `tokens` [alive], to be written in slot `end - 1`."""
        self.tokens[: len(tokens)] = tokens
        self.index.fill_(end - 1)

    def static_step(self, rows: int, end: int) -> Tensor:
        """`step` of the first `rows` as `aim` says, over all slots before `end` under a mask.

        Nothing in it depends on what changes from step to step but by tensors that stay where they are. Rows
        that are not alive compute what nobody reads.
        """
        slots = self.slots
        slots.rows, slots.first, slots.start, slots.end = slice(0, rows), 0, end - 1, end
        slots.index = self.index
        seen = self.valid[:rows, None, :end] & (self.places[:end] <= self.index)
        return self._logits(self.tokens[:rows, None], seen, self.index, self.index - self.pads[:rows, None])

    def _logits(self, ids_BT: Tensor, seen_BTL: Tensor, span: Tensor, positions: Tensor) -> Tensor:
        mask: Any = seen_BTL[:, None]
        if self.window is not None:
            attended = self.places[self.slots.first :][: seen_BTL.shape[2]]
            near = attended > span[:, None] - self.window
            mask = {"full_attention": mask, "sliding_attention": mask & near}
        hidden_BTH = self.student.hidden(
            ids_BT, mask, positions, mode=self.mode, past_key_values=self.cache, use_cache=True
        )
        return torch.nn.functional.linear(hidden_BTH[:, -1], self.student.head(self.mode)).float()

    def move(self, moves: Sequence[tuple[int, int]], end: int) -> None:
        """Copy rows' caches up to slot `end`: (to, from), as `fill_holes` gives them."""
        if not moves:
            return
        to, origin = (list(column) for column in zip(*moves, strict=True))
        for layer in self.layers:
            layer.keys[to, :, :end] = layer.keys[origin, :, :end]
            layer.values[to, :, :end] = layer.values[origin, :, :end]
        self.pads[to], self.valid[to] = self.pads[origin], self.valid[origin]


def decode(
    student: Student,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    sampler: Sampler,
    mode: Mode,
    check: Callable[[], None],
    trace: Trace | None = None,
    graphs: Graphs | None = None,
) -> list[list[int]]:
    """One completion for each prompt, in their order; see `trainer.rollout.Rollouts.sample`.

    graphs: replay steps where they can; for mode `rollout` alone.
    """
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    lengths = [len(prompts[number]) for number in order]
    slots = lengths[0] + sampler.max_new_tokens
    batch = (
        graphs.batch(student, len(prompts), slots) if graphs else Batch(student, mode, len(prompts), slots)
    )
    step = partial(graphs.step, batch) if graphs else batch.step
    noise = Noise(sampler, batch.device)
    check()
    batch.begin(lengths)
    parts = []
    for rows in prefill_chunks(lengths):
        parts.append(batch.read([prompts[number] for number in order[rows]], rows))
        check()
    logits, alive = torch.cat(parts), order
    completions: list[list[int]] = [[] for _ in prompts]
    for position in range(sampler.max_new_tokens):
        drawn = noise.of([draws[number] for number in alive], position, logits.shape[1])
        tokens = choose(logits, drawn, position, sampler, trace, alive)
        chosen = tokens.tolist()
        for number, token in zip(alive, chosen, strict=True):
            completions[number].append(token)
        stay = [row for row, token in enumerate(chosen) if token not in sampler.stops]
        if not stay or position + 1 == sampler.max_new_tokens:
            break
        end = batch.width + position
        moves = fill_holes(stay, len(alive))
        batch.move(moves, end)
        places = list(range(len(stay)))
        for to, origin in moves:
            places[to] = origin
        alive = [alive[place] for place in places]
        check()
        logits = step(tokens[places], end + 1)
    return completions
