"""Reads JSON; what is wrong with it ends in one clear UserError."""

import json
import re
from typing import Any

from compressor.errors import UserError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(text: str, source: str, line: int = 1, hint: str = "") -> Any:
    """The value in `text`, which begins on line `line` of `source`. Raises UserError naming the line."""
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):  # an escaped character outside the basic plane; both halves must be there
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(f"{source} line {line + error.lineno - 1}: not JSON ({error.msg}){hint}") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{source} line {line}: half of a character (a lone \\ud... escape) is no text"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{source} line {line}: too long a number or too deep a nesting for data") from None
    return value
