"""Zoo: the table of what was published, models built and loaded by name, downloads, the Hugging Face hub."""

from maskrcnn.zoo.by_name import build, load, published_weights, restore, with_classes
from maskrcnn.zoo.hub import push_to_hub

__all__ = ["build", "load", "published_weights", "push_to_hub", "restore", "with_classes"]
