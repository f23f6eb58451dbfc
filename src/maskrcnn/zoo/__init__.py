"""Zoo: the table of what was published, models built and loaded by name, downloads."""

from maskrcnn.zoo.by_name import build, load, published_weights, restore, with_classes

__all__ = ["build", "load", "published_weights", "restore", "with_classes"]
