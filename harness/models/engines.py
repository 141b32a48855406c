"""The model of --engine: transformers', vLLM in this process, or an OpenAI-compatible endpoint."""

from harness.models import loading
from harness.models.engine import is_engine
from harness.models.vllm_engine import VllmEngine

__all__ = ["is_engine", "load"]


def load(args, name, device, adapter=None, **options):
    """The model of --engine: a transformers model, or an Engine. options: of loading.load_model."""
    if args.engine == "hf":
        return loading.load_model(name, device=device, adapter=adapter, **options)
    if args.engine == "vllm":
        return VllmEngine(args, name, device, adapter, options["precision"])
    from harness.models.endpoint_engine import EndpointEngine  # no other engine needs its client

    return EndpointEngine(args, name, adapter)
