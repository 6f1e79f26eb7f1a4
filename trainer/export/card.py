"""The model card of an export: which function it is, how it was made, what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from trainer.durable import read_object
from trainer.layout import EXPORT_ADAPTER, GGUF_ADAPTER, GGUF_MODEL
from trainer.models import PACKAGE_PREFIX, is_local
from trainer.protocol import quant_label

if TYPE_CHECKING:
    from trainer.export.stage import Job

LIBRARIES = {
    "peft": "peft",
    "bf16": "transformers",
    "compressed-tensors": "transformers",
    "gguf": "gguf",
    "gguf-lora": "gguf",
}
SETTINGS = ("lmbda", "beta", "seq_kd", "learning_rate", "max_steps", "max_length", "max_new_tokens", "lora_r")
RULES = {
    "int4": "groups share a scale s and a zero point z, both {qparams}; a weight is s·c + z, c in -8..7",
    "int4_sym": "groups share a scale s = {qparams}(amax / 7.5); a weight is s·c, c in -8..7",
    "bnb_nf4": "bitsandbytes NF4, blocks of 64, absmax in float32",
    "bnb_fp4": "bitsandbytes FP4, blocks of 64, absmax in float32",
    "none": "not quantised",
}


class Recovered(NamedTuple):
    """Held-out KL to the teacher, nats a token, of what ships and of ptq where that was measured."""

    kl: float
    ptq: float | None
    text: str

    def line(self) -> str:
        """`KL to the teacher 0.1413 nats a token on …; ptq 0.2442: 42.1 % recovered`."""
        told = f"KL to the teacher {self.kl:.4f} nats a token on {self.text}"
        if not self.ptq:
            return told
        return f"{told}; ptq {self.ptq:.4f}: {100 * (1 - self.kl / self.ptq):.1f} % recovered"


def card(job: Job, figures: Mapping[str, float], dump: Path, license_name: str | None) -> str:
    """README.md with its YAML front matter. figures: what reading back gave. dump: where baselines lie."""
    head = yaml.safe_dump(_front_matter(job, license_name), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n" + "\n".join(_body(job, figures, recovered(job, dump))) + "\n"


def _front_matter(job: Job, license_name: str | None) -> dict[str, Any]:
    matter: dict[str, Any] = {}
    name = job.base.model_name
    # A hub's page can link to nothing else.
    if not is_local(name) and not name.startswith(PACKAGE_PREFIX):
        matter |= {
            "base_model": name,
            "base_model_relation": "adapter" if job.kind == "peft" else "quantized",
        }
    if license_name:
        matter["license"] = license_name
    tags = ["distillation", "on-policy-distillation", job.base.quant_type, "lora"]
    return {**matter, "library_name": LIBRARIES[job.kind], "pipeline_tag": "text-generation", "tags": tags}


def _body(job: Job, figures: Mapping[str, float], measured: Recovered | None) -> Iterator[str]:
    base, run = job.base, job.source.run or {}
    yield from (
        f"\n# {job.source.name}, {job.kind}\n",
        _function(job),
        "\n## How it is loaded\n",
        _loading(job),
    )
    yield from ("\n## How it was made\n", f"- Teacher: `{base.model_name}` at `{base.model_revision}`")
    rule = RULES[base.quant_type].format(qparams=base.qparams_dtype)
    yield f"- Q: {quant_label(base)}, {rule}; all linears but the output head" + (
        ", and the head" if base.quantize_lm_head else ""
    )
    yield f"- LoRA {job.order} Q, computed in {base.mixed_precision}"
    if run.get("codes_sha256"):
        yield f"- SHA-256 of the base's codes: `{run['codes_sha256']}`"
    config = run.get("config") or {}
    if config:
        told = ", ".join(f"{name} {config[name]}" for name in SETTINGS if name in config)
        yield f"- Generalised knowledge distillation on {config.get('dataset_name')}: {told}"
    yield f"- {measured.line()}" if measured else "- Not evaluated"
    for name, value in figures.items():
        yield f"- {name.replace('_', ' ')}: {value:.3g}"
    yield "\nEvery tensor was read back and compared with the trained one. Hashes: `manifest.json`."


def _function(job: Job) -> str:
    if job.order == "inside":
        return "The function that was trained, in one piece: every quantised linear computes Q(W + s·B·A)x."
    if job.base.quant_type == "none":
        return "The function that was trained is Wx + s·B(Ax): the base with the adapter on it, unmerged."
    return (
        "The function that was trained is Q(W)x + s·B(Ax): the quantised base with the adapter on it, "
        "unmerged. Merged and quantised again, or on the full-precision base, it is another function."
    )


def _loading(job: Job) -> str:
    """A block of code that gives the trained function."""
    dtype = "bfloat16" if job.base.mixed_precision == "bf16" else "float32"
    load = f"model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.{dtype})\n"
    wear = (
        f'adapter = f"{{folder}}/{EXPORT_ADAPTER}"\n'
        "model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)\n"
        "# autocast_adapter_dtype=False: A and B in the base's dtype, as they were trained\n"
    )
    imports = "import torch\nfrom transformers import AutoModelForCausalLM\n"
    with_peft = "import torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
    match job.kind:
        case "peft":
            return (
                "On Q(W), which `--format bf16` of the same run writes:\n\n```python\n"
                + with_peft
                + load.replace("folder", "base_folder")
                + "model = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)\n```"
            )
        case "gguf":
            return f"```sh\nllama-cli -m {GGUF_MODEL}\n```\n\n{_LLAMA_CPP}"
        case "gguf-lora":
            return f"```sh\nllama-cli -m {GGUF_MODEL} --lora {GGUF_ADAPTER}\n```\n\n{_LLAMA_CPP}"
        case _ if job.order == "outside":
            return f"```python\n{with_peft}{load}{wear}```"
        case _:
            return f"```python\n{imports}{load}```"


_LLAMA_CPP = (
    "llama.cpp rounds activations to 8 bits in products with 4-bit weights, so its logits are near those "
    "of the trained function, not equal to them."
)


def recovered(job: Job, dump: Path) -> Recovered | None:
    """What the run's evaluations say of the function that ships; None when it was not measured."""
    if job.source.home is None:
        return None
    variant, sha256 = ("merged" if job.order == "inside" else "adapter"), job.source.sha256()
    for file in sorted(job.source.home.glob(f"eval/*/{variant}.json")):
        found = read_object(file)
        kl = _kl(found)
        if found.get("adapter_sha256") == sha256 and kl is not None:
            # Named as trainer.protocol.Plan.key names the baselines of the same measure.
            key = hashlib.sha256(f"{found.get('measure')}\0".encode()).hexdigest()[:16]
            places = (dump, job.source.home.parent.parent)
            known = [_kl(read_object(place / ".baselines" / key / "ptq.json")) for place in places]
            protocol = found.get("protocol") or {}
            return Recovered(kl, next((one for one in known if one), None), str(protocol.get("text")))
    return None


def _kl(measured: Mapping[str, Any]) -> float | None:
    try:
        return float(measured["result"]["text"][3])  # TextScore.kl
    except (KeyError, TypeError, IndexError, ValueError):
        return None


def license_of(folder: Path | None, gguf_source: Path | None) -> str | None:
    """The teacher's licence as its GGUF file or its own card names it; None when neither does."""
    if gguf_source is not None:
        from gguf import GGUFReader

        field = GGUFReader(gguf_source).fields.get("general.license")
        return str(field.contents()) if field else None
    readme = folder / "README.md" if folder else None
    if readme is None or not readme.is_file():
        return None
    parts = readme.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        matter = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    found = matter.get("license") if isinstance(matter, dict) else None
    return found if isinstance(found, str) else None
