"""Fixtures of the tests of pictures."""

from __future__ import annotations

import pytest

from maskrcnn.images import read as image_io


@pytest.fixture(params=["torchcodec", "pillow"])
def decoder(request, monkeypatch) -> str:
    """Decoder of images that the test runs with: each in turn."""
    if request.param == "pillow":
        monkeypatch.setattr(image_io, "_torchcodec_decoder", lambda: None)
    elif image_io._torchcodec_decoder() is None:
        # An optional extra, which `make test` installs: there both decoders are tested.
        pytest.skip("torchcodec is not installed")
    return request.param
