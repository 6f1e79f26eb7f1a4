"""`orch gc`: done here, or printed as a Job for a cluster, where no command has the volume."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import yaml

from orchestrator import screen
from orchestrator.client.gc import manifest, tidy
from orchestrator.client.local import LocalSession
from orchestrator.client.session import Session
from orchestrator.errors import ClusterError
from orchestrator.sweep.naming import LABEL_STAGE
from trainer.config import GcConfig
from trainer.results import Tidied, in_words


def collect(session: Session, config: GcConfig, output: str) -> None:
    """Say what may go, or is gone. ClusterError when something could not be removed."""
    if not isinstance(session, LocalSession):
        _print_job(session, config, output)
        return
    tidied = tidy(session, config)
    if output == "json":
        value = {**tidied.model_dump(mode="json"), "bytes": tidied.bytes}
        json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        out = screen.console()
        for line in lines(tidied, session.command_line("gc", "--delete")):
            out.print(line, soft_wrap=True)
    if tidied.faults:
        raise ClusterError("\n".join(tidied.faults))


def lines(tidied: Tidied, again: str) -> Iterator[str]:
    """A line for each thing, then the sum and how to go on."""
    for one in tidied.items:
        yield one.line()
    if not tidied.items:
        yield "nothing may go"
    elif tidied.deleted:
        yield f"{len(tidied.items)} are gone, {in_words(tidied.bytes)} free"
    else:
        yield f"{len(tidied.items)} would go, {in_words(tidied.bytes)}; `{again}` removes them"


def _print_job(session: Session, config: GcConfig, output: str) -> None:
    """The Job to standard output, what to do with it to standard error: it can be piped."""
    made = manifest(session, config)
    if output == "json":
        json.dump({"v": 1, "job": made}, sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
        return
    sys.stdout.write(yaml.safe_dump(made, sort_keys=False, width=1000))
    what = "removes it" if config.delete else "says what would go and removes nothing (--delete does)"
    sys.stderr.write(
        f"the volume is out of reach from here: this Job {what}. Who may create Jobs runs it with\n"
        f"  … | kubectl create -f -\n"
        f"and reads what it said with\n"
        f"  kubectl logs -n {session.namespace} -l {LABEL_STAGE}=gc --tail=-1\n"
    )
