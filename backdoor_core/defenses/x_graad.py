"""X-GRAAD: a token that draws both attention and gradient is taken for a trigger, and spoilt."""

from __future__ import annotations

import string
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from backdoor_core.defense import CleanDataDefense, Decision, Guard, View
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.rng import generator
from backdoor_core.space import setting
from backdoor_core.stop_words import STOP_WORDS
from backdoor_core.text import token_limit
from backdoor_core.token_text import bare_words, word_scores, words_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from backdoor_core.corpus import Corpus
    from backdoor_core.salience import Salience
    from backdoor_core.text import Encoded
    from backdoor_core.victim import Victim

Repair = Literal["delete", "perturb", "mask"]
Received = Literal["mean", "sum"]
SHORT = 2
"""Tokens of so many characters are deleted where longer ones are perturbed."""


@dataclass(frozen=True, kw_only=True)
class _XGraadGuard:
    victim: Victim
    model: PreTrainedModel
    """A copy of the victim's model that gives its attention."""
    words: tuple[str, ...]
    """The vocabulary without the tokenizer's markers."""
    kept: np.ndarray
    """Whether each token of the vocabulary can be the top token."""
    token_repair: Repair
    received: Received
    seed: int

    def observe(self, corpus: Corpus, split: str | None = None) -> pa.Table:
        """The victim's columns, and those of the top token.

        `score`: the row's score, 0 where every token is left out; `top_token`: the token, `top_word`: the word of
        the text that it stands in, null where there is none; `word_scores`: of each word of the text, null where none
        of its tokens counts; `repaired_logits` and `repaired_prediction`: the victim's answer once the top token is
        repaired.
        """
        from backdoor_core.salience import salience

        encoded = self.victim.encoder(corpus, split)
        logits = self.victim.logits_of(encoded)
        prediction = logits.argmax(axis=1)
        found = salience(self.model, encoded, prediction, self.victim.precision)
        scores = token_scores(encoded, found, self.kept, self.received)
        score, place = top_tokens(encoded, scores)
        rows = np.flatnonzero(place >= 0)
        token = np.full(len(encoded), -1, np.int64)
        token[rows] = encoded.ids[encoded.offsets[rows] + place[rows]]
        repaired = logits.copy()
        repaired[rows] = self.victim.logits_of(self.spoilt(corpus, encoded, token).take(rows))
        names = self.victim.tokenizer.convert_ids_to_tokens(token[rows].tolist())
        named = dict(zip(rows.tolist(), names, strict=True))
        return pa.table(
            {
                "logits": pa.array(list(logits), pa.list_(pa.float32())),
                "prediction": pa.array(prediction, pa.int64()),
                "score": pa.array(score, pa.float32()),
                "top_token": pa.array([named.get(i) for i in range(len(token))], pa.string()),
                "top_word": pa.array(words_at(self.victim.encoder, corpus, place), pa.string()),
                "word_scores": pa.array(
                    word_scores(self.victim.encoder, corpus, encoded.lengths, scores),
                    pa.list_(pa.float32()),
                ),
                "repaired_logits": pa.array(list(repaired), pa.list_(pa.float32())),
                "repaired_prediction": pa.array(repaired.argmax(axis=1), pa.int64()),
            }
        )

    def spoilt(self, corpus: Corpus, encoded: Encoded, token: np.ndarray) -> Encoded:
        """The rows with every occurrence of their top token repaired; `token` -1: the row as it is."""
        return replaced(encoded, token, self._replacements(corpus, encoded, token))

    def _replacements(
        self, corpus: Corpus, encoded: Encoded, token: np.ndarray
    ) -> dict[int, list[int]]:
        """What each row's top token becomes, by row: token ids, perhaps none."""
        tokenizer, rows = self.victim.tokenizer, np.flatnonzero(token >= 0).tolist()
        if self.token_repair == "mask":
            return {row: [int(tokenizer.mask_token_id or 0)] for row in rows}
        if self.token_repair == "delete":
            return {row: [] for row in rows}
        drawn: dict[int, str] = {}
        for row in rows:
            word = self.words[token[row]]
            if len(word) > SHORT:
                text, pair = corpus.texts[row], corpus.pairs[row]
                rng = generator(self.seed, "x_graad", text, pair or "")
                drawn[row] = perturbed(word, rng)
        ids: dict[int, list[int]] = {row: [] for row in rows}
        if not drawn:
            return ids
        # The space makes it a word of its own for tokenizers that see one.
        texts = [f" {word}" for word in drawn.values()]
        pieces = tokenizer(texts, add_special_tokens=False)["input_ids"]
        limit = token_limit(tokenizer, self.victim.encoder.max_tokens)
        for row, new in zip(drawn, pieces, strict=True):
            old = encoded.row(row)
            longer = len(old) + int((old == token[row]).sum()) * (len(new) - 1)
            ids[row] = list(new) if longer <= limit else list(new)[:1]
        return ids


class XGraad(CleanDataDefense):
    """X-GRAAD: repairs the top token of texts in which one token draws unusual attention and gradient.

    Source: Das, Chen and Bhuyan, arXiv 2510.04347. For each token that is not special, a stop word or punctuation:
    attention received (mean over layers and heads) minus its mean over these tokens, times the norm of the
    predicted logit's gradient with respect to the word embedding over its mean; the row's score is the maximum.
    Rows that score above a percentile of the clean rows' scores get the answer that the victim gives once every
    occurrence of the top token is perturbed (1 or 2 letters inserted or in place of one), or deleted if short.

    Departures: padding is no query (the release averages over it, so that a score depends on the batch); the
    threshold comes from the clean split (the release takes it from the test set); letters are drawn from the seed
    and the text; the word list is our own. A perturbed token becomes a word of its own, whether it began a word
    or continued one; where the row would outgrow the token limit, only the word's first piece is put in.
    """

    percentile: float | None = setting(
        95.0, ge=0, le=100, low=50.0, high=99.5, stronger="low", hooks=("decide",),
        description="of the clean rows' scores: rows above it are repaired (null: none is); "
        "the paper takes 95, and 65 for ALBERT",
    )  # fmt: skip
    token_repair: Repair = setting(
        "perturb",
        choices=("perturb", "delete", "mask"),
        description="what becomes of the top token (perturb: short ones are deleted)",
    )
    received: Received = setting(
        "mean",
        choices=("mean", "sum"),
        description="attention over query positions: the mean, as the release, or the column sum",
    )

    @property
    def calibrates(self) -> bool:
        """The threshold is a percentile of the clean rows' scores."""
        return True

    def screen(self, view: View) -> Guard:
        """A guard that scores every text and answers it twice: as it is, and repaired."""
        from backdoor_core.salience import attentive

        tokenizer = view.victim.tokenizer
        if self.token_repair == "mask" and tokenizer.mask_token_id is None:
            raise ConfigError(
                "x_graad: this tokenizer has no mask token; take token_repair: delete"
            )
        model = attentive(view.victim.model)
        model.requires_grad_(False)
        words = bare_words(tokenizer)
        return _XGraadGuard(
            victim=view.victim,
            model=model,
            words=words,
            kept=suspects(words, tokenizer.all_special_ids),
            token_repair=self.token_repair,
            received=self.received,
            seed=view.seed,
        )

    def decide(self, observation: pa.Table, calibration: pa.Table | None) -> Decision:
        """The repaired prediction of rows that score above the clean rows' percentile."""
        prediction = observation["prediction"].to_numpy()
        flagged = np.zeros(len(prediction), bool)
        if self.percentile is not None:
            if calibration is None or not calibration.num_rows:
                raise DataError("x_graad: no clean rows to take the percentile of")
            threshold = np.percentile(calibration["score"].to_numpy(), self.percentile)
            flagged = observation["score"].to_numpy() > threshold
        labels = np.where(flagged, observation["repaired_prediction"].to_numpy(), prediction)
        return Decision(labels=labels, altered=labels != prediction)


def token_scores(
    encoded: Encoded, found: Salience, kept: np.ndarray, received: Received
) -> np.ndarray:
    """The score of each token, float64, shape (tokens,); NaN for those whose id `kept` leaves out.

    The only token of a row that counts scores 0, since nothing stands out in it.
    """
    rows, lengths = len(encoded), encoded.lengths
    row = np.repeat(np.arange(rows), lengths)
    counts = kept[encoded.ids]
    attention, gradient = found.received.astype(np.float64), found.gradient.astype(np.float64)
    if received == "sum":
        attention *= lengths[row]
    n = np.maximum(np.bincount(row, counts, rows), 1)
    above = attention - (np.bincount(row, counts * attention, rows) / n)[row]
    mean = (np.bincount(row, counts * gradient, rows) / n)[row]
    ratio = np.divide(gradient, mean, out=np.zeros_like(gradient), where=mean > 0)
    return np.where(counts, above * ratio, np.nan)


def top_tokens(encoded: Encoded, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's score (float32) and the place of its top token in it (int64, -1 without any), shape (rows,).

    `scores`: as `token_scores` gives them. Ties go to the first.
    """
    rows = len(encoded)
    row = np.repeat(np.arange(rows), encoded.lengths)
    counts = ~np.isnan(scores)
    first = np.lexsort((np.where(counts, -scores, np.inf), row))
    score, place = np.zeros(rows, np.float32), np.full(rows, -1, np.int64)
    some = np.flatnonzero(np.bincount(row, counts, rows))
    best = first[encoded.offsets[some]]
    score[some], place[some] = scores[best], best - encoded.offsets[some]
    return score, place


def replaced(encoded: Encoded, token: np.ndarray, new: dict[int, list[int]]) -> Encoded:
    """Every occurrence of `token[i]` in row i becomes the ids `new[i]`; rows with token -1 stay."""
    row = np.repeat(np.arange(len(encoded)), encoded.lengths)
    hit = encoded.ids == token[row]
    sizes = np.array([len(new.get(i, ())) for i in range(len(encoded))], np.int64)
    counts = np.where(hit, sizes[row], 1)
    ids = np.repeat(encoded.ids, counts)
    ids[np.repeat(hit, counts)] = [i for at in row[hit].tolist() for i in new[at]]
    lengths = np.bincount(row, counts, len(encoded)).astype(np.int64)
    return replace(
        encoded,
        ids=ids,
        types=np.repeat(encoded.types, counts),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )


def perturbed(word: str, rng: np.random.Generator) -> str:
    """`word` (two characters or more) with 1 or 2 letters inserted inside, or in place of one character."""
    cut = 0 if rng.random() < 0.5 else 1
    place = int(rng.integers(1 - cut, len(word)))
    letters = [c for c in string.ascii_lowercase if c != word[place].lower()]
    drawn = "".join(rng.choice(letters, int(rng.integers(1, 3))))
    return word[:place] + drawn + word[place + cut :]


def suspects(words: tuple[str, ...], special: list[int]) -> np.ndarray:
    """Which tokens can be a trigger: none that is special, a stop word, punctuation or empty. Bool, shape (words,)."""
    bare = (word.lower().strip(_marks(word)) for word in words)
    kept = np.array([bool(word) and word not in STOP_WORDS for word in bare], bool)
    kept[special] = False
    return kept


def _marks(word: str) -> str:
    """The punctuation in `word`, and whitespace. Symbols such as ≈ are none: some attacks use them."""
    return " \t\n" + "".join(
        c for c in word if c in string.punctuation or unicodedata.category(c)[0] in "PZ"
    )
