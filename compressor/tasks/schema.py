"""The keys of a recipe's `task:` block. Cheap to import: `validate` and `plan` need nothing else."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compressor.schema import IdOrPath, Keys, suggest

TaskType = Literal[
    "text-classification",
    "token-classification",
    "question-answering",
    "feature-extraction",
    "language-modeling",
    "summarization",
]
Format = Literal["csv", "tsv", "jsonl", "parquet", "squad", "text"]
Column = str | int

MAX_LENGTH = {
    "text-classification": 128,
    "token-classification": 128,
    "question-answering": 384,
    "feature-extraction": 128,
    "language-modeling": 128,
    "summarization": 512,
}
STRIDE = 128
COLUMNS = {
    "text-classification": ("text", "pair", "label"),
    "token-classification": ("tokens", "tags"),
    "question-answering": ("question", "context", "answers", "id"),
    "feature-extraction": ("text", "pair", "score"),
    "language-modeling": ("text",),
    "summarization": ("text", "summary"),
}
METRICS = {  # the first is the default; regression's are below
    "text-classification": ("accuracy", "f1", "matthews"),
    "token-classification": ("f1", "accuracy"),
    "question-answering": ("f1", "exact_match"),
    "feature-extraction": ("spearman", "cosine"),
    "language-modeling": ("perplexity", "bits_per_character", "bits_per_byte", "word_perplexity"),
    "summarization": ("rougeL", "rouge1", "rouge2", "rougeLsum"),
}
PARTS: dict[str, tuple[str, ...]] = {
    "language-modeling": ("segment", "prompt", "step"),
    "summarization": ("generation", "encoder", "first_token", "next_token"),
}
"""What is timed of models that do a task in several parts, the most telling one first; of others `forward`."""
UNLABELLED = ("feature-extraction",)
"""Tasks that are learned from a teacher alone."""
STREAMED = ("language-modeling",)
"""Tasks whose data are one running text."""
REGRESSION_METRICS = ("pearson", "spearman")
FORMATS = {  # cells of a csv or tsv file are plain text: they cannot hold lists of tokens or of answers
    "text-classification": ("csv", "tsv", "jsonl", "parquet"),
    "token-classification": ("jsonl", "parquet"),
    "question-answering": ("squad", "jsonl", "parquet"),
    "feature-extraction": ("csv", "tsv", "jsonl", "parquet"),
    "language-modeling": ("text", "jsonl", "parquet"),
    "summarization": ("jsonl", "parquet", "csv", "tsv"),
}
BUILTIN = ("text-classification", "feature-extraction")
"""Tasks that the builtin data set is for."""
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def _no_file(value: str) -> str:
    if Path(value).suffix.lower() in {*SUFFIXES, ".json", ".txt"}:
        raise ValueError(f"'{value}' is a file, not a hub id; give files as `train:` and `validation:`")
    return value


DataId = Annotated[IdOrPath, AfterValidator(_no_file)]


class DatasetFiles(Keys):
    """Local files, one a split; paths are relative to the current directory."""

    train: str
    validation: str
    format: Format | None = Field(None, description="by default what the file's name ends in says")
    header: bool = Field(
        True, description="false: the first line is data, columns are given by number from 0"
    )
    quoting: bool | None = Field(None, description='are "quotes" syntax? By default yes in csv, no in tsv')
    encoding: str = "utf-8-sig"

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "a".encode(value)
        except (LookupError, UnicodeError):  # also of codecs that are not about text, such as hex
            raise ValueError(f"'{value}' is no encoding Python knows; examples: utf-8-sig, cp1252") from None
        return value

    @model_validator(mode="after")
    def _only_where_it_applies(self) -> "DatasetFiles":
        if self.format in ("jsonl", "parquet", "squad", "text"):
            for key, is_set in (("header", not self.header), ("quoting", self.quoting is not None)):
                if is_set:
                    raise ValueError(f"'{key}' is for csv and tsv files; the format here is {self.format}")
        return self


class DatasetHub(Keys):
    """A data set of the Hugging Face hub, or a folder of data files (starts with ./ ../ / or ~)."""

    hub: DataId
    config: str | None = None
    revision: str | None = Field(None, description="a branch, tag or commit; a commit makes runs repeatable")


class DatasetBuiltin(Keys):
    """A data set that is built on the spot, without a network."""

    builtin: Literal["docstrings"]


def _dataset_kind(value: Any) -> str:
    if isinstance(value, str):
        return "hub id"
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((f"{kind} data" for kind in ("hub", "builtin") if kind in keys), "files")


Dataset = Annotated[
    Annotated[DataId, Tag("hub id")]
    | Annotated[DatasetHub, Tag("hub data")]
    | Annotated[DatasetBuiltin, Tag("builtin data")]
    | Annotated[DatasetFiles, Tag("files")],
    Discriminator(_dataset_kind),
]


class Selection(Keys):
    """The part of train held out for every choice made during the run; nothing is trained on it."""

    fraction: float = Field(0.1, gt=0, lt=1)


class Limit(Keys):
    """At most so many examples of a split; train before selection is taken out of it.

    They are drawn at random; of a running text (language-modeling) they are its first lines.
    """

    train: PositiveInt | None = None
    validation: PositiveInt | None = None


class GenerationKeys(Keys):
    """How text is written; lengths in tokens. A whole generation is timed greedily at `max_tokens`."""

    max_tokens: PositiveInt = 60
    min_tokens: int = Field(0, ge=0)
    beams: PositiveInt = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = Field(0, ge=0, description="no n-gram of that length twice; 0: no such rule")

    @model_validator(mode="after")
    def _lengths_fit(self) -> "GenerationKeys":
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        return self


class TaskKeys(Keys):
    """What is learned, from which data, and how it is scored."""

    type: TaskType
    dataset: Dataset
    columns: dict[str, Column] = Field({}, description="role: column name (or its number, without a header)")
    selection: Selection = Selection()
    max_length: int = Field(
        128,
        ge=8,
        description="in tokens; 384 for question-answering; of language-modeling what is read at a time",
    )
    stride: PositiveInt | None = Field(
        None, description="tokens two windows of a context share; 128, or a third of max_length if less"
    )
    limit: Limit = Limit()
    metric: str | None = Field(None, description="the primary metric, the one gates judge")
    labels: list[str] | None = Field(None, min_length=2, description="all labels, in the head's order")
    regression: bool | None = Field(None, description="by default labels with a decimal point mean yes")
    pooling: Literal["mean", "cls"] | None = Field(
        None, description="the vector of a text: its tokens' mean (the default) or its first token's"
    )
    normalize: bool | None = Field(None, description="vectors of length 1; by default yes")
    max_target_length: PositiveInt | None = Field(
        None, description="of summaries that are learned; by default 128"
    )
    prefix: str | None = Field(None, description="put before every text: T5 was trained with 'summarize: '")
    generation: GenerationKeys | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_type(cls, keys: Any) -> Any:
        """Fill in what depends on the type, so that a stored recipe shows the values that were used."""
        kind = keys.get("type") if isinstance(keys, dict) else None
        if not isinstance(kind, str) or kind not in MAX_LENGTH:
            return keys
        keys = {"max_length": MAX_LENGTH[kind], **keys}
        if (
            kind == "question-answering"
            and keys.get("stride") is None
            and isinstance(keys["max_length"], int)
        ):
            keys["stride"] = max(1, min(STRIDE, keys["max_length"] // 3))
        if kind == "feature-extraction":
            usual = {"pooling": "mean", "normalize": True}
            keys |= {key: value for key, value in usual.items() if keys.get(key) is None}
        if kind == "summarization":
            written: dict[str, Any] = {"max_target_length": 128, "generation": {}}
            keys |= {key: value for key, value in written.items() if keys.get(key) is None}
        return keys

    @property
    def tokens(self) -> int:
        """How many tokens a model writes when it is timed."""
        return self.generation.max_tokens if self.generation else 0

    @field_validator("dataset")
    @classmethod
    def _files_fit_the_type(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("type")
        if isinstance(value, DatasetBuiltin) and kind not in (None, *BUILTIN):
            raise ValueError(f"the builtin data set is for {' and '.join(BUILTIN)}, not for {kind}")
        if isinstance(value, DatasetFiles) and kind:
            for path in (value.train, value.validation):
                file_format(kind, value, path)
        return value

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: dict[str, Column], info: ValidationInfo) -> dict[str, Column]:
        roles = COLUMNS.get(info.data.get("type", ""), ())
        for role in value if roles else ():
            if role not in roles:
                raise ValueError(f"unknown column '{role}'{suggest(role, roles)} (known: {', '.join(roles)})")
        return value

    @field_validator("stride")
    @classmethod
    def _stride_leaves_room(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("type", "question-answering") != "question-answering":
            raise ValueError("stride is for question-answering: other tasks cut what is too long")
        if value is not None and value > info.data.get("max_length", value * 2) // 2:
            raise ValueError(f"must be at most half of max_length ({info.data['max_length']}), not {value}")
        return value

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("type", "")
        known = METRICS.get(kind, ()) + (REGRESSION_METRICS if kind == "text-classification" else ())
        if value is not None and known and value not in known:
            raise ValueError(
                f"'{value}' is no metric of {kind}{suggest(value, known)} (known: {', '.join(known)})"
            )
        return value

    @field_validator("labels")
    @classmethod
    def _labels_are_a_set(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if value is not None and (kind := info.data.get("type")) in (
            "question-answering",
            "language-modeling",
            "summarization",
            *UNLABELLED,
        ):
            raise ValueError(f"{kind} has no labels")
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"'{next(v for v in value if value.count(v) > 1)}' is there twice")
        return value

    @field_validator("regression")
    @classmethod
    def _regression_agrees(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value is None:
            return value
        if info.data.get("type", "text-classification") != "text-classification":
            raise ValueError("regression is for text-classification")
        if value and info.data.get("labels"):
            raise ValueError("regression has no labels: remove task.labels")
        metric = info.data.get("metric")
        if metric is not None and value != (metric in REGRESSION_METRICS):
            raise ValueError(f"{metric} is no metric of {'regression' if value else 'classification'}")
        return value

    @field_validator("pooling", "normalize")
    @classmethod
    def _of_embeddings(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("type", "feature-extraction") != "feature-extraction":
            raise ValueError(f"{info.field_name} is for feature-extraction")
        return value

    @field_validator("max_target_length", "prefix", "generation")
    @classmethod
    def _of_written_text(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("type", "summarization") != "summarization":
            raise ValueError(f"{info.field_name} is for summarization")
        return value

    @model_validator(mode="after")
    def _headerless_columns_are_numbers(self) -> "TaskKeys":
        if isinstance(self.dataset, DatasetFiles) and not self.dataset.header:
            numbered = {role for role, column in self.columns.items() if isinstance(column, int)}
            needed = {"text": 3} if self.type in UNLABELLED else {"text": 3, "label": 1}
            needed = {"text": 3, "summary": 1} if self.type == "summarization" else needed
            if numbered != set(self.columns) or not needed.keys() <= numbered:
                example = ", ".join(f"{role}: {number}" for role, number in needed.items())
                raise ValueError(
                    "columns: a file without a header needs its columns by number, counted from 0, "
                    f"for example {example}"
                )
        return self


def file_format(task_type: str, dataset: DatasetFiles, path: str) -> Format:
    """The format `path` is read in: the recipe's, else its suffix's. ValueError where none fits the task."""
    suffix = Path(path).suffix.lower()
    json_format: Format = "squad" if task_type == "question-answering" else "jsonl"
    plain: Format | None = "text" if task_type == "language-modeling" else None
    found = dataset.format or (json_format if suffix == ".json" else SUFFIXES.get(suffix, plain))
    known = FORMATS[task_type]
    if found is None:
        raise ValueError(
            f"cannot tell the format of '{path}' by its name; add `format:` ({', '.join(known)})"
        )
    if found not in known:
        raise ValueError(f"{task_type} cannot be read from {found} files (can be: {', '.join(known)})")
    return found
