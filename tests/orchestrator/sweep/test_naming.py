"""Names of runs and Jobs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep import naming

SWEEPS = st.from_regex(r"[a-z0-9]{1,10}(-[a-z0-9]{1,8}){0,2}", fullmatch=True)
NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,52}[A-Za-z0-9])?", fullmatch=True)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
STAGES = st.sampled_from(["fetch", "baseline", "train", "eval", "report"])
ATTEMPTS = st.integers(0, naming.MAX_ATTEMPT)
JOBS = st.tuples(SWEEPS, NAMES, DIGESTS, STAGES, ATTEMPTS)


def name_of(job: tuple) -> str:
    sweep, name, digest, stage, attempt = job
    return naming.job_name(sweep, naming.run_id(name, digest), stage, attempt)


def key_of(job: tuple) -> tuple:
    sweep, _, digest, stage, attempt = job
    return sweep, digest[:8], stage, attempt


@given(JOBS)
def test_job_name_is_a_dns_label_that_keeps_the_digest(job):
    name = name_of(job)
    assert len(name) <= 52
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert name.startswith(job[0])
    assert name.endswith(f"{job[2][:8]}-{job[3]}-{job[4]}")


@given(JOBS, JOBS)
def test_job_name_differs_where_sweep_digest_stage_or_attempt_differ(one, other):
    if key_of(one) != key_of(other):
        assert name_of(one) != name_of(other)


@pytest.mark.parametrize(
    ("changed"),
    [
        pytest.param({"sweep": "lmbda-lr"}, id="another sweep whose name goes on where the run's begins"),
        pytest.param({"digest": "1" * 8 + "0" * 56}, id="another digest"),
        pytest.param({"stage": "eval"}, id="another stage"),
        pytest.param({"attempt": 11}, id="another attempt"),
    ],
)
def test_job_name_tells_near_jobs_apart(changed):
    job = {"sweep": "lmbda", "name": "lr-x", "digest": "0" * 64, "stage": "train", "attempt": 1}
    near = {**job, "name": "x" if "sweep" in changed else "lr-x", **changed}
    assert name_of(tuple(job.values())) != name_of(tuple(near.values()))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("lmbda0_lr5e6-7f3a9c1e", "lmbda0--lmbda0-lr5e6-7f3a9c1e-train-1"),
        ("7f3a9c1e", "lmbda0--7f3a9c1e-train-1"),
        ("X" * 54 + "-7f3a9c1e", "lmbda0--" + "x" * 27 + "-7f3a9c1e-train-1"),
    ],
    ids=["underscores become dashes", "a bare digest is a run id", "only the readable part is cut"],
)
def test_job_name_examples(run, expected):
    assert naming.job_name("lmbda0", run, "train", 1) == expected


@given(NAMES, DIGESTS)
def test_run_id_is_a_label_value_that_splits_again(name, digest):
    run = naming.run_id(name, digest)
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", run)
    assert naming.split_run_id(run) == (name, digest[:8])


@pytest.mark.parametrize(
    ("sweep", "run", "attempt"),
    [
        ("Lmbda0", "a-7f3a9c1e", 1),
        ("a--b", "a-7f3a9c1e", 1),
        ("a" * 29, "a-7f3a9c1e", 1),
        ("a", "lmbda0", 1),
        ("a", "a-7f3a9c1e", -1),
        ("a", "a-7f3a9c1e", 10_000),
    ],
)
def test_job_name_refuses_what_no_checked_sweep_has(sweep, run, attempt):
    with pytest.raises(ValueError, match="got"):
        naming.job_name(sweep, run, "train", attempt)


def test_labels_and_annotations_carry_what_finds_a_job_again():
    assert naming.labels("lmbda0", "lr_1-7f3a9c1e", "train", 2) == {
        "app.kubernetes.io/managed-by": "orch",
        "orch.dev/sweep": "lmbda0",
        "orch.dev/run": "lr_1-7f3a9c1e",
        "orch.dev/stage": "train",
        "orch.dev/attempt": "2",
    }
    assert naming.job_annotations("lr_1-7f3a9c1e", "7f" * 32) == {
        "orch.dev/run-id": "lr_1-7f3a9c1e",
        "orch.dev/config-digest": "7f" * 32,
    }
