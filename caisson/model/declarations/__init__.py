"""The properties of every class of qube and of the system (sheet `admin-api`, section 5).

Data: to add a property is to add a line. Those whose effect belongs to an engine that is not
here yet are stored and checked all the same, so that tools and formulas find them.
"""

from caisson.model.declarations.declare import Table
from caisson.model.declarations.qubes import PROPERTIES
from caisson.model.declarations.system import GLOBAL

__all__ = ["GLOBAL", "PROPERTIES", "Table"]
