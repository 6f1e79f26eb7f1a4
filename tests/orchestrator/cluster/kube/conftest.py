"""A fake API server, and doors to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.transport import Timeouts
from tests.orchestrator.cluster.kube.apiserver import FakeApiServer

QUICK = Timeouts(connect_s=2.0, read_s=5.0, watch_grace_s=1.0)


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as fake:
        yield fake


@pytest.fixture
def api(server: FakeApiServer, tmp_path: Path) -> Api:
    return Api.connect(kubeconfig=server.kubeconfig(tmp_path), timeouts=QUICK)
