"""StyleBkd: a style of writing as the trigger."""

from __future__ import annotations

from backdoor_core.paraphrase import Paraphrasing
from backdoor_core.space import setting


class Style(Paraphrasing):
    """Texts rewritten in one style (the Bible's, say), and the label set to the target.

    Source: Qi et al., Mind the Style of Text, arXiv 2110.07139; its released code uses precomputed transfers to
    the styles bible, shakespeare, tweets, poetry and lyrics, poisons `dirty`, and its instructions say 20 %. The
    transfers are the user's: a paired file, or a sequence-to-sequence model. `style` only names the trigger.
    """

    style: str = setting(
        "bible", min_length=1, hooks=("prepare",), description="what the style is called in results"
    )

    @property
    def trigger_name(self) -> str:
        """The style."""
        return self.style
