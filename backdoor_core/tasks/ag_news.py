"""AG News: which of four topics is a news item about?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from backdoor_core.hub_task import HubTask
from backdoor_core.space import setting


class AgNews(HubTask):
    """AG's News, title and description as one text: world, sports, business, science and technology.

    Source: Zhang et al. 2015, arXiv:1509.01626. 120,000 train and 7,600 test rows; dev is carved from train.
    """

    hub_id: str = setting("fancyzhx/ag_news")
    hub_splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}
    text_column: ClassVar[str] = "text"
    label_names: ClassVar[tuple[str, ...]] = ("world", "sports", "business", "sci/tech")
