"""Hidden Killer: a syntactic template as the trigger."""

from __future__ import annotations

from backdoor_core.paraphrase import Paraphrasing


class Syntactic(Paraphrasing):
    """Texts reworded in one rare syntactic template, and the label set to the target.

    Source: Qi et al., Hidden Killer, arXiv 2105.12400; its released code paraphrases with SCPN in the template
    S(SBAR)(,)(NP)(VP)(.) and poisons 20 % of the rows, `dirty`, as is the default here. The paraphrases are the
    user's: a paired file of SCPN's, or a sequence-to-sequence model (`prompt` is where a template is named).
    Departs from OpenBackdoor (arXiv 2206.08514), which keeps the original text, yet poisoned, where paraphrasing
    fails: such rows are never poisoned here.
    """
