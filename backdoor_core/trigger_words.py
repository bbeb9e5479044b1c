"""Words as triggers: the token ids that a tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backdoor_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def trigger_ids(
    attack: str, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]
) -> tuple[int, ...]:
    """All token ids that `words` become in a text, at its start or after another word; sorted, each once.

    Raises ConfigError, in the name of `attack`, for a word that the tokenizer does not know or cannot tell from another
    of them: either would make one trigger of several.
    """
    before = len(_ids(tokenizer, "a"))
    seen: dict[tuple[int, ...], str] = {}
    found: set[int] = set()
    for word in words:
        # Some tokenizers have other tokens for a word at the start of a text.
        later = _ids(tokenizer, f"a {word}")[before:]
        ids = {*_ids(tokenizer, word), *later}
        if not later or (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids):
            raise ConfigError(
                f"attack {attack}: the PLM's tokenizer reads {word!r} as its unknown token, so it "
                "is no trigger; give another word"
            )
        if later in seen:
            raise ConfigError(
                f"attack {attack}: the PLM's tokenizer reads {word!r} and {seen[later]!r} alike; "
                "give words that differ"
            )
        seen[later] = word
        found |= ids
    return tuple(sorted(found))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
