"""The schema of every key: what a composed configuration may hold, and of which type.

The dataclasses are registered in Hydra's group `schema`, which no command line selects; `conf/train.yaml` and
`conf/evaluate.yaml` start from them, so a misspelled or ill-typed key is refused while composing. What a type
cannot say (ranges, files, models that fit) is in `validation/`. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

OWN = "own"  # teacher.tokenizer: that of the teacher's own folder


@dataclass
class SourceConfig:
    """One source of text: exactly one of `files`, `hub`, `folder`, `docstrings` is given."""

    files: list[str] | None = None  # plain or .gz text files
    unit: str | None = None  # line | paragraph; null: data.unit
    hub: str | None = None  # a data set of the hub: `Salesforce/wikitext`
    config: str | None = None
    revision: str | None = None
    folder: str | None = None  # a `save_to_disk` folder
    split: str | None = "train"
    column: str = "text"
    docstrings: bool = False
    packages: list[str] | None = None  # docstrings of these only


@dataclass
class AugmentConfig:
    """How the training rows of a task change from epoch to epoch."""

    share: float = 0.0  # of the rows that change at all
    mask: float = 0.1  # probability of a token of such a row; likewise delete
    delete: float = 0.0
    ngram: float = 0.0  # probability that each text of such a row is cut down to an n-gram
    ngram_size: int = 5  # of 1 to this many tokens
    disorder: float = 0.0  # probability that the tokens of such a row are moved
    disorder_distance: int = 3  # by up to this many places


@dataclass
class GeneratedConfig:
    """Of data=arithmetic: rows of each part, and how hard their problems are."""

    train: int = 4000
    valid: int = 500
    test: int = 1000
    people: int = 1  # of a problem
    events: int = 3  # most sentences in which somebody gets or loses some
    largest: int = 10  # number of things
    seed: int = 0  # of the problems, whatever the run's


@dataclass
class DataConfig:
    """Where text comes from, how it is binarized, and how it is masked and batched."""

    name: str = MISSING
    train_files: list[str] | None = None  # take the place of `train`
    eval_files: list[str] | None = None  # take the place of `eval`
    train: list[SourceConfig] = field(default_factory=list)
    eval: list[SourceConfig] = field(default_factory=list)
    eval_share: float = 0.01  # without `eval`: this share of the texts of `train` is held out
    unit: str = "line"
    skip: str | None = None  # regular expression: lines of text files to leave out
    max_examples: int | None = None  # texts read of each source
    tokenizer: str | None = None  # folder or hub id; null: the teacher's or student's, else one trained here
    vocabulary_size: int = 8192  # of a tokenizer trained here
    max_length: int | None = None  # tokens, special ones counted; null: what the models allow
    min_length: int = 12
    max_unknown: float = 0.5
    num_proc: int | None = None  # binarizing processes; null: a process a core
    engine: str = "local"  # whose processes binarize: local | ray (Ray Data); the store is the same
    cache: str = '${oc.env:POTSTILL_CACHE,"~/.cache/potstill"}'  # stores, trained tokenizers, extracted text
    batch_size: int = 32  # sequences of a micro-batch on one device
    max_tokens: int | None = None  # padded tokens of a micro-batch; takes the place of batch_size
    eval_batch_size: int = 32
    length_bin: int = 4  # like lengths: within this many tokens; 0: no grouping
    group_size: int | None = None  # sequences of like length drawn together; null: an optimizer step's
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of tasks
    mlm_share: float = 0.15
    mlm_smoothing: float = 0.7
    mlm_replace: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])  # mask, random, kept
    num_workers: int = 0  # processes that read batches; memory-mapped reads take microseconds, so 0 is fine
    # Of objective=step_by_step and benchmark=step_by_step:
    set: str | None = (
        None  # cqa | svamp | esnli | anli1 | arithmetic; of own files: how labels are compared; null: as texts
    )
    folder: str | None = None  # of all sets, laid out as published
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)  # of set=arithmetic
    rationales: str | None = "palm"  # palm | gpt | the path of a file with an output a row; null: none
    labels: str = "gt"  # gt | llm: whose labels are learnt
    share: float = 1.0  # of the training rows
    more_sets: list[str] = field(default_factory=list)  # sets whose training rows are added: asdiv to svamp
    test_files: list[str] | None = None  # of own data: what is reported on
    allow_partial: bool = False  # where outputs and rows differ in number, use what there is of both
    max_unparsed: float = 0.05  # largest share of outputs without a rationale or a label
    predict_prefix: str | None = None  # null: that of the student, else "predict: ", of mode=standard none
    explain_prefix: str | None = None  # null: that of the student, else "explain: "
    max_input_length: int = 1024  # tokens, prefix and end token counted
    max_target_length: int = 256
    generation_max_length: int = 64  # tokens of what a student writes
    output_rationale: bool = False  # have the student write rationales too where it is judged
    restricted_decoding: bool = False  # also judge the likeliest of a row's choices


@dataclass
class TermConfig:
    """A named term of the loss; weight 0 costs nothing, null (mlm, clm, label) is hard_weight where it applies."""

    weight: float | None = 0.0
    schedule: str = "constant"  # of the weight: constant | linear | cosine | torch's: ExponentialLR ...
    start: float | None = None  # weight at the first step; null: `weight`
    end: float | None = None  # weight that a schedule goes to
    steps: int = 0  # optimizer steps until then
    schedule_args: dict[str, Any] = field(default_factory=dict)  # of a torch schedule


@dataclass
class TermsConfig:
    """The terms of an objective; mlm, clm and uld are of language models, label of task models."""

    label: TermConfig = field(default_factory=TermConfig)
    ce: TermConfig = field(default_factory=TermConfig)
    mlm: TermConfig = field(default_factory=TermConfig)
    clm: TermConfig = field(default_factory=TermConfig)
    mse: TermConfig = field(default_factory=TermConfig)
    cos: TermConfig = field(default_factory=TermConfig)
    uld: TermConfig = field(default_factory=TermConfig)
    causal_ce: TermConfig = field(default_factory=TermConfig)
    causal_cos: TermConfig = field(default_factory=TermConfig)


@dataclass
class SwapConfig:
    """What is swapped between inputs: which states, and at which positions."""

    mapping: Any = None  # a layout, a .nm file, or a list of {teacher: [...], student: [...]}; null: nothing
    proportion: float = 0.3
    max_tokens: int | None = None
    positions: str = "consecutive"  # consecutive | free | masked
    read_site: str = "block_output"  # block_output | block_input


@dataclass
class InterchangeConfig(SwapConfig):
    """The same, and from which source."""

    pairing: str = "in_batch"  # in_batch | dataset
    crossway: bool = False
    data_augment: bool = False


@dataclass
class ObjectiveConfig:
    """Which terms make the loss, and their weights."""

    name: str = MISSING
    temperature: float = 2.0
    positions: str = "all"  # of ce, mse, cos and the causal terms: all | masked
    hard_weight: float = 0.0  # of mlm, clm or label, whichever applies, where its own weight is null
    terms: TermsConfig = field(default_factory=TermsConfig)
    matches: Any = None  # a preset's name, or a list of {teacher: 12, student: 3, loss: hidden_mse}
    soft_target: str = "kl"  # of task models: kl | cross_entropy | mse | reverse_kl | jsd
    beta: float = 0.5  # the teacher's share of the mixture of jsd
    temperature_schedule: str = "constant"  # of task models: constant | flsw | cwsm
    temperature_strength: float = 1.0  # how far a schedule moves temperatures from the base
    temperature_gamma: float = 1.0  # of flsw
    probability_shift: bool = False  # of task models: a wrong teacher is put right
    gradient_shares_every: int | None = None  # optimizer steps between measurements of each term's share
    interchange: InterchangeConfig = field(default_factory=InterchangeConfig)
    mode: str = "task_prefix"  # of step_by_step: task_prefix | standard (labels alone)
    alpha: float = 0.5  # of step_by_step: weight of prediction; 1 - alpha is that of explanation
    soft_weight: float = 0.0  # of step_by_step: the share of an LLM's label probabilities in prediction


@dataclass
class CacheConfig:
    """Whether a teacher's outputs are computed once and read from the disk, and in which form."""

    enabled: bool = False
    folder: str | None = None  # of the stores; null: below data.cache, named by what they hold
    form: str = "top"  # of a vocabulary: top | sampled
    k: int = 64  # of top: the likeliest tokens that are kept
    precision: str = "float16"  # of their log-probabilities: float16 | float32
    temperatures: list[float] | None = None  # of top: T that runs may have; null: objective.temperature
    samples: int = 50  # of sampled: draws a position
    power: float = 1.0  # tokens are drawn from p ** power
    systematic: bool = True  # one random number a position instead of one a draw


@dataclass
class TeacherConfig:
    """The model that is learned from."""

    model: str | None = None  # folder or hub id
    models: list[str] | None = None  # several of one task; take the place of `model`
    weights: list[float] | None = None  # a number a teacher; null: all alike
    tokenizer: str | None = (
        None  # own: a teacher reads its own tokens; a folder: of its tokenizer; null: the student's
    )
    average: str = "logits"  # of several teachers: logits | probabilities
    attention: str = "sdpa"
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class SharedTaskConfig:
    """One of several tasks that a student learns, of objective=task_kd."""

    benchmark: str | None = None  # an option of `benchmark`
    teacher: str | None = None  # folder or hub id of a model that is fine-tuned on it
    name: str | None = None  # of the student's folder and in metrics; null: the benchmark's
    options: dict[str, Any] = field(default_factory=dict)  # keys of the benchmark: {folder: <folder>}
    matches: Any = None  # in place of objective.matches


@dataclass
class MixingConfig:
    """How several tasks share the steps of a run, and what says which student is best."""

    exponent: float = 1.0  # a task's probability is its number of examples to this power; 0: all alike
    monitor: str = (
        "mean"  # mean of the tasks' monitored metrics, or the name of the task whose metric decides
    )


@dataclass
class StudentConfig:
    """The model that learns: pretrained, made of the teacher's layers, or from scratch."""

    model: str | None = None  # folder or hub id
    config: dict[str, Any] = field(default_factory=dict)  # from scratch: arguments of its transformers config
    layers: list[int] | None = None  # of the teacher's; null: half of them, first and last included
    architecture: str | None = None  # of a student of teacher layers; null: the teacher's
    vocab_transform: bool = True  # copy the teacher's head transform too
    freeze_positions: bool = False
    freeze_token_types: bool = False
    dropout: float | None = None  # every dropout while training; null: as in the model's own config
    checkpointing: str | None = (
        None  # selective | full: what the backward pass makes again instead of keeping it
    )
    attention: str = "sdpa"


def _target() -> dict[str, Any]:
    return {"_target_": None}


@dataclass
class AdaptedConfig:
    """Modules of the user's own, of objective=adapted; dotted paths, found from the working directory too."""

    teacher: dict[str, Any] = field(default_factory=_target)  # what makes an nn.Module, and its arguments
    student: dict[str, Any] = field(default_factory=_target)
    # what makes a LightningDataModule, or (training loader, validation loader or None)
    data: dict[str, Any] = field(default_factory=_target)
    adaptor: str | None = None  # (batch, outputs) -> {logits: ..., hidden: [...], ...}
    teacher_adaptor: str | None = None  # null: adaptor
    forward: str | None = None  # (model, batch) -> outputs; null: by the form of the batch


@dataclass
class ScheduleConfig:
    """The learning rate over the steps, by name as `transformers.get_scheduler` knows it."""

    name: str = "linear"
    warmup_share: float = 0.05
    warmup_steps: int | None = None  # takes the place of warmup_share


@dataclass
class TrainerConfig:
    """Lightning's Trainer; `strategy=` options are deltas over this."""

    max_steps: int = -1
    max_epochs: int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    nonfinite: str = "stop"  # stop | skip: a step whose loss or gradient is no number
    val_check_interval: int | None = None  # optimizer steps between validations; null: after each epoch
    limit_val_batches: int | None = None
    log_every_n_steps: int = 10
    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    enable_progress_bar: bool = True
    extra: dict[str, Any] = field(default_factory=dict)  # any other argument of lightning.Trainer


def _pruner() -> dict[str, Any]:
    return {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 5}


@dataclass
class TrialConfig:
    """Of a job of a search (`hydra/sweeper=optuna`), which sets the first two."""

    journal: str | None = None
    number: int | None = None
    pruner: dict[str, Any] = field(default_factory=_pruner)  # what ends a trial early; _target_=null: nothing


@dataclass
class CheckpointConfig:
    """When `checkpoints/last.ckpt` is written; it always is when training ends."""

    every_n_steps: int | None = 1000


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.csv, which is always written."""

    name: str = MISSING  # wandb | tensorboard | csv
    project: str = "potstill"
    run: str | None = None
    group: str | None = None  # null: the sweep's folder, in a sweep
    tags: list[str] = field(default_factory=list)
    mode: str | None = (
        None  # wandb: online | offline | disabled; null: online where a key is set, else offline
    )
    artifact_mb: float = 100.0  # wandb: a student of up to so many MB becomes an artifact of its run; 0: none


@dataclass
class GenerationConfig:
    """Of stage=rationales: which language model explains the rows of a set, how it is asked, what is kept."""

    model: str | None = None  # the endpoint's name of a model; without a url a folder or hub id
    url: str | None = (
        None  # of an OpenAI-compatible endpoint: http://localhost:8000/v1; null: in this process
    )
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the API key
    split: str = "train"  # which part is asked for; begins the files' names
    folder: str | None = None  # gets llm/<split>_CoT_<i>.json; null: the set's own folder
    form: str = "chat"  # chat | completion
    prompts: str | None = None  # a file in place of the package's own
    shots: int | None = None  # demonstrations that are shown; null: all
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1  # answers to a row; the majority of their labels decides
    logprobs: bool = False  # keep log-probabilities of tokens in the journal
    drop_contradicting: bool = False  # leave rows empty whose label is not the row's own
    chunk_rows: int = 1000  # rows of a file
    concurrency: int = 8  # requests under way at a time
    timeout: float = 120.0  # seconds
    retries: int = 5
    backoff_seconds: float = 1.0
    longest_wait_seconds: float = 120.0
    max_requests: int | None = None  # of this run; null: no limit
    max_total_tokens: int | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 8  # rows at a time, in this process
    device: str = "cpu"
    dtype: str = "float32"


@dataclass
class StageConfig:
    """A stage of a recipe: a command of its own, in a folder of its own, `${stage:<name>}` to later ones."""

    name: str = MISSING  # of its folder too
    command: str = "train"  # train | evaluate
    defaults: list[str] = field(default_factory=list)  # overrides that the command line wins over
    overrides: list[str] = field(default_factory=list)  # that win over the command line
    without: list[str] = field(default_factory=list)  # sections of the command line that are not handed on


@dataclass
class TrainConfig:
    """The whole of `train.py`."""

    doctor: bool = False  # print what the run would need, and end
    stage: str = "train"  # train | rationales: have a language model write them, before training
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    benchmark: BenchmarkConfig | None = None  # of a task model
    tasks: list[SharedTaskConfig] = field(
        default_factory=list
    )  # several of one student, in place of `benchmark`
    mixing: MixingConfig = field(default_factory=MixingConfig)  # of `tasks`
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    adapted: AdaptedConfig = field(default_factory=AdaptedConfig)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compile: bool = False
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 42
    ckpt_path: str | None = None
    resume: str | None = (
        None  # auto: go on from what an interrupted run left in hydra.run.dir, if it left anything
    )
    stages: list[StageConfig] = field(default_factory=list)  # of a recipe; each is run in place of this one


@dataclass
class PartConfig:
    """A part of a benchmark: its split on the hub, its file in `benchmark.folder`."""

    split: str | None = None
    file: str | None = None  # less its suffix: .tsv .txt .csv .jsonl .json, plain or .gz


@dataclass
class FurtherConfig(PartConfig):
    """An evaluation set beside `benchmark.eval`; its metrics end in its name: `accuracy_mismatched`."""

    name: str = MISSING
    test_split: str | None = None  # of the test set beside `benchmark.test`
    test_file: str | None = None


@dataclass
class LayoutConfig:
    """Where a row has its texts and its label: names of columns, or numbers where a file has no header."""

    texts: list[str] = field(default_factory=list)
    label: str | None = None


@dataclass
class BenchmarkConfig:
    """What a task model is trained for, and what a model is judged on: data, head, metrics, which metric decides."""

    name: str = MISSING
    # language_model | classification | regression | tokens | spans | efficiency | rationales
    task: str = "language_model"
    hub: str | None = None  # a data set of the hub: `nyu-mll/glue`
    config: str | None = None
    revision: str | None = None
    folder: str | None = None  # of the task's own files; takes the place of the hub
    subfolder: str | None = None  # of `folder`, where that holds a folder a task
    train_file: str | None = None  # takes the place of the folder's, like the two below
    eval_file: str | None = None  # of a language model: takes the place of data.eval_files
    test_file: str | None = None  # may be without labels
    part: str | None = None  # what evaluate.py judges: eval | test; null: test where a test_file is named
    train: PartConfig = field(default_factory=PartConfig)
    eval: PartConfig = field(default_factory=PartConfig)
    test: PartConfig = field(default_factory=PartConfig)
    further: list[FurtherConfig] = field(default_factory=list)
    layouts: list[LayoutConfig] = field(default_factory=list)  # the first whose columns a file has is taken
    text_columns: list[str] | None = None  # take the place of `layouts`, with label_column
    label_column: str | None = None
    labels: list[str] | None = (
        None  # by number; null: the training file's, or those of the model that is judged
    )
    aliases: list[str] = field(default_factory=list)  # other spellings: `contradictory=contradiction`
    more_train_files: list[str] = field(default_factory=list)  # mixed into what is trained on
    token_column: str | None = (
        None  # of tokens: numbers in files, from 0 (null: 0 and the last), names on the hub
    )
    tag_column: str | None = None  # `none` where a file has no tags
    scheme: str | None = None  # of the tags that are learnt: BIO | BIOES; null: the training file's
    too_long: str = "split"  # sentences of tokens: split | cut
    max_length: int | None = None  # of spans: tokens of a window where data.max_length is null
    stride: int = 128  # of spans: tokens from the start of a window to that of the next
    max_question_length: int = 64
    max_answer_length: int = 30
    n_best: int = 20  # answers that are kept of each question
    answer_metric: str = "squad"  # whose script: squad | squad_v2 | cmrc
    null_threshold: float | None = None  # no answer where that scores better by more; null: always answer
    skip_broken: bool = False  # leave out rows with a wrong number of columns instead of refusing the file
    metrics: list[str] = field(default_factory=list)
    positions: str = "all"  # of benchmark=interchange: all | masked
    interchange: SwapConfig = field(default_factory=SwapConfig)  # with a mapping: compared with the first
    batches: list[int] = field(default_factory=list)  # of benchmark=efficiency: sequences of a pass,
    lengths: list[int] = field(default_factory=list)  # and tokens of each
    depth: int = 2  # of the tree of parameters
    monitor: str = MISSING
    mode: str = MISSING  # min | max


@dataclass
class SweepConfig:
    """Runs of a sweep that are put into one table, in place of models that are judged."""

    folder: str | None = None  # a multirun's; `sweep=<folder>` is short for it
    metrics: list[str] | None = None  # of summary.json, to be shown; null: what was validated or tested


@dataclass
class EvaluateConfig:
    """The whole of `evaluate.py`."""

    model: Any = MISSING  # folder or hub id, or a list of them; the first is the reference
    export: Any = None  # onnx | int8, or both: forms that are judged beside each model (not the reference)
    names: list[str] | None = None  # what the rows are called; null: by the folders
    sweep: SweepConfig = field(default_factory=SweepConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compile: bool = False
    seed: int = 42


def teachers_of(config: Any) -> list[str]:
    """The teachers of a training configuration, or of its tasks, the first one first; empty where none is named."""
    if config.tasks:
        return [str(task.teacher) for task in config.tasks]
    if config.teacher.models:
        return [str(name) for name in config.teacher.models]
    return [config.teacher.model] if config.teacher.model else []


def config_folder() -> Path:
    """The folder of configs: `conf/` of a checkout, or the copy inside an installed wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def register() -> None:
    """Put the schemas into Hydra's config store, in a group of their own; stages' references resolve to themselves."""
    # A recipe that is shown, or composed, keeps them: `stages.plan` puts folders in their place.
    OmegaConf.register_new_resolver("stage", lambda name: f"${{stage:{name}}}", replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=TrainConfig)
    store.store(group="schema", name="evaluate", node=EvaluateConfig)
