"""Parameter-efficient fine-tuning: LoRA (Hu et al. 2022) on a full-precision, int8 or nf4 base (QLoRA, Dettmers et al. 2023).

The base is frozen; low-rank matrices beside some of its linear layers, and the new classification head, are trained with the
same batches, checkpoint choice and clock as finetune.py. The adapter is saved in peft's own format.

    # on a CPU, offline (after `python prepare_data.py demo`): about two minutes
    python peft_finetune.py --model assets/models/all-MiniLM-L6-v2 --max_train_samples 2000 --epochs 2 --batch_size 32
    # on a GPU, from the hub; --quantize nf4 for QLoRA
    python peft_finetune.py --model distilbert-base-uncased --dataset glue --subset sst2 --epochs 3 --batch_size 16 --fp16
    # score the adapter again, on the same examples
    python prompt_eval.py --model assets/models/all-MiniLM-L6-v2 --adapter runs/RUN_ID/adapter
"""

import json
import shutil

import evaluation
import models
import tasks
import training
import utils

LEARNING_RATE = 2e-3  # twenty times that of finetune.py; chosen by MiniLM's validation accuracy, large models are trained with less


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    parser.add_argument("--model", default="assets/models/all-MiniLM-L6-v2", help="hub name or folder (default: %(default)s)")
    group = parser.add_argument_group("adapter")
    group.add_argument("--rank", type=utils.positive_int, default=8, help="rank of the update matrices (default: %(default)s)")
    group.add_argument("--alpha", type=utils.positive_int, help="updates are scaled by alpha / rank (default: twice the rank)")
    group.add_argument("--dropout", type=utils.fraction, default=0.05, help="on the adapter's input (default: %(default)s)")
    group.add_argument("--target_modules", default="auto", metavar="auto|all-linear|A,B,..",
                       help="the linear layers to adapt; auto finds the query and value projections (default: %(default)s)")  # fmt: skip
    group.add_argument(
        "--quantize", choices=("none", "int8", "nf4"), default="none", help="the frozen base's weights (default: %(default)s)"
    )
    training.add_training_args(parser, LEARNING_RATE)
    tasks.add_data_args(parser)
    utils.add_common_args(parser)
    return tasks.check_data_args(parser, parser.parse_args(argv))


def add_lora(model, args):
    """Wrap the model in a LoRA adapter; the head stays fully trainable and is saved with the adapter."""
    import peft

    targets = models.target_modules(model, args.target_modules)
    if args.quantize != "none":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, r=args.rank, lora_alpha=args.alpha or 2 * args.rank,
                             lora_dropout=args.dropout, target_modules=targets)  # fmt: skip
    return peft.get_peft_model(model, config)


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    models.check_names({"--model": args.model}, {"--dataset": tasks.source(args)})
    run = utils.Run(args, __file__, "peft", folder=training.find_resumable(args, __file__))

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        mixed, quantized = training.mixed_precision(args, device), args.quantize != "none"
        run.row.update(variant=f"lora_r{args.rank}" + (f"_{args.quantize}" if quantized else ""), model=args.model, metric="accuracy",
                       data_seed=args.data_seed, device=device, device_name=utils.device_name(device),
                       precision=args.quantize if quantized else mixed)  # fmt: skip

        # 3. data
        task = tasks.from_args(args)
        print(task.summary())
        tasks.require_kind(task, "classification", "fine-tuning")
        run.row.update(task.row())

        # 4. model
        tokenizer = utils.load_tokenizer(args.model, args.trust_remote_code)
        with utils.measure() as loading:
            weights = args.quantize if quantized else "fp32"
            model = models.load_model(args.model, "classifier", labels=task.labels, precision=weights, device=device,
                                      pad_token_id=tokenizer.pad_token_id, trust_remote_code=args.trust_remote_code)  # fmt: skip

        # 5. adapt
        model = add_lora(model, args)
        run.row.update(load_seconds=loading.seconds, **models.size_columns(model, trained=True))
        training.train_classifier(model, tokenizer, task, args, run, device)
        model.save_pretrained(run.path("adapter"))
        tokenizer.save_pretrained(run.path("adapter"))
        run.path("adapter/labels.json").write_text(json.dumps(task.labels))
        if not any(p.abs().max() > 0 for name, p in model.named_parameters() if "lora_B" in name):  # zero is where they start
            run.row["status"] = "degenerate"
            run.note("the adapter changed nothing")
        run.row["artifact_mb"] = utils.folder_mb(run.path("adapter"), "adapter_model.safetensors")

        # 6. evaluate
        evaluation.evaluate_classifier(model, tokenizer, task, run, args.batch_size, args.latency_runs, args.max_length)
        run.note("timed with the adapter unmerged")

        # 7. row and report: written by leaving the block
        share = run.row["trainable_params"] / run.row["total_params"]
        run.headline = f"trained {share:.2%} of the parameters in {run.row['train_seconds']:.0f} s"
        shutil.rmtree(run.path("checkpoints"))


if __name__ == "__main__":
    main()
