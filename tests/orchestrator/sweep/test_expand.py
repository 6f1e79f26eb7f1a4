"""Sweep → runs."""

import pytest

from orchestrator.errors import SweepError
from orchestrator.sweep import expand as module
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.params import in_name
from orchestrator.sweep.spec import Sweep
from trainer.config import TrainConfig
from trainer.settings import digest


def sweep_of(*groups: dict, **spec: object) -> Sweep:
    head = {"apiVersion": "orch.dev/v1alpha1", "kind": "Sweep", "metadata": {"name": "s"}}
    return Sweep.model_validate({**head, "spec": {"groups": list(groups), **spec}})


def names(*groups: dict, **spec: object) -> list[str]:
    return [run.name for run in expand(sweep_of(*groups, **spec))]


def faults(*groups: dict, **spec: object) -> list[str]:
    with pytest.raises(SweepError) as caught:
        expand(sweep_of(*groups, **spec), "f.yaml")
    return caught.value.faults


def test_expand_gives_the_resolved_config_its_digest_and_the_id():
    (run,) = expand(
        sweep_of(
            {"name": "g", "tags": ["b"], "runs": [{"name": "x", "params": {"lmbda": 0}, "tags": ["c"]}]},
            params={"learning-rate": 5e-6},
            tags=["a"],
            resources={"gpus": 2},
        )
    )
    config = TrainConfig(lmbda=0.0, learning_rate=5e-6, nproc=2)
    key = digest(config)
    assert run == Run("x", f"x-{key[:8]}", key, "g", ("a", "g", "b", "c"), config)


def test_expand_takes_every_combination_of_a_grid_the_last_setting_fastest():
    grid = {"learning_rate": [1e-5, 2e-5], "beta": [0, 0.5, 1]}
    runs = expand(sweep_of({"name": "g", "grid": grid}))
    assert [(run.config.learning_rate, run.config.beta) for run in runs] == [
        (1e-5, 0), (1e-5, 0.5), (1e-5, 1), (2e-5, 0), (2e-5, 0.5), (2e-5, 1),
    ]  # fmt: skip


def test_expand_moves_zip_together_and_meets_each_row_with_the_grid():
    group = {"name": "g", "zip": {"beta": [0, 1], "lmbda": [1, 0]}, "grid": {"lora_r": [8, 16]}}
    configs = [run.config for run in expand(sweep_of(group))]
    assert [(c.beta, c.lmbda, c.lora_r) for c in configs] == [(0, 1, 8), (0, 1, 16), (1, 0, 8), (1, 0, 16)]


def test_expand_leaves_out_what_exclude_names():
    group = {"name": "g", "grid": {"beta": [0, 1], "lora-r": [8, 16]}, "run": "b{beta}_r{lora_r}"}
    assert names({**group, "exclude": [{"beta": 1.0, "lora_r": 8}]}) == ["b0_r8", "b0_r16", "b1_r16"]
    assert names({**group, "exclude": [{"beta": 1}]}) == ["b0_r8", "b0_r16"]


def test_expand_does_not_depend_on_the_order_of_keys():
    one = {"name": "g", "grid": {"beta": [0, 1], "lora_r": [8, 16]}, "zip": {"lmbda": [0, 1], "seed_kd": [0]}}
    one["zip"] = {"lmbda": [0, 1], "max_steps": [5, 6]}
    other = {key: one[key] for key in reversed(one)}
    other["grid"] = {"lora-r": [8, 16], "beta": [0, 1]}
    other["zip"] = {"max-steps": [5, 6], "lmbda": [0, 1]}
    assert expand(sweep_of(one)) == expand(sweep_of(other))


@pytest.mark.parametrize(
    ("params", "where"),
    [
        pytest.param(({"beta": 0.1}, {}, {}), 0.1, id="the sweep's"),
        pytest.param(({"beta": 0.1}, {"beta": 0.2}, {}), 0.2, id="the group's over the sweep's"),
        pytest.param(({"beta": 0.1}, {"beta": 0.2}, {"beta": 0.3}), 0.3, id="the run's over all"),
    ],
)
def test_expand_lays_params_over_one_another(params, where):
    sweep, group, run = params
    (made,) = expand(
        sweep_of({"name": "g", "params": group, "runs": [{"name": "x", "params": run}]}, params=sweep)
    )
    assert made.config.beta == where


@pytest.mark.parametrize(
    ("spec", "group", "expected"),
    [
        pytest.param({}, {}, [("x", 42)], id="one seed adds nothing to the name"),
        pytest.param({"seeds": [7]}, {}, [("x", 7)], id="another single seed neither"),
        pytest.param(
            {"seeds": [1, 2]}, {}, [("x_s1", 1), ("x_s2", 2)], id="several seeds are told in the name"
        ),
        pytest.param({"seeds": [1, 2]}, {"seeds": [3]}, [("x", 3)], id="a group may have its own"),
    ],
)
def test_expand_multiplies_by_seeds(spec, group, expected):
    runs = expand(sweep_of({"name": "g", "runs": [{"name": "x"}], **group}, **spec))
    assert [(run.name, run.config.seed) for run in runs] == expected
    assert len({run.digest for run in runs}) == len(runs)


def test_expand_makes_two_names_of_one_config_one_run():
    runs = expand(
        sweep_of(
            {"name": "a", "runs": [{"name": "x", "params": {"beta": 0.5}}]},
            {"name": "b", "grid": {"beta": [0.5, 0]}, "run": "b{beta}"},
        )
    )
    assert [(run.name, run.also, run.tags) for run in runs] == [
        ("x", ("b05",), ("a", "b")),
        ("b0", (), ("b",)),
    ]


@pytest.mark.parametrize(
    ("gpus", "nproc"), [(0, 1), (1, 1), (8, 8)], ids=["CPU: one process", "one GPU", "one process a GPU"]
)
def test_expand_sets_the_number_of_processes_from_the_gpus(gpus, nproc):
    (run,) = expand(sweep_of({"name": "g", "runs": [{"name": "x"}]}, resources={"gpus": gpus}))
    assert run.config.nproc == nproc


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"grid": {"beta": [0.5], "lmbda": [0]}}, "g_lmbda0_beta05"),
        ({"grid": {"learning_rate": [5e-6]}, "run": "{group}-lr{learning_rate}"}, "g-lr5e6"),
        (
            {"grid": {"gradient_accumulation_steps": [4]}, "run": "bs{effective_batch}_{global_batch}"},
            "bs16_32",
        ),
        ({"grid": {"seq_kd": [True]}, "run": "kd_{seq_kd}_{seed}"}, "kd_true_42"),
        ({"grid": {"model_name": ["Qwen/Qwen3-0.6B"]}, "run": "{model_name}"}, "Qwen3-0-6B"),
    ],
)
def test_expand_names_runs(group, expected):
    assert names({"name": "g", **group}, resources={"gpus": 2}) == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (0.0, "0"), (256, "256"), (1.0, "1"), (5e-6, "5e6"), (1e-5, "1e5"), (2.5e-5, "25e5"),
        (1e-4, "1e4"), (0.001, "0001"), (0.05, "005"), (0.5, "05"), (1.25, "125"), (True, "true"),
        ("a/b c.d", "b-c-d"), ("fp32", "fp32"), (1.2345e-7, "12345e7"),
    ],
)  # fmt: skip
def test_in_name_spells_typed_values(value, expected):
    assert in_name(value) == expected


def test_expand_counts_before_it_multiplies():
    axis = list(range(1, 1001))
    group = {
        "name": "g",
        "grid": dict.fromkeys(("max_steps", "save_steps", "lora_r", "max_new_tokens"), axis),
    }
    assert faults(group) == [
        f"f.yaml: spec.groups: make too many runs, got {1000**4}; at most 10000 in one sweep, split it"
    ]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        pytest.param(
            [{"name": "g", "grid": {"beta": [0, 1]}, "run": "same"}],
            "f.yaml: spec.groups[0]: gives one name to two configs, got 'same' for beta 1.0 and here too for "
            "beta 0.0; put what differs into the name",
            id="a template names two configs alike",
        ),
        pytest.param(
            [
                {"name": "a", "runs": [{"name": "x", "params": {"beta": 0}}]},
                {"name": "b", "runs": [{"name": "x", "params": {"beta": 0.5}}]},
            ],
            "f.yaml: spec.groups[1].runs[0]: gives one name to two configs, got 'x' for beta 0.5 and in "
            "spec.groups[0].runs[0] for beta 0.0; put what differs into the name",
            id="two groups name two configs alike",
        ),
        pytest.param(
            [{"name": "g", "grid": {"beta": [0, 1]}, "exclude": [{"beta": 0.5}]}],
            "f.yaml: spec.groups[0].exclude[0]: leaves out nothing, got {'beta': 0.5}; "
            "name values that runs of this group have",
            id="an exclude matches nothing",
        ),
        pytest.param(
            [{"name": "g", "grid": {"beta": [0, 1]}, "exclude": [{"beta": 0}, {"beta": 1}]}],
            "f.yaml: spec.groups[0].exclude: leaves no run, got all 2 left out; exclude less",
            id="everything is excluded",
        ),
        pytest.param(
            [{"name": "g", "grid": {"lmbda": [0]}, "run": "a/{lmbda}"}],
            "f.yaml: spec.groups[0]: makes a name that does not match "
            "^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$, got 'a/0'; change the template",
            id="a template makes no name",
        ),
        pytest.param(
            [{"name": "g" * 63, "grid": {"lmbda": [0]}}],
            f"f.yaml: spec.groups[0]: makes a name of 70 characters, got {'g' * 63 + '_lmbda0'!r}; "
            "give a `run` of at most 54",
            id="a name is too long",
        ),
    ],
)
def test_expand_tells_what_is_wrong_with_the_runs(groups, expected):
    assert faults(*groups) == [expected]


def test_expand_refuses_two_configs_with_one_short_digest(monkeypatch):
    monkeypatch.setattr(module, "digest", lambda config: "0" * 8 + digest(config)[8:])
    assert faults({"name": "g", "runs": [{"name": "x"}, {"name": "y", "params": {"beta": 0}}]}) == [
        "f.yaml: spec.groups[0].runs[1]: has the digest of another config in its id, got y-00000000; "
        "move it to another sweep"
    ]


def test_expand_refuses_what_an_unchecked_sweep_holds():
    found = faults({"name": "g", "runs": [{"name": "x", "params": {"lambda": 0}}]}, params={"beta": 2})
    assert [fault.split(":")[1].strip() for fault in found] == [
        "spec.groups[0].runs[0].params.lambda",
        "spec.params.beta",
    ]
