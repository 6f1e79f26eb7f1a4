"""The profile: defaults, orch.toml, its faults."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.profile import Profile, load_profile


def test_profile_without_a_file_is_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_profile() == Profile()


def test_profile_reads_orch_toml_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orch.toml").write_text(
        'volumeClaim = "lab"\ntolerations = [{key = "gpu", operator = "Exists"}]\n[gpuTypes]\nH100 = ["X"]\n'
    )
    profile = load_profile()
    assert (profile.volumeClaim, profile.gpuTypes) == ("lab", {"H100": ["X"]})
    assert profile.tolerations[0].key == "gpu"


def test_profile_tells_every_fault_with_file_and_field(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text('volumeClam = "x"\nmaxMemory = "lots"\nimage = 3\n')
    with pytest.raises(UserError) as caught:
        load_profile(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: volumeClam is no profile field; did you mean volumeClaim?"
    assert [line.split(": ")[1] for line in lines[1:]] == ["image", "maxMemory"]


@pytest.mark.parametrize(
    ("notify", "fault"),
    [
        ('{url = "https://a", urlFile = "b"}', "notify: must have a url or a urlFile, and not both"),
        ("{}", "notify: must have a url or a urlFile, and not both"),
        ('{url = "file:///etc/passwd"}', "notify.url: must match"),
        ('{urlFile = "a", on = ["failed"]}', "notify.on.0: must be 'ended' or 'halted'"),
    ],
)
def test_profile_refuses_a_webhook_that_is_none(tmp_path, notify, fault):
    path = tmp_path / "lab.toml"
    path.write_text(f"notify = {notify}\n")
    with pytest.raises(UserError) as caught:
        load_profile(path)
    assert fault in str(caught.value)


@pytest.mark.parametrize("text", ["a = [", None], ids=["no TOML", "no file"])
def test_profile_that_cannot_be_read_is_a_users_fault(tmp_path, text):
    path = tmp_path / "lab.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"lab\.toml: cannot be read"):
        load_profile(path)


@pytest.mark.parametrize(
    "volume",
    [
        {"name": "x", "mountPath": "/mnt/x"},
        {"name": "x", "mountPath": "/mnt/x", "claim": "a", "configMap": "b"},
        {"name": "data", "mountPath": "/mnt/x", "claim": "a"},
        {"name": "x", "mountPath": "/data/dump/x", "claim": "a"},
        {"name": "x", "mountPath": "/data", "claim": "a"},
        {"name": "x", "mountPath": "/mnt/../data", "claim": "a"},
        {"name": "x", "mountPath": "/var/run/secrets/kubernetes.io", "claim": "a"},
        {"name": "x", "mountPath": "mnt", "claim": "a"},
    ],
)
def test_a_volume_that_would_hide_something_of_a_job_is_refused(volume: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Profile.model_validate({"volumes": [volume]})
