"""Which cluster, as whom, in which namespace: as kubectl decides it."""

from __future__ import annotations

import json
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.kube import credentials
from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.credentials import Credentials, InCluster, find
from orchestrator.cluster.kube.errors import Unauthorized
from orchestrator.errors import UserError
from tests.orchestrator.cluster.kube.apiserver import FakeApiServer


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kubeconfig, no pod."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def config(path: Path, *contexts: str, current: str | None = None, **user: Any) -> Path:
    """A kubeconfig with a cluster, a user and a context of each name; the namespace is `ns-<name>`."""
    content: dict[str, Any] = {
        "clusters": [{"name": one, "cluster": {"server": f"https://{one}:6443"}} for one in contexts],
        "users": [{"name": one, "user": user or {"token": f"token-{one}"}} for one in contexts],
        "contexts": [
            {"name": one, "context": {"cluster": one, "user": one, "namespace": f"ns-{one}"}}
            for one in contexts
        ],
    }
    if current is not None:
        content["current-context"] = current
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_several_files_merge_and_the_first_current_context_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config(tmp_path / "one", "a", current="a")
    two = config(tmp_path / "two", "b", "a", current="b")
    (tmp_path / "empty").write_text("", encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'missing'}:{tmp_path / 'empty'}:{one}:{two}")
    api = Api.connect()
    assert (api.context, api.namespace, api.host) == ("a", "ns-a", "https://a:6443")
    api = Api.connect(context="b", namespace="mine")
    assert (api.context, api.namespace, api.host) == ("b", "mine", "https://b:6443")


def test_the_home_folder_is_the_default(tmp_path: Path) -> None:
    config(tmp_path / "home" / ".kube" / "config", "a", current="a")
    assert Api.connect().host == "https://a:6443"


@pytest.mark.parametrize(
    ("content", "context", "said"),
    [
        ({"current-context": ""}, None, r"no current context; name one with --context \(there are: a\)"),
        ({"current-context": "gone"}, None, r"no such context, got 'gone'; there are: a"),
        ({"current-context": "a"}, "b", r"no such context, got 'b'; there are: a"),
        ({"current-context": "a", "clusters": []}, None, "Expected object with name a in .*clusters"),
        ({"current-context": "a", "users": []}, None, "Expected object with name a in .*users"),
        ({"current-context": "a", "clusters": [{"name": "a", "cluster": {}}]}, None, "a has no server"),
        ({"current-context": "a", "users": [{"name": "a", "user": {"as": "root", "token": "t"}}]}, None,
         "impersonation is not supported, got as: root"),
        ({"current-context": "a", "users": [{"name": "a", "user": {"auth-provider": {}}}]}, None,
         "user a gives no credentials: it has neither token"),
        ({"current-context": "a", "users": [{"name": "a", "user": {"tokenFile": "absent"}}]}, None, "absent"),
        ([1, 2], None, "no kubeconfig, got list"),
    ],
)  # fmt: skip
def test_a_kubeconfig_that_leads_nowhere_says_why(
    tmp_path: Path, content: Any, context: str | None, said: str
) -> None:
    path = config(tmp_path / "config", "a")
    if isinstance(content, dict):
        content = json.loads(path.read_text(encoding="utf-8")) | content
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        Api.connect(kubeconfig=path, context=context)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_kubeconfig_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found none at .KUBECONFIG or ~/.kube/config"):
        Api.connect()
    with pytest.raises(UserError, match="no such file"):
        Api.connect(kubeconfig=tmp_path / "absent")
    (tmp_path / "broken").write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match="cannot read it"):
        Api.connect(kubeconfig=tmp_path / "broken")


# In a pod


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    for name, text in (("token", "one\n"), ("ca.crt", "pem"), ("namespace", "ml\n")):
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", folder)
    return folder


def test_a_pod_is_its_service_account(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find()
    assert isinstance(source, InCluster)
    ours = Credentials(InCluster(pod))
    assert (ours.source.namespace, ours.source.context) == ("ml", None)
    assert ours.configuration.host == "https://10.0.0.1:443"
    assert ours.authorization() == "bearer one"
    assert not ours.renew("bearer one")
    (pod / "token").write_text("two", encoding="utf-8")
    assert ours.renew("bearer one")
    assert ours.authorization() == "bearer two"
    (pod / "token").unlink()
    with pytest.raises(UserError, match="mount the pod's service account token"):
        ours.renew("bearer two")
    (pod / "token").write_text("two", encoding="utf-8")
    with pytest.raises(UserError, match="a pod has no kubeconfig"):
        find("a")


def test_credentials_that_cannot_be_refreshed_are_a_refusal_in_words(pod: Path) -> None:
    """The thread that holds a Lease would have died of what the client raises."""
    ours = Credentials(InCluster(pod))

    def refresh(configuration: Any) -> None:
        (pod / "gone").read_text(encoding="utf-8")

    ours.configuration.refresh_api_key_hook = refresh
    with pytest.raises(Unauthorized, match=r"ml/pods: cannot read, not asked: credentials: .*gone"):
        Api(ours).get("/api/v1/namespaces/ml/pods")


def test_a_kubeconfig_comes_before_the_pod(
    pod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "config", "a", current="a")))
    assert Api.connect().host == "https://a:6443"


# Credential plugins

PLUGIN = """#!/bin/sh
echo run >> {folder}/runs
cat {folder}/answer
"""


def plugin(folder: Path, token: str, *, lasts: timedelta) -> dict[str, Any]:
    """A user whose credentials come from a script that counts its runs."""
    script = folder / "plugin"
    script.write_text(PLUGIN.format(folder=folder), encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    answer_with(folder, token, lasts)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(script), "interactiveMode": "Never"}}


def answer_with(folder: Path, token: str, lasts: timedelta) -> None:
    expires = (datetime.now(UTC) + lasts).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": token, "expirationTimestamp": expires},
    }
    (folder / "answer").write_text(json.dumps(answer), encoding="utf-8")


def runs(folder: Path) -> int:
    return (folder / "runs").read_text(encoding="utf-8").count("run")


def test_a_plugin_runs_once_for_many_threads_and_again_when_it_has_expired(
    server: FakeApiServer, tmp_path: Path
) -> None:
    user = plugin(
        tmp_path, "first", lasts=timedelta(seconds=1)
    )  # less than the client's five minutes of margin
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path, user))
    server.put("/api/v1/namespaces/ml/pods", "x")
    answer_with(tmp_path, "second", timedelta(hours=1))
    threads = [threading.Thread(target=api.get, args=("/api/v1/namespaces/ml/pods/x",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs(tmp_path) == 2
    assert {one.headers["Authorization"] for one in server.asked} == {"Bearer second"}


def test_a_plugin_is_asked_again_after_a_401(server: FakeApiServer, tmp_path: Path) -> None:
    api = Api.connect(
        kubeconfig=server.kubeconfig(tmp_path, plugin(tmp_path, "first", lasts=timedelta(hours=1)))
    )
    server.put("/api/v1/namespaces/ml/pods", "x")
    server.world.token = "second"
    answer_with(tmp_path, "second", timedelta(hours=1))
    api.get("/api/v1/namespaces/ml/pods/x")
    assert [one.headers["Authorization"] for one in server.asked] == ["Bearer first", "Bearer second"]


def test_a_plugin_that_fails_is_quoted(server: FakeApiServer, tmp_path: Path) -> None:
    user = plugin(tmp_path, "first", lasts=timedelta(hours=1))
    (tmp_path / "plugin").write_text("#!/bin/sh\necho 'session expired' >&2\nexit 3\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"user me gives no credentials: exec: process returned 3. session expired"
    ):
        Api.connect(kubeconfig=server.kubeconfig(tmp_path, user))
    user["exec"]["command"] = "no-such-plugin"
    with pytest.raises(UserError, match=r"gives no credentials: .*no-such-plugin"):
        Api.connect(kubeconfig=server.kubeconfig(tmp_path, user))
