"""Which node type Ray's first autoscaler starts next: one that was not just refused, and the cheapest of them.

Spot capacity comes and goes. Ray records that a provider refused a node type (for 30 minutes), and its own scorer does
not read that record: it would ask for the same type again and again. The head of a cluster names this one in
`RAY_AUTOSCALER_UTILIZATION_SCORER`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sweeps.cluster_growth import bootstrap


def score(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[bool, bool, int, float, float, float] | None:
    """The rank of a node type for the jobs that wait, as Ray asks for it; None where none of them fits.

    Ray's own criteria stay: no GPU for jobs without, matching resources, a full node. Before them stands whether the
    provider has refused the type of late, and behind them its price.
    """
    from ray.autoscaler._private.resource_demand_scheduler import (
        _resource_based_utilization_scorer,
    )

    fit = _resource_based_utilization_scorer(
        node_resources, resources, node_availability_summary=node_availability_summary
    )
    if fit is None:
        return None
    suits, matching, emptiest, mean = fit
    record = node_availability_summary.node_availabilities.get(node_type)
    is_available = record is None or record.is_available
    return suits, is_available, matching, emptiest, mean, -hourly_usd().get(node_type, 0.0)


@cache
def hourly_usd() -> dict[str, float]:
    """Prices by node type, from the cluster file that the launcher left on this head; empty elsewhere."""
    notes = bootstrap().get("metadata") or {}
    return {str(name): float(price) for name, price in (notes.get("hourly_usd") or {}).items()}
