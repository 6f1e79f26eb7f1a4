"""python -m trainer train | eval | export | report | fetch | gc: flags in, exit code and record out.

Everything that can be answered without torch is answered before it loads.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from trainer import flags, folder
from trainer.attempt import Diverged, Preempted, StopSignal, write_record
from trainer.config import (
    EvalConfig,
    EvalPlace,
    ExportConfig,
    ExportPlace,
    FetchConfig,
    GcConfig,
    ReportConfig,
    TrainConfig,
    TrainPlace,
)
from trainer.fence import FenceLost
from trainer.launch import is_rank, launch, processes
from trainer.results import ExitCode, Record, Stage
from trainer.settings import Settings, digest
from trainer.volume import explain

KINDS: dict[str, tuple[type[Settings], ...]] = {
    "train": (TrainConfig, TrainPlace),
    "eval": (EvalConfig, EvalPlace),
    "export": (ExportConfig, ExportPlace),
    "report": (ReportConfig,),
    "fetch": (FetchConfig,),
    "gc": (GcConfig,),
}
HELP = """usage: python -m trainer COMMAND [--flag value …] [@file.toml …]

  train   distil a teacher into its own quantised self
  eval    measure teacher, ptq and adapters
  export  write the trained function as PEFT, bf16, compressed-tensors or GGUF files
  report  compare the arms of sweeps over seeds, from what eval measured
  fetch   bring a model and its data to the volume
  gc      say which old checkpoints and leftovers may go; --delete removes them

Every command: --help, --print-config (the resolved settings as JSON). train: --dry-run.
Flags may be spelled with - or _; lists repeat their flag; --no-x turns a switch off."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    if command in ("--help", "-h"):
        print(HELP)  # noqa: T201
        return 0
    if command not in KINDS:
        return _fault(f"python -m trainer: unknown command, got {command!r}; use {', '.join(KINDS)}")
    if "--help" in words or "-h" in words:
        print(flags.usage(command, *KINDS[command]))  # noqa: T201
        return 0
    known = ("--dry-run", "--print-config") if command == "train" else ("--print-config",)
    switches = {word.replace("_", "-") for word in words} & set(known)
    rest = [word for word in words[1:] if word.replace("_", "-") not in switches]
    try:
        settings = flags.parse(rest, *KINDS[command])
    except flags.UsageError as error:
        return _fault(str(error))
    if "--print-config" in switches:
        print(json.dumps({k: v for s in settings for k, v in s.model_dump(mode="json").items()}, indent=1))  # noqa: T201
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for chatty in ("httpx", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if command == "train":
        try:
            return _train(settings, words, "--dry-run" in switches)
        except flags.UsageError as error:
            return _fault(str(error))
    if command in ("gc", "report"):
        return _on_files(settings[0])
    return _other(command, settings, words)


def _on_files(config: Settings) -> int:
    """`gc` and `report`, which only read and tidy files; 70 when something could not be removed."""
    try:
        if isinstance(config, ReportConfig):
            from trainer.report.stage import report

            print(report(config), end="")  # noqa: T201
            return ExitCode.DONE
        assert isinstance(config, GcConfig)
        from trainer.gc import lines, tidy

        tidied = tidy(config)
    except flags.UsageError as error:
        return _fault(str(error))
    except ModuleNotFoundError as error:
        return _fault(f"report: needs {error.name}, which is not installed; install orch's extra `report`")
    if config.json_output:
        print(json.dumps(tidied.model_dump(mode="json"), indent=1))  # noqa: T201
    else:
        print("\n".join(lines(tidied)))  # noqa: T201
    return ExitCode.INTERNAL if tidied.faults else ExitCode.DONE


def _train(settings: list[Settings], words: list[str], dry_run: bool) -> int:
    config, place = settings
    assert isinstance(config, TrainConfig)
    assert isinstance(place, TrainPlace)
    config = config.model_copy(update={"nproc": processes(config.nproc)})
    try:
        fault = folder.check_folder(config, place)
        record = None if dry_run or fault else folder.finished(config, place)
    except OSError as error:
        return _end_by(error, "train", place.run_id, config)
    if fault:
        return _fault(fault, _failed("train", place.run_id, ExitCode.USAGE, fault, config))
    if record is not None:
        print(f"{folder.run_folder(config, place).root}: done already, nothing to train")  # noqa: T201
        write_record(record)
        return ExitCode.DONE
    if config.nproc > 1 and not is_rank():
        return launch(words, config.nproc)

    def work() -> Record | None:
        return _train_here(config, place, dry_run)

    return _guarded("train", place.run_id, work, config)


def _train_here(config: TrainConfig, place: TrainPlace, dry_run: bool) -> Record | None:
    # First: a SIGTERM while libraries load must still end with a code of ours.
    stop = StopSignal().install()
    if place.deterministic:
        # cuBLAS reads it when CUDA starts, and refuses deterministic products without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from trainer.distributed import join_world, leave_world
    from trainer.dryrun import describe
    from trainer.setup import prepare
    from trainer.train import train

    world = join_world(place.device)
    try:
        session = prepare(config, place, world, stop)
        if dry_run:
            if world.is_main:
                print(describe(session))  # noqa: T201
            return None
        session.watchdog.start()
        try:
            return train(session)
        finally:
            session.watchdog.stop()
    finally:
        leave_world()


def _other(command: str, settings: list[Settings], words: list[str]) -> int:
    StopSignal().install()  # never deferred: results are published one by one
    if command == "fetch":
        (fetching,) = settings
        assert isinstance(fetching, FetchConfig)

        def work() -> Record | None:
            from trainer.fetch import fetch

            return fetch(fetching)

        return _guarded("fetch", fetching.run_id, work)
    config, place = settings
    if command == "export":
        assert isinstance(config, ExportConfig)
        assert isinstance(place, ExportPlace)
        exporting, target = config, place

        def write() -> Record | None:
            from trainer.export.stage import export

            return export(exporting, target)

        return _guarded("export", place.run_id, write)
    assert isinstance(config, EvalConfig)
    assert isinstance(place, EvalPlace)
    if place.nproc > 1 and not is_rank():
        return launch(words, place.nproc)

    def measure() -> Record | None:
        from trainer.evaluate import evaluate

        return evaluate(config, place)

    return _guarded("eval" if config.lora_paths else "baseline", place.run_id, measure)


def _guarded(
    stage: Stage, run_id: str | None, work: Callable[[], Record | None], config: TrainConfig | None = None
) -> int:
    """Run the work of a stage; every end has its exit code and its record."""
    try:
        record = work()
    except KeyboardInterrupt:
        return _end(stage, run_id, ExitCode.AGAIN, "interrupted", config)
    except (Preempted, FenceLost) as error:
        return _end(stage, run_id, ExitCode.AGAIN, str(error), config)
    except Diverged as error:
        return _end(stage, run_id, ExitCode.DIVERGED, str(error), config)
    except Exception as error:  # noqa: BLE001 - the last door: each end needs a code and a record
        return _end_by(error, stage, run_id, config)
    if record is not None:
        write_record(record)
    return ExitCode.DONE


def _end_by(error: Exception, stage: Stage, run_id: str | None, config: TrainConfig | None) -> int:
    """The end that an error means: ours comes with its trace, all others are one line."""
    code, of_volume = exit_code(error), explain(error)
    if of_volume and code in (ExitCode.INTERNAL, ExitCode.USAGE):
        # A library may dress it as the user's: a model that cannot be read is not a wrong one.
        return _end(stage, run_id, ExitCode.INTERNAL, of_volume, config)
    text = _not_allowed(error) if isinstance(error, PermissionError) else str(error)
    if code == ExitCode.INTERNAL:
        text = "".join(traceback.format_exception(error))
    return _end(stage, run_id, code, text, config)


def exit_code(error: BaseException) -> ExitCode:
    """The exit code of an error by its type: the user's, the data's, the GPU's, the hub's, else ours."""
    name = type(error).__name__
    if name == "DataError":
        return ExitCode.DATA
    if name == "OutOfMemoryError":
        return ExitCode.CUDA_OOM
    if name == "HubFault":
        return ExitCode.AGAIN  # files that came are kept, so the next attempt has less to bring
    if name in ("UsageError", "ModelError", "PermissionError") or (
        type(error) is ValueError and ": " in str(error)
    ):
        # Plain ones are our checks of sizes and adapters: what the user asked for cannot be.
        return ExitCode.USAGE
    return ExitCode.INTERNAL


def _not_allowed(error: PermissionError) -> str:
    """A volume that belongs to someone else is the commonest first fault in a cluster."""
    return (
        f"{error.filename or 'a file'}: not allowed, got {error.strerror or error} as uid {os.getuid()}; "
        "let the folder belong to that user or to a group of theirs"
    )


def _end(stage: Stage, run_id: str | None, code: ExitCode, text: str, config: TrainConfig | None) -> int:
    write_record(_failed(stage, run_id, code, text, config))
    # The log may lie on the volume that failed.
    with contextlib.suppress(OSError):
        sys.stderr.write(text.rstrip() + "\n")
    return code


def _failed(
    stage: Stage, run_id: str | None, code: ExitCode, text: str, config: TrainConfig | None
) -> Record:
    return Record(
        stage=stage,
        status="failed",
        exit_code=code,
        run_id=run_id,
        config_digest=digest(config) if config else None,
        error=text,
    )


def _fault(text: str, record: Record | None = None) -> int:
    sys.stderr.write(text + "\n")
    if record is None:
        record = Record(stage="train", status="failed", exit_code=ExitCode.USAGE, error=text)
    write_record(record)
    return ExitCode.USAGE


if __name__ == "__main__":
    sys.exit(main())
