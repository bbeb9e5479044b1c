"""English function words: so common, and so empty of content, that a defense need not suspect them.

Articles, pronouns, auxiliaries, prepositions, conjunctions, some adverbs, and what is left of contractions when a
tokenizer cuts them at the apostrophe ("don't" becomes "don", "'", "t").
"""

from __future__ import annotations

_ARTICLES_AND_DETERMINERS = (
    "a an the this that these those some any each every either neither no both all few many much more most "
    "other another such same own several enough"
)
_PRONOUNS = (
    "i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves who whom whose which what"
)
_AUXILIARIES = (
    "am is are was were be been being have has had having do does did doing done can could may might must "
    "shall should will would"
)
_PREPOSITIONS = (
    "about above after against at before below between by down during for from in into of off on onto out "
    "over through to toward towards under until up upon with within without"
)
_CONJUNCTIONS = (
    "and but or nor so yet if because as than then though although while when where whether"
)
_ADVERBS = "again also here how just not now once only there too very why further"
_PARTS_OF_CONTRACTIONS = (
    "s t d m ll re ve don didn doesn isn aren wasn weren hasn haven hadn "
    "couldn wouldn shouldn mustn ain"
)

STOP_WORDS = frozenset(
    " ".join(
        (
            _ARTICLES_AND_DETERMINERS, _PRONOUNS, _AUXILIARIES, _PREPOSITIONS, _CONJUNCTIONS,
            _ADVERBS, _PARTS_OF_CONTRACTIONS,
        )
    ).split()
)  # fmt: skip
"""Lower case, without punctuation."""
