"""posttrain: the open post-training recipe, from two CPU cores to a cluster."""

__version__ = "0.1.0"
