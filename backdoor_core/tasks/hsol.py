"""HSOL: does a tweet hold hate speech or offensive language?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from backdoor_core.hub_task import HubTask
from backdoor_core.space import setting


class Hsol(HubTask):
    """HSOL, tweets: 0 neither, 1 hate speech or offensive.

    Source: Davidson et al. 2017, arXiv:1703.04009. The hub has one split of 24,783 tweets in three classes (0 hate
    speech, 1 offensive language, 2 neither); test and dev are carved from it, and the first two classes become one, as
    the backdoor literature does. About five tweets in six are of class 1, so accuracy alone says little here.
    A local folder holds the two classes 0 and 1 already.
    """

    hub_id: str = setting("tdavidson/hate_speech_offensive")
    hub_splits: ClassVar[Mapping[str, str]] = {"train": "train"}
    text_column: ClassVar[str] = "tweet"
    label_column: ClassVar[str] = "class"
    label_names: ClassVar[tuple[str, ...]] = ("neither", "hate or offensive")
    hub_labels: ClassVar[Mapping[str, int]] = {"0": 1, "1": 1, "2": 0}
