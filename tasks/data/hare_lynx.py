"""Pelts of snowshoe hares and lynx, thousands a year, as the Hudson's Bay Company counted them.

The counts went from the company's books through several hands, some of which read them off plots.

Source: Carpenter, Predator-prey population dynamics: the Lotka-Volterra model in Stan, 2018, and
its file hudson-bay-lynx-hare.csv in stan-dev/example-models, after Howard, Modeling Basics, 2009,
and Hewitt, The Conservation of the Wild Life of Canada, 1921.
"""

from __future__ import annotations

import numpy as np

from tasks.data.systems import Array, Units

UNITS = Units(
    names=("hares (thousands)", "lynx (thousands)"),
    centre=(34.0, 20.0),
    scale=(21.0, 17.0),
    unit=2.0,
    time="years",
    measured=2,
)

FIRST_YEAR = 1900

_HARES = (
    *(30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1),
    *(40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7),
)
_LYNX = (
    *(4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4),
    *(8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6),
)


def hare_lynx() -> Array:
    """Hares and lynx of the years 1900 to 1920, shape (21, 2)."""
    return np.array([_HARES, _LYNX]).T
