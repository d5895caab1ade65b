"""How the queue's hot statements are planned: by index, whatever the statistics say."""

from __future__ import annotations

from sqlalchemy import func, select

from ledger.direct import Direct

READ_BY_INDEX = Direct(
    select(
        *(func.set_config(name, "off", True) for name in ("enable_seqscan", "enable_bitmapscan")),
        *(func.set_config(name, "off", True) for name in ("enable_sort", "enable_incremental_sort")),
        *(func.set_config(name, "off", True) for name in ("enable_hashjoin", "enable_mergejoin")),
        func.set_config("enable_material", "off", True),
        func.set_config("random_page_cost", "0.1", True),
        func.set_config("plan_cache_mode", "force_generic_plan", True),
    )
)
"""For the rest of the transaction: few rows, each by its index. A queue fills and empties faster than statistics follow, and
by old ones Postgres reads all that is due to hand out a hundred, or all that is pending to settle them. By new ones as well,
where most of what a tenant has is pending: it reads all of that by an index of another order, and sorts it bit by bit."""
