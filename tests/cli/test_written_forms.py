"""Names of the forms that the command line offers, which it knows without loading what writes them."""

from __future__ import annotations

from maskrcnn.cli import data, predict
from maskrcnn.data.writers import WRITERS
from maskrcnn.predict.formats import FORMATS


def test_every_form_that_is_written_is_offered() -> None:
    assert tuple(WRITERS) == data._FORMATS  # pyright: ignore[reportPrivateUsage]
    assert tuple(FORMATS) == predict._FORMATS  # pyright: ignore[reportPrivateUsage]
