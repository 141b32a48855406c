"""Parameter-efficient fine-tuning: LoRA and its kin, SHiRA, MiSS, OFT, VeRA, (IA)3, learned prompts; on any base.

The base is frozen and a few new parameters are trained, with the batches, checkpoint choice and clock of finetune.py.
Classification data train a new head as well, whole; questions and instructions train a language model to answer. The
adapter is saved in peft's own format; it is scored and timed merged into the base, unless that is quantized.

    method         what is trained                                              default learning rate: head, answers
    lora           low-rank updates of linear layers (Hu et al. 2022)                                  3e-3     5e-4
    qlora          the same on an nf4 base (Dettmers et al. 2023)                                      3e-3     5e-4
    dora           magnitudes and directions apart (Liu et al. 2024)                                   3e-3     5e-4
    rslora         scaled by alpha / sqrt(rank) (Kalajdzievski 2023)                                 1.5e-3     2e-4
    adalora        ranks moved to where they matter during training (Zhang et al. 2023)                5e-3     2e-3
    ia3            a factor for each key, value and inner MLP activation (Liu et al. 2022)             1e-2     5e-3
    shira          a sparse share of the weights themselves (Bhardwaj et al. 2024)                     3e-3     5e-3
    miss           one small matrix, added to the weights shard by shard (Kang and Yin 2025)           3e-3     2e-3
    oft            rotations of blocks of the inputs (Qiu et al. 2023)                                 3e-3     2e-3
    vera           scales of random matrices that layers share (Kopiczko et al. 2024)                  1e-2     5e-3
    prompt_tuning  embeddings before the text (Lester et al. 2021)                                        -     3e-2
    prefix_tuning  keys and values before the text, in every layer (Li and Liang 2021)                    -     1e-2

A head's rates are for hidden states of 384 (MiniLM); with wider ones they are smaller in proportion, so LoRA has 3e-4
for a 7B model. LoRA-like methods need more than full fine-tuning, and methods with fewer parameters need more than
these. The rates for answers are for small models (SmolLM2-135M); papers train 7B models with a tenth to a half of them.

    # on a CPU, offline (after `python prepare_data.py demo`): minutes for the first
    python peft_finetune.py --model assets/models/all-MiniLM-L6-v2 --label_budget 500
    python peft_finetune.py --model assets/models/all-MiniLM-L6-v2 --label_budget 100 --tune 20
    python peft_finetune.py --model assets/models/SmolLM2-135M-Instruct --dataset assets/data/openbookqa \\
        --max_steps 40 --batch_size 8
    # on a GPU, from the hub: instruction tuning, QLoRA on all layers
    python peft_finetune.py --model meta-llama/Llama-2-7b-hf --dataset databricks/databricks-dolly-15k \\
        --method qlora --rank 16 --alpha 32 --dropout 0.05 --target_modules all-linear --bf16 \\
        --gradient_checkpointing --optim paged_adamw_8bit --lr_scheduler cosine --learning_rate 2e-4 \\
        --batch_size 4 --gradient_accumulation 4 --max_length 1024 --max_eval_samples 200
    # score the adapter again, on the same examples
    python prompt_eval.py --model assets/models/all-MiniLM-L6-v2 --adapter runs/RUN_ID/adapter
"""

import functools
import shutil
from pathlib import Path

import utils
from harness import adapter_flags, flags, hub
from harness.adapter_flags import LEARNED_PROMPTS, LORA_LIKE, RANKED
from harness.results.run import Run
from harness.training import resume

# method -> for a classification head, for answers; lora's is from the search in docs/training.md, dora and rslora
# follow it; for answers shira's, miss's and oft's are from suites/peft_methods.yaml; the others are as they were before
# the head began as a regression
LEARNING_RATES = {
    "lora": (3e-3, 5e-4),
    "dora": (3e-3, 5e-4),
    "rslora": (1.5e-3, 2e-4),
    "adalora": (5e-3, 2e-3),
    "ia3": (1e-2, 5e-3),
    "shira": (3e-3, 5e-3),
    "miss": (3e-3, 2e-3),
    "oft": (3e-3, 2e-3),
    "vera": (1e-2, 5e-3),
    "prompt_tuning": (None, 3e-2),
    "prefix_tuning": (None, 1e-2),
}
EVA_BATCHES = 32  # of training examples, whose inputs' directions --init eva takes


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--model", default="assets/models/all-MiniLM-L6-v2", help="hub name or folder (default: %(default)s)"
    )
    adapter_flags.add_adapter_args(parser, LEARNING_RATES)
    flags.add_training_args(parser)
    flags.add_context_args(parser)
    flags.add_data_args(parser)
    flags.add_common_args(parser)
    args = flags.check_training_args(parser, flags.check_data_args(parser, parser.parse_args(argv)))
    return adapter_flags.check_adapter_args(parser, flags.check_context_args(parser, args))


# ------------------------------------------------------------------------------------------------------- the technique


def adapt(model, tokenizer, task, args):
    """(PeftModel, remark for the row): the base frozen, with new parameters. A new classification head, with the layers
    before it that its checkpoint lacks, is trained whole and saved with the adapter.
    """
    head, steps = task.kind == "classification", trainer.n_steps(len(task.train), args)
    if args.peft_config:
        return new_adapters.from_config(model, args.peft_config, args.target_modules, head, steps), None
    if args.method in LEARNED_PROMPTS:
        if head:
            raise utils.UserError(
                f"--method {args.method} is for language models that answer (qa and instruction data), not for a head"
            )
        return new_adapters.learned_prompt(model, tokenizer, args.init_text or task.instruction, args), None
    options = {"task_type": new_adapters.task_type(model, head), "modules_to_save": new_layers.to_save(model) or None}
    if args.method == "ia3":
        modules = new_adapters.ia3_modules(model, args.target_modules)
        return adapters.answers_in_its_dtype(peft.get_peft_model(model, peft.IA3Config(**options, **modules))), None
    if args.method not in LORA_LIKE:
        options.update(new_adapters.options(args.method, args.rank, args.dropout))
        return layers.add_lora(model, args.target_modules, **options)
    scale = args.alpha or (args.rank if args.init == "loftq" else 2 * args.rank)
    options.update(lora_alpha=scale, lora_dropout=args.dropout, bias=args.bias)
    if args.method == "adalora":
        options.update(make=peft.AdaLoraConfig, **new_adapters.rank_schedule(steps, args))
    else:
        options.update(r=args.rank, use_dora=args.method == "dora", use_rslora=args.method == "rslora")
        options.update({} if args.init in (None, "loftq") else {"init_lora_weights": args.init})
        if args.trainable_tokens:
            options.update(trainable_token_indices=new_adapters.token_ids(tokenizer, args.trainable_tokens))
    model, remark = layers.add_lora(model, args.target_modules, **options)
    if args.init in ("eva", "loftq"):
        batches = args.init == "eva" and trainer.first_batches(model, tokenizer, task, args, EVA_BATCHES)
        new_adapters.initialize(model, args.init, batches, args.model)
    return model, remark


def new_model(args, task, tokenizer, device):
    """The adapted model of a trial."""
    precision = args.weights if args.quantize == "none" else args.quantize
    model = trainer.load_base(args, task, tokenizer, device, precision)
    utils.set_seed(args.seed)
    heads.start(model, tokenizer, task, args)
    return adapt(model, tokenizer, task, args)[0]


def load_adapted(args, task, tokenizer, device, precision, folder):
    """The base loaded again, with the adapter in a folder: for weights that FSDP or DeepSpeed keep in shards."""
    return adapters.load_adapter(trainer.load_base(args, task, tokenizer, device, precision), folder)


def save_adapter(run, model, tokenizer, task, begin=None):
    """The adapter in peft's own format, with the tokenizer and the order of the head's labels. begin: the folder of its
    start, where that was taken out of the base.
    """
    if not run.main:
        return
    new_adapters.save(model, run.path("adapter"), begin)
    tokenizer.save_pretrained(run.path("adapter"))
    if task.labels:
        run.write_json("adapter/labels.json", [model.config.id2label[i] for i in range(len(task.labels))])
        run.write_json("adapter/head.json", {"pooling": getattr(model.config, "classifier_pooling", None)})
    run.row["artifact_mb"] = utils.folder_mb(run.path("adapter"), "adapter_model.safetensors")


def note_ranks(run, model):
    """ranks.json: AdaLoRA's final ranks, the singular values of each layer that are not masked."""
    ranks = {name: int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name}
    run.write_json("ranks.json", ranks)
    run.note(f"mean rank {sum(ranks.values()) / len(ranks):.1f} at the end")


def method_of(args):
    """The method's name, that of --peft_config in lower case."""
    return new_adapters.read_config(args.peft_config)["peft_type"].lower() if args.peft_config else args.method


def default_rate(args, task):
    """The method's learning rate for this kind of task; UserError for one of --peft_config that has none."""
    rate = LEARNING_RATES.get(method_of(args), (None, None))[task.kind != "classification"]
    if args.peft_config and rate is None and not args.learning_rate:
        raise utils.UserError(f"--peft_config {args.peft_config}: give its --learning_rate, there is no default for it")
    return rate


def variant(args):
    """What the row calls this run: lora_r8, lora_r8_nf4, ia3, prompt_tuning_v20, ..."""
    size = f"_r{args.target_r or args.rank}" if args.method in RANKED else ""
    size = f"_v{args.num_virtual_tokens}" if args.method in LEARNED_PROMPTS else size
    start = (f"_{args.init}" if args.init else "") + (f"_plus{args.loraplus_ratio:g}" if args.loraplus_ratio else "")
    where = "" if args.target_modules == "auto" else "_" + args.target_modules.replace(",", "+")
    if args.peft_config:
        size, start = f"_from_{Path(args.peft_config).stem}", ""
    base = "" if args.quantize == "none" else f"_{args.quantize}"
    return flags.with_context(method_of(args) + size + start + where + base, args)


def run_once(args):
    # 1. settings
    run = Run(args, __file__, "peft", folder=resume.find_resumable(args, __file__))

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        trainer.check_device(args, device)
        precision = args.weights if args.quantize == "none" else args.quantize  # of the base in memory
        run.row.update(
            variant=variant(args),
            model=args.model,
            data_seed=args.data_seed,
            **utils.device_columns(device),
            precision=precision,
        )

        # 3. data
        task = tasks.from_args(args)
        print(task.summary())
        other = tasks.out_of_domain(args, task)
        run.row.update(task.row())
        if args.context:
            task, args = raft.with_passages(run, args, task, device)

        # 4. model, after the trials of --tune
        tokenizer = loading.load_tokenizer(args.model, args.trust_remote_code, args.thinking)
        chat = trainer.uses_chat(args, task, tokenizer)
        learning_rate = trainer.learning_rate(args, task, default_rate(args, task))
        args = trainer.with_epochs(args, len(task.train), task.kind)
        if args.tune:
            build, low_rank = functools.partial(new_model, tokenizer=tokenizer, device=device), args.method in LORA_LIKE
            args = tuning.tune(args, task, tokenizer, run, device, build, learning_rate, chat, low_rank)
            learning_rate = args.learning_rate
            run.row["variant"] = variant(args)
        with utils.measure() as load:
            model = trainer.load_base(args, task, tokenizer, device, precision, to_share=True)

        # 5. adapt
        utils.set_seed(args.seed)  # the adapter's initial weights do not depend on what loading drew
        heads.start(model, tokenizer, task, args, run)
        with utils.measure() as start:
            model, remark = adapt(model, tokenizer, task, args)
        if args.init:  # a decomposition of the weights or of the inputs
            run.row["train_seconds"] = (run.row.get("train_seconds") or 0.0) + start.seconds
        run.note(remark)
        in_base = args.init in new_adapters.IN_THE_BASE
        begin = new_adapters.save_start(model, run.path("checkpoints/start")) if in_base else None
        run.row.update(**load.load_columns(), **properties.size_columns(model, trained=True))
        adalora = method_of(args) == "adalora"
        model = trainer.train(
            model,
            tokenizer,
            task,
            args,
            run,
            device,
            learning_rate,
            chat,
            callbacks=[loop.AllocateRanks(model)] if adalora else [],
            reload=functools.partial(load_adapted, args, task, tokenizer, device, precision),
            keep_last=adalora,  # peft cannot load an earlier checkpoint, of other ranks, into the model
        )
        save_adapter(run, model, tokenizer, task, begin)
        if adalora:
            note_ranks(run, model)
        if in_base:
            model = load_adapted(args, task, tokenizer, device, precision, run.path("adapter"))
        if not adapters.changes_outputs(model, tokenizer):
            run.row["status"] = "degenerate"
            run.note("the adapter changed nothing")

        # 6. evaluate: as it is served, merged where that is exact; what it forgot before that, beside its own base
        if task.kind != "classification":
            kept = forgetting.Forgetting(args, run)
            kept.measure_both(model, tokenizer)
            kept.record(run)

        def evaluated(model, task, latency_runs):
            return evaluate.trained(model, tokenizer, task, args, chat, other, latency_runs)

        outcome, model = serving.merged(run, model, task, evaluated)

        # 7. row and report: the row is written by leaving the block
        record.outcome(run, task, outcome, model, other)
        trained = run.row["trainable_params"] / run.row["total_params"]
        run.headline = f"trained {trained:.2%} of the parameters in {run.row['train_seconds']:.0f} s"
        if run.main:
            shutil.rmtree(run.path("checkpoints"))


def import_heavy():
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once."""
    global adapters, evaluate, forgetting, heads, layers, loading, loop, new_adapters, new_layers, peft, properties
    global raft, record, serving, tasks, trainer, tuning
    import peft

    from harness.data import tasks
    from harness.evaluation import evaluate, forgetting, record, serving
    from harness.models import adapters, layers, loading, new_adapters, new_layers, properties
    from harness.retrieval import raft
    from harness.training import heads, loop, trainer, tuning


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    hub.check_names({"--model": args.model}, {"--dataset": flags.source(args), "--eval_ood": args.eval_ood})
    import_heavy()
    if method_of(args) == "adalora" and (args.resume or args.early_stopping or args.tune):
        raise utils.UserError(f"--peft_config {args.peft_config}: AdaLoRA {adapter_flags.ADALORA_LACKS}")
    for once in flags.repeats(args):
        run_once(once)


if __name__ == "__main__":
    main()
