"""Data, model head, post-processing and metrics of each task."""

from importlib import import_module
from typing import TYPE_CHECKING

from compressor.errors import UserError
from compressor.schema import suggest

if TYPE_CHECKING:
    from compressor.tasks.base import Task

_CLASSES = {
    "text-classification": ("text_classification", "TextClassification"),
    "token-classification": ("token_classification", "TokenClassification"),
    "question-answering": ("question_answering", "QuestionAnswering"),
    "feature-extraction": ("feature_extraction", "FeatureExtraction"),
    "language-modeling": ("language_modeling", "LanguageModeling"),
    "summarization": ("summarization", "Summarization"),
}


def get_task(task_type: str) -> "type[Task]":
    """The class of a task type, imported only now. `get_task(keys.type).load(keys, seed)` reads its data.

    Raises UserError for a type that is not known.
    """
    if task_type not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise UserError(f"unknown task '{task_type}'{suggest(task_type, _CLASSES)} (known: {known})")
    module, name = _CLASSES[task_type]
    task: type[Task] = getattr(import_module(f"{__name__}.{module}"), name)
    return task
