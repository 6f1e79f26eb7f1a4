"""The schema of a sweep file. The loader, the reference page and the CustomResourceDefinition come from it.

Pure. Field names are those of the file. Everything is bounded, unknown fields are refused, and nothing is
converted: a quoted number is not a number.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, StringConstraints
from pydantic_core import PydanticCustomError

from orchestrator.sweep.naming import RUN_NAME, RUN_NAME_LIMIT, SWEEP_NAME, SWEEP_NAME_LIMIT, TAG
from orchestrator.sweep.quantity import cpu_quantity, memory_bytes
from trainer.config import DEFAULT_TASKS, AdapterForm
from trainer.settings import Float, Int

API_VERSION = "orch.dev/v1alpha1"
KIND = "Sweep"
MAX_RUNS = 10_000

Scalar = bool | int | float | str


VALUE_LIMIT = 1000
"""Characters of a text value."""


def _scalar(value: object) -> object:
    if not isinstance(value, Scalar):
        raise PydanticCustomError("scalar", "must be a number, text, true or false")
    # It becomes an argument of a process: no NUL, no line break, no half of a character.
    if isinstance(value, str) and not (value.isprintable() and len(value) <= VALUE_LIMIT):
        raise PydanticCustomError("scalar", f"must be at most {VALUE_LIMIT} printable characters")
    return value


def _distinct(value: object) -> object:
    if isinstance(value, list):
        twice = [item for index, item in enumerate(value) if item in value[:index]]
        if twice:
            raise PydanticCustomError("distinct", "must not hold {item} twice", {"item": repr(twice[0])})
    return value


Value = Annotated[Scalar, PlainValidator(_scalar, json_schema_input_type=Scalar)]
ParamName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
Params = Annotated[dict[ParamName, Value], Field(max_length=64)]
Axis = Annotated[list[Value], Field(min_length=1, max_length=1000)]
Axes = Annotated[dict[ParamName, Axis], Field(min_length=1, max_length=16)]
RunName = Annotated[str, StringConstraints(pattern=RUN_NAME, max_length=RUN_NAME_LIMIT)]
Tag = Annotated[str, StringConstraints(pattern=TAG, max_length=63)]
Tags = Annotated[list[Tag], BeforeValidator(_distinct), Field(max_length=16)]
# Bounds stand inside and before the validator: only so does the JSON schema, and with it the CRD, have them.
WHOLE = get_args(Int)[1]
FINITE = get_args(Float)[1]
Seed = Annotated[int, Field(ge=0, lt=2**32), WHOLE]
Seeds = Annotated[list[Seed], BeforeValidator(_distinct), Field(min_length=1, max_length=100)]
Count = Annotated[int, Field(ge=0, le=100), WHOLE]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=400)]
ResourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]


class Spec(BaseModel):
    """Base of the schema: unknown fields are faults, values are not converted, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class NamedRun(Spec):
    """One run that is written out."""

    name: RunName = Field(description="Name of the run; its id is this and 8 hex of its digest.")
    params: Params = Field(default_factory=dict, description="Trainer settings of this run alone.")
    tags: Tags = Field(default_factory=list, description="Labels of this run alone.")


class Group(Spec):
    """Runs that answer one part of the question: `grid` and/or `zip`, or else `runs`."""

    name: Tag = Field(description="Name of the group; each of its runs also has it as a tag.")
    run: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Template of run names, such as `lr{learning_rate}`; default: the group's name "
        "and the varied settings with their values. For grid and zip.",
    )
    params: Params = Field(default_factory=dict, description="Trainer settings of all its runs.")
    tags: Tags = Field(default_factory=list, description="Labels of all its runs.")
    seeds: Seeds | None = Field(None, description="Seeds instead of the sweep's.")
    grid: Axes | None = Field(
        None,
        description="Setting: list of values. Every combination is a run; of two settings the later in "
        "the trainer's own order moves faster, whatever the order here.",
    )
    zip: Axes | None = Field(
        None,
        description="Setting: list of values, all of one length, which move together. With `grid`, each "
        "row of `zip` meets each combination of `grid`.",
    )
    exclude: list[Params] = Field(
        default_factory=list,
        max_length=1000,
        description="Combinations to leave out: a run goes when every setting named here has this value.",
    )
    runs: list[NamedRun] | None = Field(
        None, min_length=1, max_length=1000, description="Runs written out, instead of grid and zip."
    )


class Resources(Spec):
    """What one training Job gets."""

    gpus: Int = Field(
        1,
        ge=0,
        le=64,
        description="GPUs of a run, one process each; 0 runs on the CPU. Part of a run's identity, for it "
        "multiplies the batch.",
    )
    gpuType: list[Tag] = Field(
        default_factory=list,
        max_length=8,
        description="Any of these types, in order of preference; the profile maps them to node labels.",
    )
    cpu: Float = Field(
        4, gt=0, le=1024, description="CPU cores; 0.5 is half a core. With --local also the threads of a run."
    )
    memory: str = Field(
        "8Gi", pattern=r"^[1-9][0-9]{0,5}(Mi|Gi|Ti)$", max_length=8, description="Main memory."
    )
    maxDuration: str = Field(
        "24h",
        pattern=r"^[1-9][0-9]{0,5}[smhd]$",
        max_length=7,
        description="Longest running time of an attempt, time in the queue not counted: 90m, 24h, 2d.",
    )

    @property
    def cpu_quantity(self) -> str:
        """`cpu` as a Kubernetes quantity: 4, 500m."""
        return cpu_quantity(self.cpu)

    @property
    def memory_bytes(self) -> int:
        """`memory` in bytes."""
        return memory_bytes(self.memory)

    @property
    def max_duration_s(self) -> int:
        """`maxDuration` in seconds."""
        return int(self.maxDuration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[self.maxDuration[-1]]


class Scheduling(Spec):
    """In which order, and how many at once."""

    queue: ResourceName | None = Field(None, description="Queue (Kueue LocalQueue) of the Jobs.")
    priority: ResourceName | None = Field(
        None, description="Priority, mapped to a PriorityClass by the profile."
    )
    parallelism: Int = Field(50, ge=1, le=MAX_RUNS, description="Jobs of this sweep at once.")
    canary: bool = Field(False, description="Start one run first, the others once it trains.")
    gpuHours: Annotated[float, Field(gt=0, le=1e7), FINITE] | None = Field(
        None, description="Start no new Job after this many GPU-hours."
    )
    haltAfter: Int = Field(
        3,
        ge=1,
        le=MAX_RUNS,
        description="Train no further once so many runs failed by the same userError, config or imagePull.",
    )


class Retry(Spec):
    """How many further attempts a stage of a run gets, by class of failure."""

    preempted: Count = Field(20, description="Something more important took its place.")
    nodeLost: Count = Field(5, description="Its node went away.")
    gpuFault: Count = Field(2, description="The GPU failed; the next attempt avoids the node.")
    oomHost: Count = Field(2, description="Main memory ran out; see oomHostMemory.")
    oomHostMemory: Float = Field(
        1.5, ge=1, le=4, description="Factor on memory for the attempt after oomHost."
    )
    oomCuda: Count = Field(1, description="GPU memory ran out; the next attempt halves the micro-batch.")
    imagePull: Count = Field(0, description="The image cannot be pulled.")
    config: Count = Field(0, description="A Secret, ConfigMap, claim or the like is missing.")
    unschedulable: Count = Field(0, description="No node can take it.")
    storage: Count = Field(2, description="A disk ran full, or it was evicted for its use of one.")
    deadline: Count = Field(0, description="It ran longer than maxDuration.")
    stalled: Count = Field(1, description="It made no progress.")
    diverged: Count = Field(0, description="A loss was not a number.")
    userError: Count = Field(0, description="Its settings or data are wrong.")
    internal: Count = Field(1, description="The trainer failed with a fault of its own.")
    unverified: Count = Field(2, description="It ended well but reported no result.")
    lost: Count = Field(5, description="It vanished without a trace.")
    unknown: Count = Field(2, description="It ended with nothing that tells why.")


TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$", max_length=200)]


class EvalSpec(Spec):
    """How every adapter that comes out is measured."""

    enabled: bool = Field(True, description="false: train only.")
    tasks: Annotated[list[TaskName], BeforeValidator(_distinct)] = Field(
        default_factory=lambda: list(DEFAULT_TASKS),
        max_length=32,
        description="lm-eval tasks, or `everyday`, which ships with orch; [] for none.",
    )
    taskData: Text | None = Field(None, description="Folder with local copies of the tasks' rows.")
    limit: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = Field(
        None, description="Items per task; default all."
    )
    batchSize: Int = Field(32, ge=1, le=4096, description="Fixed: scores depend on it in bf16.")
    perplexity: Text = Field(
        "wikitext",
        description="Text for perplexity and KL: wikitext, pydoc_topics, a .txt file, or none.",
    )
    perplexityTokens: Annotated[int, Field(ge=256, le=100_000_000), WHOLE] | None = Field(
        None, description="Tokens of it; default all."
    )
    variants: Annotated[list[AdapterForm], BeforeValidator(_distinct)] = Field(
        default=["adapter", "merged"],
        min_length=1,
        max_length=2,
        description="Forms of each adapter: as trained; merged and quantised again.",
    )
    baselines: Annotated[list[Literal["teacher", "ptq"]], BeforeValidator(_distinct)] = Field(
        default=["teacher", "ptq"],
        max_length=2,
        description="Measured once per model, quantisation and tasks, and shared by sweeps.",
    )
    adaptersPerJob: Int = Field(1, ge=1, le=4, description="Adapters that one Job may measure.")
    gpus: Int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs that share the work of one Job, one process each; no number depends on it. None "
        "where resources.gpus is 0. Its cpu and memory are those of resources.",
    )


class SweepSpec(Spec):
    """Which runs, and how they are run."""

    params: Params = Field(
        default_factory=dict,
        description="Trainer settings of every run: any flag of `python -m trainer train` that decides "
        "what is trained, with - or _.",
    )
    tags: Tags = Field(default_factory=list, description="Labels of every run.")
    groups: list[Group] = Field(min_length=1, max_length=64, description="The runs.")
    seeds: Seeds = Field(
        default_factory=lambda: [42],
        description="Every run once per seed; results give mean and standard deviation over them. "
        "With more than one, `_s<seed>` is added to the names.",
    )
    resources: Resources = Field(default_factory=Resources, description="What one training Job gets.")
    scheduling: Scheduling = Field(default_factory=Scheduling, description="Order and number of Jobs.")
    retry: Retry = Field(default_factory=Retry, description="Further attempts by class of failure.")
    eval: EvalSpec = Field(default_factory=EvalSpec, description="How adapters are measured.")


class Metadata(Spec):
    """What the sweep is called."""

    name: str = Field(
        pattern=SWEEP_NAME, max_length=SWEEP_NAME_LIMIT, description="Name and id of the sweep."
    )


class Sweep(Spec):
    """A declared sweep: one file, one question."""

    apiVersion: Literal["orch.dev/v1alpha1"] = Field(description="Version of this schema.")
    kind: Literal["Sweep"] = Field(description="What this file declares.")
    metadata: Metadata = Field(description="What the sweep is called.")
    spec: SweepSpec = Field(description="Which runs, and how they are run.")
