"""Rollouts by vLLM in this process (`--rollout vllm`): our weights and our sampler's settings, its decoder.

Written against the source of vLLM 0.33.0. vLLM draws by itself, so its tokens are not those of our decoder.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainer.config import TrainConfig
from trainer.counters import generator
from trainer.dryrun import longest
from trainer.flags import UsageError
from trainer.linear import dense
from trainer.noise import Draw, Sampler, Trace

if TYPE_CHECKING:
    from trainer.student import Student

ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
"""The engine lives in this process, where the weights are; and tells nobody that it runs."""


def refusal(config: TrainConfig, device: str, installed: bool) -> str | None:
    """Why vLLM cannot write a run's rollouts, and what to do, or None."""
    if not installed:
        return "vllm is not installed, got vllm; take an image built with VARIANT=vllm, or give native"
    if device != "cuda":
        return f"vllm needs CUDA, got {device}; give native"
    if config.nproc > 1:
        return f"vllm serves a run of one process, got nproc {config.nproc}; give native"
    return None


def check_served(config: TrainConfig, device: str) -> None:
    """Raise UsageError where vLLM cannot write a run's rollouts."""
    fault = refusal(config, device, importlib.util.find_spec("vllm") is not None)
    if fault:
        raise UsageError(f"--rollout: {fault}")


class VllmRollouts:
    """One student's rollouts by vLLM, which is started at the first and sleeps between them.

    memory: share of the GPU's memory that it may take, its copy of the weights included.
    """

    def __init__(self, student: Student, memory: float) -> None:
        self._student, self._memory = student, memory
        self._llm: Any = None

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        draws: Sequence[Draw],
        sampler: Sampler,
        check: Callable[[], None],
        trace: Trace | None = None,
    ) -> list[list[int]]:
        """One completion for each prompt by the student's merged weights, inside its mode `rollout`.

        `check` is called before and after, not between tokens. Raises UsageError for a model that vLLM does
        not serve.
        """
        check()
        if self._llm is None:
            self._llm = self._start()
        else:
            self._llm.wake_up()
        self._llm.apply_model(lambda model: model.load_weights(weights(self._student)))
        done = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [_params(sampler, draw, trace is not None) for draw in draws],
            use_tqdm=False,
        )
        # The weights are dropped, not kept on the CPU: the next step's are others.
        self._llm.sleep(level=2)
        check()
        outputs = [request.outputs[0] for request in done]
        written = [list(output.token_ids) for output in outputs]
        if trace:
            for row, (ids, output) in enumerate(zip(written, outputs, strict=True)):
                trace.take(row, [at[token].logprob for token, at in zip(ids, output.logprobs, strict=True)])
        return written

    def _start(self) -> Any:
        os.environ.update(ENVIRONMENT)
        from vllm import LLM

        student = self._student
        with tempfile.TemporaryDirectory() as folder:
            model_config(student).save_pretrained(folder)
            try:
                return LLM(
                    model=folder,
                    load_format="dummy",
                    skip_tokenizer_init=True,
                    generation_config="vllm",  # nothing of the model's own
                    dtype=str(student.head("rollout").dtype).removeprefix("torch."),
                    max_model_len=longest(student.config),
                    gpu_memory_utilization=self._memory,
                    enable_sleep_mode=True,
                    enable_prefix_caching=False,  # what is kept would be older weights'
                    logprobs_mode="raw_logprobs",
                    seed=0,
                )
            except (ValueError, RuntimeError) as error:
                got = str(error).strip().splitlines()[0]
                raise UsageError(f"--rollout: vllm cannot serve the model, got {got}; give native") from error


def model_config(student: Student) -> Any:
    """The student's Hugging Face configuration; a head that is not the embedding stands beside it."""
    model = student.model
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.get_text_config().tie_word_embeddings = _tied(student)
    config.tie_word_embeddings = _tied(student)
    return config


def weights(student: Student) -> Iterator[tuple[str, Tensor]]:
    """What the policy computes with, by the names of a checkpoint; read inside its mode `rollout`."""
    heads = student.model.get_output_embeddings()
    [head] = [name for name, module in student.model.named_modules() if module is heads]
    for name, module in student.model.named_modules():
        for part, tensor in module.named_parameters(recurse=False):
            if part in ("lora_A", "lora_B") or name == head:
                continue
            linear = student.linears.get(name)
            yield f"{name}.{part}", dense(linear.filled()) if linear and part == "weight" else tensor.detach()
    if not _tied(student):
        yield f"{head}.weight", student.head("rollout").detach()


def _tied(student: Student) -> bool:
    return student.head("rollout") is student.model.get_input_embeddings().weight


def _params(sampler: Sampler, draw: Draw, logged: bool) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        n=1,
        temperature=sampler.temperature,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        seed=seed_of(sampler, draw),
        max_tokens=sampler.max_new_tokens,
        min_tokens=min(sampler.min_new_tokens, sampler.max_new_tokens),
        stop_token_ids=sorted(sampler.stops),
        ignore_eos=True,  # it is among our stops if it is one
        logprobs=0 if logged else None,  # the sampled token's alone
        detokenize=False,
    )


def seed_of(sampler: Sampler, draw: Draw) -> int:
    """A sequence's own seed, of 63 bits: given equal logits its tokens depend on no order and no company."""
    return int(generator(sampler.seed, sampler.stream, draw.step, draw.sample).integers(2**63 - 1))
