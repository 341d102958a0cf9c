"""The hooked cross-encoder: the only place that knows transformers and TransformerLens."""

from mechir.encoder.hooked import HookedEncoder as HookedEncoder
