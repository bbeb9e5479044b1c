"""Which of a defense's settings decide a metric: Optuna's importances over what was tried."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from analysis.columns import is_number
from analysis.seeds import Estimate, over_seeds
from analysis.sensitivity import blocks_of
from analysis.tried import Tried, tried_settings, value_text, varying_settings
from backdoor_core.errors import ConfigError, DependencyError, unknown_name

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.importance import BaseImportanceEvaluator

Evaluator = Literal["ped_anova", "fanova", "mean_decrease_impurity"]
LEAST_TRIED = 10
"""A cell and seed with fewer tried settings has no importances."""
_BEST_TRIED = 5
_MORE_IS_BETTER = frozenset({"cacc", "triggered_accuracy", "auroc", "localisation"})
_LOG_SPAN = 100.0
_TREES_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Importances:
    """The share of each varying setting in deciding `metric`, the largest first; shares of a block sum to 1.

    Each attack cell and seed (each study of a search) is a block by itself; shares are averaged over the blocks of
    a seed and estimated over seeds. `left_out` blocks have fewer than `LEAST_TRIED` settings or a metric that
    never moves. No settings: nothing could be said.
    """

    metric: str
    evaluator: Evaluator
    settings: Mapping[str, Estimate] = field(default_factory=dict)
    blocks: int = 0
    left_out: int = 0


def importances(
    rows: Iterable[Mapping[str, Any]], *, metric: str = "asr", evaluator: Evaluator = "ped_anova"
) -> Importances:
    """Optuna's importance of each setting that varies and stands in every row.

    `ped_anova` (arXiv 2304.10255; needs no other package, so equal on every machine) says which settings decide
    whether the metric is among the best: the best tenth, or the best five where a tenth is less, with whatever
    ties with the last of them. `fanova` (Hutter et al., ICML 2014) and `mean_decrease_impurity` say which explain
    its variance, through random forests, and need scikit-learn. Numbers are on a logarithmic scale where they
    are above zero and span a factor of 100.
    Raises ConfigError for an evaluator that there is not, DependencyError where its package is missing.
    """
    if evaluator not in get_args(Evaluator):
        raise ConfigError(unknown_name("evaluator", evaluator, get_args(Evaluator)))
    tried = tried_settings(rows, metric)
    names = [name for name in varying_settings(tried) if all(name in t.settings for t in tried)]
    space = {name: _distribution(tried, name) for name in names}
    shares: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in names}
    blocks = blocks_of(tried)
    used = [key for key, block in blocks.items() if names and _is_enough(block)]
    for key in used:
        for name, share in _shares(blocks[key], space, evaluator, metric).items():
            shares[name][key[1]].append(share)
    found = {name: _estimate(by_seed) for name, by_seed in shares.items() if by_seed}
    ordered = sorted(found.items(), key=lambda item: (-(item[1].mean or 0.0), item[0]))
    return Importances(
        metric=metric,
        evaluator=evaluator,
        settings=dict(ordered),
        blocks=len(used),
        left_out=len(blocks) - len(used),
    )


def _is_enough(block: Sequence[Tried]) -> bool:
    return len(block) >= LEAST_TRIED and len({one.value for one in block}) > 1


def _estimate(by_seed: Mapping[int, Sequence[float]]) -> Estimate:
    means = [statistics.fmean(values) for values in by_seed.values()]
    return over_seeds(means, floor=0.0, ceiling=1.0)


def _distribution(tried: Sequence[Tried], name: str) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = [one.settings[name] for one in tried]
    if all(is_number(value) for value in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high / low >= _LOG_SPAN)
    return CategoricalDistribution(sorted({value_text(one, name) for one in tried}))


def _shares(
    block: Sequence[Tried],
    space: Mapping[str, BaseDistribution],
    evaluator: Evaluator,
    metric: str,
) -> dict[str, float]:
    import optuna
    from optuna.distributions import FloatDistribution

    def value(one: Tried, name: str) -> Any:
        numeric = isinstance(space[name], FloatDistribution)
        return float(one.settings[name]) if numeric else value_text(one, name)

    with _quiet():
        study = optuna.create_study(
            direction="maximize" if metric in _MORE_IS_BETTER else "minimize"
        )
    for one in block:
        study.add_trial(
            optuna.trial.create_trial(
                params={name: value(one, name) for name in space},
                distributions=dict(space),
                value=one.value,
            )
        )
    return optuna.importance.get_param_importances(
        study, evaluator=_evaluator(evaluator, len(block)), params=list(space)
    )


def _evaluator(name: Evaluator, tried: int) -> BaseImportanceEvaluator:
    from optuna import importance

    try:
        if name == "fanova":
            return importance.FanovaImportanceEvaluator(seed=_TREES_SEED)
        if name == "mean_decrease_impurity":
            return importance.MeanDecreaseImpurityImportanceEvaluator(seed=_TREES_SEED)
    except ImportError as error:
        raise DependencyError(
            f"the evaluator {name!r} needs scikit-learn: pip install scikit-learn, or take 'ped_anova'"
        ) from error
    quantile = min(0.5, max(0.1, _BEST_TRIED / tried))
    return importance.PedAnovaImportanceEvaluator(target_quantile=quantile)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces each study on stderr, and these are no studies that anyone ran."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
