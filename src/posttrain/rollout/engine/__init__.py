"""The built-in generator: continuous batching, a KV cache, one prefill per prompt, exact log-probabilities."""

from posttrain.rollout.engine.engine import Engine

__all__ = ["Engine"]
