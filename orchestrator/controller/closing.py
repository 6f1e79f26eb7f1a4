"""What of a sweep is over for good, so that no later turn looks at it: PURE."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.controller.evaluation import Evaluation
from orchestrator.controller.observed import Unit
from orchestrator.controller.rest import Closed
from orchestrator.controller.status import RunState
from orchestrator.controller.world import World


def closed(world: World, evaluation: Evaluation, told: Sequence[RunState]) -> Closed:
    """Runs that are done, and evaluations of done runs alone, as far as nothing is under way for them.

    Fetches and baselines stay open, for later runs ask for them.
    """
    done = {state.run.id for state in told if state.state == "done"}
    runs = {run for run in done if world.histories[Unit("train", run)].over}
    open_runs = {run.id for run in world.present} - runs
    known = {
        unit: what
        for unit, (what, _) in evaluation.known.items()
        if world.histories[unit].over and open_runs.isdisjoint(what.runs)
    }
    histories = [world.histories[unit] for unit in (*(Unit("train", run) for run in runs), *known)]
    records = tuple(record for history in histories for record in history.records)
    return Closed(
        frozenset(runs),
        records,
        frozenset(record.job for record in records) | {job.name for one in histories for job in one.jobs},
        frozenset((what.protocol, what.base) for what in known.values()),
    )
