"""What all recipe keys share: unknown keys and wrong types are errors, values never change after loading."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from compressor.errors import UserError

Progress = Callable[[str, float], None]
"""Called as work goes on with what is being done and the share of it that is finished (0 to 1)."""


class Keys(BaseModel):
    """Base of every block of a recipe. Strict: "2" is no number, `true` is no integer."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_is_allowed(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            details = [cls._detail(e) for e in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, details) from None

    @classmethod
    def allowed_keys(cls) -> list[str]:
        """The keys as they are written in a recipe."""
        return [f.alias or name for name, f in cls.model_fields.items() if not f.exclude]

    @classmethod
    def _detail(cls, error: Any) -> InitErrorDetails:
        kind, message = error["type"], error["msg"]
        if kind == "extra_forbidden" and len(error["loc"]) == 1:
            allowed = cls.allowed_keys()
            message = f"unknown key{suggest(error['loc'][0], allowed)} (allowed: {', '.join(allowed)})"
        custom = PydanticCustomError(kind, message)
        return InitErrorDetails(type=custom, loc=error["loc"], input=error["input"])


def numbers_text(numbers: Sequence[int]) -> str:
    """`0 to 5`, or `0, 2 and 5` where some are missing."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) == last - first + 1:
        return f"{first} to {last}"
    return f"{', '.join(map(str, numbers[:-1]))} and {last}"


def suggest(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `choices`, or an empty string when nothing is near."""
    near = get_close_matches(str(word), list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def is_path(text: str) -> bool:
    """Whether a string names a folder: it starts with `./`, `../`, `/` or `~` (or is `.` or `..`)."""
    return text in (".", "..") or text.startswith(("./", "../", "/", "~"))


def expand(text: str) -> Path:
    """A path with `~` (or `~user`, where there is such a user) replaced by the home folder."""
    return Path(os.path.expanduser(text))


def refuse_namesake(name: str, what: str) -> None:
    """Raise UserError where a hub id is also the name of a local folder: libraries would open that one."""
    if not is_path(name) and Path(name).is_dir():
        raise UserError(f"'{name}' is a folder here: write ./{name} if it is the {what}; else work elsewhere")


def _id_or_path(text: str) -> str:
    if not is_path(text) and not HUB_ID.match(text):
        raise ValueError(
            f"'{text}' is neither a hub id (name or owner/name) nor a folder (which starts with ./ ../ / or ~)"
        )
    return text


IdOrPath = Annotated[str, AfterValidator(_id_or_path)]


Share = Annotated[float, Field(ge=0, lt=1)] | Annotated[int, Field(ge=0)]
"""A fraction of the stage's optimiser steps, or (a whole number) steps."""


def steps_of(value: float | int, total: int) -> int:
    """Optimiser steps that a `Share` stands for in a stage of `total` steps."""
    return value if isinstance(value, int) else round(value * total)


def steps_in(keys: TrainingKeys, examples: int) -> int:
    """Optimiser steps of a training with these keys on so many examples."""
    return max(1, math.ceil(keys.epochs * math.ceil(examples / keys.batch_size)))


class TeacherModel(Keys):
    """A teacher from outside the run: a hub id or folder."""

    model: IdOrPath


class Distill(Keys):
    """Distillation: `alpha` x KL to the teacher's logits at `temperature` + the rest x the labels' loss.

    `layers` is the weight of a third term, the distance of hidden states from the teacher's: of the layers that
    `match` says (see `compressor.training.layers`). The rest is 1 - alpha - layers.
    """

    teacher: str | TeacherModel
    temperature: float = Field(default=2.0, gt=0)
    alpha: float = Field(default=0.9, ge=0, le=1)
    layers: float = Field(default=0.0, ge=0, le=1)
    match: Literal["same", "nearest", "ordered", "random", "windows"] = "ordered"

    @model_validator(mode="after")
    def _shares(self) -> Distill:
        if self.alpha + self.layers > 1 + 1e-9:
            raise ValueError(
                f"alpha {self.alpha:g} and layers {self.layers:g} are shares of the loss: together at most 1"
            )
        if not self.layers and "match" in self.model_fields_set:
            raise ValueError("`match` says which hidden states are compared: give `layers` their weight too")
        return self

    @property
    def rest(self) -> float:
        """The weight of the labels' loss."""
        return max(0.0, 1 - self.alpha - self.layers)


class TrainingKeys(Keys):
    """What every stage that trains understands.

    `batch_size` counts examples per optimiser step. The learning rate falls to 0, or to `final_rate` of it (cosine).
    `freeze_embeddings` and `freeze_layers` (numbers from 0, of the original model) leave these as they are. With
    `evaluate_every` the metric on the selection split is taken so often (a share of the steps, or steps) and the best
    state kept; without it the last one.
    """

    epochs: Annotated[float, Field(gt=0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    batch_size: Annotated[int, Field(gt=0)] = 16
    gradient_accumulation: Annotated[int, Field(gt=0)] = 1
    warmup: Share = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    # Left out of what identifies a training where they say nothing: trainings that were done without them stay done.
    final_rate: Annotated[float, Field(ge=0, lt=1, exclude_if=lambda rate: rate == 0)] = 0.0
    optimizer: Annotated[Literal["adamw", "lamb"], Field(exclude_if=lambda name: name == "adamw")] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    freeze_embeddings: bool = False
    freeze_layers: list[Annotated[int, Field(ge=0)]] = []
    evaluate_every: Share = 0.0
    distill: Distill | None = None

    @model_validator(mode="after")
    def _of_the_schedule(self) -> Self:
        if self.final_rate and self.schedule != "cosine":
            raise ValueError("`final_rate` is for schedule cosine")
        return self


def training_keys(keys: TrainingKeys) -> TrainingKeys:
    """Only the training keys of a stage that has others too."""
    return TrainingKeys(**{name: getattr(keys, name) for name in TrainingKeys.model_fields})


def json_of(keys: BaseModel) -> dict[str, Any]:
    """A block of keys as plain data, for hashes and files."""
    return keys.model_dump(mode="json")
