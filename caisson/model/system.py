"""The model as one thing: what is, and what may become of it.

Every change is planned with every check before anything happens: sheet `admin-api`, sections 2.2
to 2.4 (order of checks, errors), 3.2 and 3.3 (events), 6 (names).
"""

from __future__ import annotations

from caisson.model.life_plans import LifePlans
from caisson.model.mark_plans import MarkPlans


class System(LifePlans, MarkPlans):
    """All qubes, and every plan that can be made for them."""
