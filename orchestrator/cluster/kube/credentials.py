"""Who we are to which API server: the user's kubeconfig as kubectl reads it, else the pod's own account."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from kubernetes.client import Configuration
from kubernetes.config import ConfigException
from kubernetes.config.incluster_config import InClusterConfigLoader
from kubernetes.config.kube_config import ENV_KUBECONFIG_PATH_SEPARATOR, KubeConfigLoader, KubeConfigMerger

from orchestrator.errors import UserError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Source(Protocol):
    """A place that credentials are read from, as often as they are refused."""

    @property
    def context(self) -> str | None:
        """The kubeconfig's context; None in a pod."""

    @property
    def namespace(self) -> str:
        """Where to work unless told otherwise."""

    def load(self, configuration: Configuration) -> None:
        """Fill in address, trust and identity as they are now. UserError in words."""


def find(context: str | None = None, kubeconfig: Path | None = None) -> Source:
    """`kubeconfig`, else the files of $KUBECONFIG, else ~/.kube/config, else the pod's service account.

    UserError when there is none of them, or no such context in them.
    """
    files = _files(kubeconfig)
    if files:
        return KubeConfig.read(files, context)
    if "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").is_file():
        if context is not None:
            raise UserError(f"--context {context}: a pod has no kubeconfig, so no contexts; leave it out")
        return InCluster()
    raise UserError(
        "kubeconfig: found none at $KUBECONFIG or ~/.kube/config, and this is no pod of a cluster; "
        "set KUBECONFIG, or run here with --local"
    )


def _files(kubeconfig: Path | None) -> tuple[Path, ...]:
    """The files kubectl would merge; those that do not exist are left out, as kubectl does."""
    if kubeconfig is not None:
        if not kubeconfig.is_file():
            raise UserError(f"kubeconfig {kubeconfig}: no such file")
        return (kubeconfig,)
    named = os.environ.get("KUBECONFIG", "") or "~/.kube/config"
    paths = [Path(part).expanduser() for part in named.split(ENV_KUBECONFIG_PATH_SEPARATOR) if part]
    return tuple(path for path in paths if path.is_file())


@dataclass(frozen=True)
class KubeConfig:
    """One context of the merged kubeconfig files."""

    files: tuple[Path, ...]
    context: str
    namespace: str

    @classmethod
    def read(cls, files: tuple[Path, ...], context: str | None) -> KubeConfig:
        """The context named, else the current one. UserError with the contexts that exist."""
        read = {path: content for path in files if (content := _mapping(path))}
        contexts: dict[str, Any] = {}
        for content in read.values():
            for entry in content.get("contexts") or []:
                contexts.setdefault(entry.get("name"), entry.get("context") or {})
        # The first file that names one wins, as for kubectl; the client's own merger lets the last win, and
        # would talk to another cluster than kubectl does.
        current = next((content["current-context"] for content in read.values() if _current(content)), None)
        chosen = context if context is not None else current
        where = _named(files)
        known = ", ".join(sorted(map(str, contexts))) or "none"
        if chosen is None:
            raise UserError(f"{where}: no current context; name one with --context (there are: {known})")
        if chosen not in contexts:
            raise UserError(f"{where}: no such context, got {chosen!r}; there are: {known}")
        return cls(tuple(read), chosen, contexts[chosen].get("namespace") or "default")

    def load(self, configuration: Configuration) -> None:
        """Read the files anew, run the credential plugin, refresh what has expired."""
        where = f"{_named(self.files)}, context {self.context}"
        try:
            merger = KubeConfigMerger(ENV_KUBECONFIG_PATH_SEPARATOR.join(map(str, self.files)))
            loader = KubeConfigLoader(
                merger.config,
                active_context=self.context,
                config_base_path=None,
                config_persister=merger.save_changes,
            )
            context = loader.current_context["context"]
            cluster = merger.config["clusters"].get_with_name(context["cluster"])["cluster"].value
            user = _user(merger, context.get("user"))
            with _logged() as said:
                loader.load_and_set(configuration)
        except (ConfigException, OSError, yaml.YAMLError) as error:
            raise UserError(f"{where}: {error}") from error
        if not cluster.get("server"):
            raise UserError(f"{where}: cluster {context['cluster']} has no server")
        if user.get("as"):
            raise UserError(f"{where}: impersonation is not supported, got as: {user['as']}; remove it")
        if user and not (configuration.api_key.get("BearerToken") or configuration.cert_file):
            why = "; ".join(said) or "it has neither token, certificate, exec nor password"
            raise UserError(f"{where}: user {context['user']} gives no credentials: {why}")


@dataclass(frozen=True)
class InCluster:
    """The service account that Kubernetes mounts into a pod; its token file is rotated."""

    folder: Path = SERVICE_ACCOUNT
    context: str | None = None

    @property
    def namespace(self) -> str:
        """The pod's own."""
        file = self.folder / "namespace"
        return file.read_text(encoding="utf-8").strip() if file.is_file() else "default"

    def load(self, configuration: Configuration) -> None:
        """Read the token as it is now; the client's loader reads it again every minute."""
        try:
            InClusterConfigLoader(str(self.folder / "token"), str(self.folder / "ca.crt")).load_and_set(
                configuration
            )
        except (ConfigException, OSError) as error:
            raise UserError(f"{self.folder}: {error}; mount the pod's service account token") from error


class Credentials:
    """The client's configuration for a source, kept fresh; safe to use from several threads."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.configuration = Configuration()
        self._lock = threading.Lock()
        source.load(self.configuration)

    def authorization(self) -> str | None:
        """The Authorization header now, refreshed when its source says it has expired; None: certificates.

        UserError when what it is read from is gone.
        """
        # One thread at a time: a refresh may run a credential plugin, which must not run sixteen times.
        with self._lock:
            return self._header()

    def renew(self, refused: str | None) -> bool:
        """Read everything anew after a 401 to `refused`. True when there is something else to try."""
        with self._lock:
            if self._header() != refused:
                return True
            before = self._identity()
            self.source.load(self.configuration)
            return self._identity() != before

    def _header(self) -> str | None:
        try:
            token = self.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        except (ConfigException, OSError) as error:
            raise UserError(f"credentials: cannot read them anew: {error}") from error
        # A line end in it would be refused by http.client with a message that quotes the token.
        return token.strip() if token else None

    def _identity(self) -> tuple[object, ...]:
        now = self.configuration
        return self._header(), now.host, now.cert_file, now.key_file, now.ssl_ca_cert


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"kubeconfig {path}: cannot read it: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"kubeconfig {path}: no kubeconfig, got {type(content).__name__}")
    return content or {}


def _current(content: dict[str, Any]) -> bool:
    return bool(content.get("current-context"))


def _named(files: tuple[Path, ...]) -> str:
    return "kubeconfig " + ENV_KUBECONFIG_PATH_SEPARATOR.join(map(str, files))


def _user(merger: KubeConfigMerger, name: str | None) -> dict[str, Any]:
    """The user entry, empty for a context without one. ConfigException when there is none of that name."""
    if not name:
        return {}
    user: dict[str, Any] = merger.config["users"].get_with_name(name)["user"].value
    return user


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What the loader says on the root logger: a failing credential plugin is logged there, never raised."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield said
    finally:
        root.removeHandler(handler)
