"""What a run's id depends on, and that its config reaches the trainer whole."""

import json
import math
import string

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.expand import expand
from orchestrator.sweep.load import loads
from trainer.config import EvalConfig, TrainConfig
from trainer.flags import parse
from trainer.settings import to_flags

FLOATS = st.floats(0, 1, exclude_min=True, exclude_max=True, allow_subnormal=True)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": FLOATS,
        "weight_decay": FLOATS | st.just(0.0),
        "beta": st.floats(0, 1),
        "temperature": st.floats(0, 10, exclude_min=True),
        "max_steps": st.integers(1, 10**6),
        "lora_r": st.integers(1, 1024),
        "seq_kd": st.booleans(),
        "quant_type": st.sampled_from(["int4", "bnb_fp4", "none"]),
        "dataset_name": st.text(string.ascii_letters + string.digits + "-@=/$ é", min_size=1, max_size=20),
    },
)


def file_of(params: dict[str, str]) -> str:
    """A sweep file of one run, from params already spelled."""
    body = ", ".join(f"{name}: {value}" for name, value in params.items())
    return (
        "apiVersion: orch.dev/v1alpha1\nkind: Sweep\nmetadata: {name: s}\n"
        f"spec: {{groups: [{{name: g, runs: [{{name: x, params: {{{body}}}}}]}}]}}\n"
    )


def spellings(value: object) -> list[str]:
    """Ways to write one value in YAML."""
    if isinstance(value, bool):
        return [str(value).lower(), str(value)]
    if isinstance(value, str):
        return [json.dumps(value), json.dumps(value, ensure_ascii=False)]
    if isinstance(value, int):
        return [str(value), f"{value}.0", f"+{value}", f"{value}e0"]
    whole = [str(int(value))] if value == int(value) else []
    return [repr(value), f"{value:.17e}", f"{value:.17E}", repr(value).replace("e-0", "e-"), *whole]


@given(PARAMS, st.data())
def test_run_id_does_not_depend_on_spelling(params, data):
    plain = {name: spellings(value)[0] for name, value in params.items()}
    names = data.draw(st.permutations(list(params)))
    respelled = {
        data.draw(st.sampled_from([name, name.replace("_", "-"), name.replace("_", "-", 1)])): data.draw(
            st.sampled_from(spellings(params[name]))
        )
        for name in names
    }
    (one,) = expand(loads(file_of(plain), "a"))
    (other,) = expand(loads(file_of(respelled), "b"))
    assert one == other
    assert all(getattr(one.config, name) == value for name, value in params.items())


@given(PARAMS, PARAMS)
def test_run_id_differs_where_a_setting_differs(params, others):
    (one,) = expand(loads(file_of({name: spellings(value)[0] for name, value in params.items()}), "a"))
    (other,) = expand(loads(file_of({name: spellings(value)[0] for name, value in others.items()}), "b"))
    assert (one.digest == other.digest) == (one.config == other.config)


@given(PARAMS)
def test_config_survives_the_trip_through_flags(params):
    config = TrainConfig(**params)
    (parsed,) = parse(to_flags(config), TrainConfig)
    assert parsed == config


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_every_float_survives_the_trip_through_flags_bit_for_bit(rate):
    (parsed,) = parse(to_flags(TrainConfig(learning_rate=rate)), TrainConfig)
    assert math.copysign(1, parsed.learning_rate) == 1
    assert parsed.learning_rate.hex() == rate.hex()


@given(
    st.lists(st.text("ab-@=", min_size=1, max_size=5), max_size=3).filter(lambda paths: "none" not in paths)
)
def test_lists_of_text_survive_the_trip_through_flags(paths):
    config = EvalConfig(lora_paths=paths)
    (parsed,) = parse(to_flags(config), EvalConfig)
    assert parsed == config


def test_run_id_does_not_depend_on_name_tags_retries_or_evaluation():
    text = file_of({"beta": "0.5"})
    more = text.replace("params: {beta", "tags: [t], params: {beta").replace(
        "spec: {", "spec: {tags: [u], retry: {lost: 1}, eval: {limit: 5}, scheduling: {parallelism: 1}, "
    )
    (one,), (other,) = expand(loads(text, "a")), expand(loads(more, "b"))
    assert (one.digest, one.id) == (other.digest, other.id)


def test_run_id_depends_on_seed_and_number_of_processes():
    text = file_of({"beta": "0.5"})
    digests = {
        expand(loads(text.replace("spec: {", f"spec: {{{extra}"), "a"))[0].digest
        for extra in ("", "seeds: [7], ", "resources: {gpus: 8}, ")
    }
    assert len(digests) == 3
