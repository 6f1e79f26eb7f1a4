"""A small `vllm` over transformers: what the trainer calls of it, with the parameters that 0.33.0 has.

Read in vllm/entrypoints/llm.py (LLM), vllm/engine/arg_utils.py (EngineArgs, which LLM passes the rest to),
vllm/sampling_params.py, vllm/outputs.py and vllm/logprobs.py. A parameter that is not here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        assert self.max_tokens is not None
        assert 0 <= self.min_tokens <= self.max_tokens


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: list[dict[int, Logprob]] | None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class LLM:
    """Random weights until some are loaded, and none after a sleep of level 2."""

    started: list[LLM] = []  # noqa: RUF012 - a test empties it

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        # of EngineArgs
        load_format: str = "auto",
        max_model_len: int | None = None,
        generation_config: str = "auto",
        enable_sleep_mode: bool = False,
        enable_prefix_caching: bool | None = None,
        logprobs_mode: str = "raw_logprobs",
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model)
        if config.model_type not in ("llama", "qwen3"):
            raise ValueError(f"Model architectures {config.architectures} are not supported for now.\nmore")
        assert (load_format, skip_tokenizer_init) == ("dummy", True), "the folder holds config.json alone"
        assert config.architectures == [config.architectures[0]]
        self.asked = {
            "generation_config": generation_config,
            "enable_sleep_mode": enable_sleep_mode,
            "enable_prefix_caching": enable_prefix_caching,
            "logprobs_mode": logprobs_mode,
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len,
        }
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
        self.model.load_weights = self._load_weights
        self.params: list[SamplingParams] = []
        self.loads = 0
        self.awake = self.loaded = True
        self.sleep(level=2)
        self.wake_up()
        self.started.append(self)

    def _load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        found = dict(weights)
        missing, unexpected = self.model.load_state_dict(found, strict=False)
        assert not unexpected
        assert missing == (["lm_head.weight"] if self.model.config.tie_word_embeddings else [])
        self.loaded, self.loads = True, self.loads + 1
        return set(found)

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        assert self.awake
        return [func(self.model)]

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        assert self.awake
        self.awake = self.loaded = False
        assert level == 2
        for parameter in self.model.parameters():
            parameter.data.fill_(float("nan"))

    def wake_up(self, tags: list[str] | None = None) -> bool:
        assert tags is None
        self.awake = True
        return True

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        assert self.awake
        assert self.loaded
        self.params = list(sampling_params)
        return [
            RequestOutput(prompt["prompt_token_ids"], [self._write(prompt["prompt_token_ids"], params)])
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _write(self, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        drawn = torch.Generator().manual_seed(params.seed or 0)
        ids: list[int] = []
        found: list[dict[int, Logprob]] = []
        while len(ids) < (params.max_tokens or 1):
            log_p = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1].float().log_softmax(-1)
            scores = log_p / params.temperature if params.temperature else log_p
            if len(ids) < params.min_tokens:
                scores[params.stop_token_ids or []] = -torch.inf
            noise = torch.empty_like(scores).exponential_(generator=drawn)
            token = int((scores - noise.log() * bool(params.temperature)).argmax())
            ids.append(token)
            found.append({token: Logprob(float(log_p[token]))})
            if token in (params.stop_token_ids or []):
                break
        return CompletionOutput(0, "", tuple(ids), found if params.logprobs is not None else None)


def module() -> ModuleType:
    """What `import vllm` finds."""
    made = ModuleType("vllm")
    made.LLM, made.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    LLM.started.clear()
    return made
