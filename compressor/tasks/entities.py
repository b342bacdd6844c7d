"""Entities in tag sequences, as the CoNLL evaluation counts them."""

import re
from collections.abc import Sequence

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])-(.+)")

Entity = tuple[str, int, int]  # kind, first word, word after the last


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence, for IOB1, IOB2, IOBES and BILOU tags alike.

    An entity also begins where an inside tag follows nothing, or another kind. A tag without a prefix (`PER`)
    counts as an inside tag: a run of equal ones is one entity.
    """
    found: set[Entity] = set()
    kind, start = "", 0  # of the entity that is open; no kind: none is
    for position, tag in enumerate([*tags, OUTSIDE]):
        match = _TAG.fullmatch(tag)
        prefix, tag_kind = match.groups() if match else ("I", "" if tag == OUTSIDE else tag)
        continues = bool(kind) and tag_kind == kind and prefix in "IEL"
        if kind and not continues:
            found.add((kind, start, position))
            kind = ""
        if tag_kind and not continues:
            kind, start = tag_kind, position
        if kind and prefix in "ESLU":
            found.add((kind, start, position + 1))
            kind = ""
    return found
