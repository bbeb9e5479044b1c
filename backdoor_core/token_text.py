"""The text that tokens stand for: of each token of a vocabulary, and of one token in its row."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from backdoor_core.corpus import Corpus
from backdoor_core.text import tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from backdoor_core.text import Encoder

MARKERS = ("##", "Ġ", "▁")
"""How tokenizers mark a piece that continues a word, or one that begins it."""


def bare_words(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text of each token of the vocabulary, by id, without the tokenizer's markers."""
    words = []
    for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))):
        text = str(tokenizer.convert_tokens_to_string([token or ""])).strip()
        for marker in MARKERS:
            text = text.removeprefix(marker)
        words.append(text)
    return tuple(words)


def words_at(encoder: Encoder, corpus: Corpus, places: np.ndarray) -> list[str | None]:
    """The word, between whitespace, of which the token at each row's place is a part (place -1: None).

    The rows are tokenised as `encoder` does. None for all where the tokenizer cannot tell where a token stands.
    """
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast or not len(corpus):
        return [None] * len(corpus)
    tokens = tokenized(tokenizer, corpus, encoder.max_tokens)
    words: list[str | None] = []
    for row, place in enumerate(places.tolist()):
        span = tokens.token_to_chars(row, place) if place >= 0 else None
        in_pair = span is not None and tokens.token_to_sequence(row, place) == 1
        text = (corpus.pairs[row] or "") if in_pair else corpus.texts[row]
        words.append(None if span is None else _word_around(text, span.start, span.end))
    return words


def word_scores(
    encoder: Encoder, corpus: Corpus, lengths: np.ndarray, scores: np.ndarray
) -> list[list[float | None]]:
    """The highest score of the tokens of each word, between whitespace, of each row: first the text's, then its pair's.

    `scores` has one score a token (float, shape (tokens,)), rows after rows of `lengths` tokens as `encoder` gives
    them; NaN is no score. None for words without any (cut off, say). Rows are empty where the tokenizer cannot tell
    where a token stands.
    """
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast or not len(corpus):
        return [[] for _ in range(len(corpus))]
    tokens = tokenized(tokenizer, corpus, encoder.max_tokens)
    start, found = 0, []
    for row, length in enumerate(lengths.tolist()):
        texts = (corpus.texts[row], corpus.pairs[row] or "")
        spans = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
        best: list[list[float | None]] = [[None] * len(part) for part in spans]
        encoding = tokens.encodings[row]
        for place in range(length):
            score, part = float(scores[start + place]), encoding.sequence_ids[place]
            if part is None or math.isnan(score):
                continue
            low, high = encoding.offsets[place]
            for word, (first, last) in enumerate(spans[part]):
                if low < last and high > first:
                    known = best[part][word]
                    best[part][word] = score if known is None else max(known, score)
                    break
        found.append([*best[0], *best[1]])
        start += length
    return found


def _word_around(text: str, start: int, end: int) -> str | None:
    """The word of `text` in which the first character of `text[start:end]` that is no whitespace stands."""
    while start < end and text[start].isspace():
        start += 1
    if start == end:
        return None
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    return text[start:].split(maxsplit=1)[0]
