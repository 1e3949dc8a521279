"""Settings of the surrogate are the measured ones by default, and those that make no sense are refused."""

from __future__ import annotations

from typing import Any

import pytest

from trace_opt.optim.numeric.around import Around


def test_the_defaults_are_the_ones_that_were_measured() -> None:
    around = Around()
    assert (around.start, around.within, around.spread, around.nearest) == (10, 0.1, 1.0, 100)
    assert len(around.lengthscales) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1}, "start=1; give at least 2"),
        ({"nearest": 0}, "nearest=0"),
        ({"lengthscales": ()}, "lengthscales=0; give at least 1"),
        ({"spread": 0.0}, "spread=0.0; give a number above 0"),
        ({"within": float("nan")}, "within=nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Around(**options)
