"""Who may speak to whom: one authority, a token for each client, and a kubeconfig made of both."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from tests.cluster.rig.settings import API_SERVER, API_SERVICE_ADDRESS, CONTROL_ADDRESS, Rig
from tests.cluster.rig.shell import run

ADMIN = "admin"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
SERVER_NAMES = (
    f"IP:{CONTROL_ADDRESS},IP:{API_SERVICE_ADDRESS},IP:127.0.0.1,DNS:localhost,DNS:kubernetes,"
    "DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
)


def create(rig: Rig) -> None:
    """Certificates and tokens under pki/, and the kubeconfig of each client."""
    pki = rig.home / "pki"
    run(
        [
            "openssl",
            "req",
            *NEW_KEY,
            "-x509",
            "-days",
            "365",
            "-subj",
            "/CN=orch-cluster",
            "-keyout",
            pki / "ca.key",
            "-out",
            pki / "ca.crt",
        ]
    )
    run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", pki / "accounts.key"])
    _sign(pki, "server", "/CN=kube-apiserver", f"subjectAltName={SERVER_NAMES}")
    # With this one the API server reaches the kubelets: logs and exec.
    _sign(pki, "kubelet-client", "/O=system:masters/CN=kube-apiserver", "extendedKeyUsage=clientAuth")
    users = {
        ADMIN: "system:masters",
        "system:kube-controller-manager": "",
        "system:kube-scheduler": "",
        "system:kube-proxy": "",
        **{f"system:node:{node.name}": "system:nodes" for node in rig.nodes},
    }
    tokens = {user: secrets.token_hex(16) for user in users}
    lines = [f'{tokens[user]},{user},{user},"{group}"' for user, group in users.items()]
    (pki / "tokens.csv").write_text("\n".join(lines) + "\n")
    for user, token in tokens.items():
        _write_kubeconfig(rig, kubeconfig(rig, user), user, token)


def kubeconfig(rig: Rig, user: str) -> Path:
    """Where that user's kubeconfig lies."""
    return rig.kubeconfig if user == ADMIN else rig.home / "pki" / f"{user.replace(':', '.')}.kubeconfig"


def _sign(pki: Path, name: str, subject: str, extension: str) -> None:
    key, request, certificate = (pki / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
    run(["openssl", "req", *NEW_KEY, "-subj", subject, "-keyout", key, "-out", request])
    (pki / "extension").write_text(extension + "\n")
    authority: list[str | Path] = [
        "-CA",
        pki / "ca.crt",
        "-CAkey",
        pki / "ca.key",
        "-CAcreateserial",
        "-days",
        "365",
    ]
    written: list[str | Path] = ["-extfile", pki / "extension", "-out", certificate]
    run(["openssl", "x509", "-req", "-in", request, *authority, *written])


def _write_kubeconfig(rig: Rig, file: Path, user: str, token: str) -> None:
    authority = str(rig.home / "pki" / "ca.crt")
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": rig.name,
        "clusters": [
            {"name": rig.name, "cluster": {"server": API_SERVER, "certificate-authority": authority}}
        ],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": rig.name, "context": {"cluster": rig.name, "user": user}}],
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps(content, indent=1))  # JSON is YAML
