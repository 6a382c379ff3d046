"""The model as one thing: what is, and what may become of it.

Every change is planned with every check before anything happens: sheet `admin-api`, sections 2.2
to 2.4 (order of checks, errors), 3.2 and 3.3 (events), 6 (names).
"""

from __future__ import annotations

from caisson.model.life_plans import LifePlans
from caisson.model.mark_plans import MarkPlans
from caisson.model.storage_plans import StoragePlans
from caisson.model.told import Told


class System(LifePlans, MarkPlans, StoragePlans, Told):
    """All qubes, and every plan that can be made for them."""
