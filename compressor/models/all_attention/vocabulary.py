"""Embeddings and softmax of a vocabulary sorted by frequency: rarer words get narrower vectors.

One set of tables serves both. Source: Grave et al. 2017 ("Efficient softmax approximation for GPUs"); Baevski and
Auli 2019 ("Adaptive Input Representations for Neural Language Modeling"). `torch.nn.AdaptiveLogSoftmaxWithLoss`
has neither a projection of the frequent words nor tables that can be shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import UserError
from compressor.models.all_attention.config import DecoderConfig
from compressor.models.language_output import IGNORED_LABEL


class Embeddings(nn.Module):
    """A table a cluster and, where there are several, a projection of each to the hidden width."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.clusters = config.clusters
        self.word_dropout = config.word_dropout
        self.tables = nn.ModuleList(nn.Embedding(high - low, width) for low, high, width in self.clusters)
        adaptive = len(self.clusters) > 1
        self.projections = nn.ModuleList(
            nn.Linear(width, config.hidden_size, bias=False) if adaptive else nn.Identity()
            for *_, width in self.clusters
        )

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) to (batch, length, hidden); in training some words are dropped wherever they stand."""
        found = None
        for (low, high, _), table, project in zip(self.clusters, self.tables, self.projections, strict=True):
            place = (ids - low).clamp(0, high - low - 1)
            made = table(place)
            if self.training and self.word_dropout:
                kept = functional.dropout(made.new_ones(high - low), self.word_dropout)
                made = made * kept[place].unsqueeze(-1)
            made = project(made)
            # Every cluster for every token, and the right one chosen: no branch, no sizes that depend on the data.
            found = made if found is None else torch.where((ids >= low).unsqueeze(-1), made, found)
        assert found is not None
        return found


class TiedSoftmax(nn.Module):
    """P(word) = P(cluster) P(word | cluster) by the embeddings' own tables; of one cluster, the plain softmax.

    The frequent words have a projection of their own here, the others read theirs of the embeddings backwards.
    Scores are fp32, also where a CPU's autocast multiplies in bf16.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.clusters = config.clusters
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        if len(self.clusters) > 1:
            self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.rarer = nn.Linear(config.hidden_size, len(self.clusters) - 1)

    def forward(self, states: Tensor, embeddings: Embeddings) -> Tensor:
        """Logits (tokens, vocabulary) for `states` (tokens, hidden); of several clusters they are normalised."""
        first = self._first(states, embeddings)
        if len(self.clusters) == 1:
            return first
        chances = first.log_softmax(dim=1)
        frequent = self.clusters[0][1]
        found = [chances[:, :frequent]]
        for cluster in range(1, len(self.clusters)):
            inside = self._words(cluster, states, embeddings).log_softmax(dim=1)
            found.append(chances[:, frequent + cluster - 1].unsqueeze(1) + inside)
        return torch.cat(found, dim=1)

    def losses(self, states: Tensor, labels: Tensor, embeddings: Embeddings) -> Tensor:
        """Negative log-likelihood in nats of `labels` (tokens,) given `states` (tokens, hidden); 0 where ignored.

        Words of a cluster are scored only for the tokens whose label is one of them.
        """
        real = labels != IGNORED_LABEL
        words = labels.clamp(min=0)
        chances = self._first(states, embeddings).log_softmax(dim=1)
        frequent = self.clusters[0][1]
        entry = words.clamp(max=frequent)
        for low, *_ in self.clusters[2:]:
            entry = entry + (words >= low)
        found = -chances.gather(1, entry.unsqueeze(1)).squeeze(1)
        for cluster, (low, high, _) in enumerate(self.clusters[1:], start=1):
            rows = ((words >= low) & (words < high)).nonzero().squeeze(1)
            inside = self._words(cluster, states.index_select(0, rows), embeddings).log_softmax(dim=1)
            places = words.index_select(0, rows) - low
            loss = -inside.gather(1, places.unsqueeze(1)).squeeze(1)
            found = found + torch.zeros_like(found).scatter(0, rows, loss)
        return torch.where(real, found, torch.zeros_like(found))

    def _first(self, states: Tensor, embeddings: Embeddings) -> Tensor:
        """Scores of the frequent words and of the other clusters, (tokens, frequent + clusters - 1)."""
        if len(self.clusters) == 1:
            return functional.linear(states, _table(embeddings, 0), self.bias).float()
        frequent = self.bias[: self.clusters[0][1]]
        scores = functional.linear(self.projection(states), _table(embeddings, 0), frequent)
        return torch.cat([scores, self.rarer(states)], dim=1).float()

    def _words(self, cluster: int, states: Tensor, embeddings: Embeddings) -> Tensor:
        low, high, _ = self.clusters[cluster]
        projection = embeddings.projections[cluster].weight
        assert isinstance(projection, Tensor)
        return functional.linear(
            states @ projection, _table(embeddings, cluster), self.bias[low:high]
        ).float()


def _table(embeddings: Embeddings, cluster: int) -> Tensor:
    weight = embeddings.tables[cluster].weight
    assert isinstance(weight, Tensor)
    return weight


def check_sorted(counts: Sequence[int], cutoffs: Sequence[int]) -> None:
    """That the words of every cluster are rarer than those of the one before. `counts`: how often each id occurs.

    Raises:
        UserError: the ids are not sorted by frequency.
    """
    bounds = [0, *cutoffs, len(counts)]
    means = [sum(counts[low:high]) / (high - low) for low, high in pairwise(bounds)]
    if any(rare > frequent for frequent, rare in pairwise(means)):
        raise UserError(
            "adaptive embeddings need a vocabulary sorted by frequency, the most frequent word first, and this one "
            "is not: train one, or leave model.config.cutoffs out"
        )
