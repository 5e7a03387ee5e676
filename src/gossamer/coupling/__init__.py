"""Which positions of a network's parameters must be removed together, found by propagating labels through its graph."""

from gossamer.coupling.analysis import Analysis as Analysis
from gossamer.coupling.analysis import analyse as analyse
from gossamer.coupling.groups import Group as Group
