"""SQuAD's JSON format, versions 1.1 and 2.0: articles, paragraphs, questions."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from compressor.errors import UserError
from compressor.tasks import json_text
from compressor.tasks.tables import Table


def flatten(text: str, source: str) -> Table:
    """One row a question: id, title, context, question, answers {text: [...], answer_start: [...]}.

    An impossible question (version 2) has no answers. Raises UserError naming what is not as it should be.
    """
    content = json_text.parse(text, source)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise UserError(f"{source} is not in SQuAD's format: no list of articles under 'data'")
    frame = pd.DataFrame(_rows(content["data"], source), dtype=object)
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="question")
    return Table(frame, source)


def _rows(articles: list[Any], source: str) -> Iterator[dict[str, Any]]:
    place = ""
    try:
        for a, article in enumerate(articles):
            place = f"data[{a}]"
            for p, paragraph in enumerate(article["paragraphs"]):
                place = f"data[{a}].paragraphs[{p}]"
                context = paragraph["context"]
                for q, question in enumerate(paragraph["qas"]):
                    place = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    answers = [] if question.get("is_impossible") else question["answers"]
                    yield {
                        "id": question["id"],
                        "title": article.get("title", ""),
                        "context": context,
                        "question": question["question"],
                        "answers": {
                            key: [answer[key] for answer in answers] for key in ("text", "answer_start")
                        },
                    }
    except KeyError as error:
        raise UserError(f"{source} is not in SQuAD's format: {place} has no {error}") from None
    except (TypeError, AttributeError):
        raise UserError(f"{source} is not in SQuAD's format: {place} is not an object") from None
