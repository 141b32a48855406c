"""Full fine-tuning: train every weight of an encoder with a classification head, or of a language model that answers.

Classification data train a head; questions and instructions train a causal or seq2seq language model on the answers to
the prompts that prompt_eval.py uses. A new head begins as a logistic regression on the frozen features. The Hugging
Face Trainer trains on batches of similar length and keeps the checkpoint that is best on the validation split, or with
--label_budget the last; the evaluation examples, the same for every strategy, are scored once at the end. Default
learning rate: 1e-4 for a head (less for hidden states wider than 384, in proportion), 5e-5 for a language model.

    # on a CPU, offline (after `python prepare_data.py demo`): minutes for the first
    python finetune.py --model assets/models/all-MiniLM-L6-v2 --label_budget 500
    python finetune.py --model assets/models/all-MiniLM-L6-v2 --label_budget 100 --tune 20
    python finetune.py --model assets/models/SmolLM2-135M-Instruct --dataset assets/data/openbookqa \\
        --max_steps 40 --batch_size 8
    # on a GPU, from the hub
    python finetune.py --model distilbert-base-uncased --dataset glue --subset sst2 --epochs 3 --batch_size 16 --fp16
    # your own files, with or without a header line, any number of labels
    python finetune.py --train_file train.tsv --test_file test.tsv --columns text,label --label_words negative,positive
    # few-shot: 16 labels, five draws, also scored out of domain (after `python prepare_data.py mnli_hans`)
    python finetune.py --dataset assets/data/mnli_hans/mnli --eval_ood assets/data/mnli_hans/hans \\
        --label_budget 16 --repeats 5 --max_eval_samples 1000
    # RAFT: questions with the passages that retrieval finds; serve it with rag_eval.py --gen_model runs/RUN_ID/model
    python finetune.py --model assets/models/SmolLM2-135M-Instruct --dataset assets/data/disfl_qa --context retrieved \\
        --chunk_tokens 64 --label_budget 500
    # a 7B model whole: bf16 weights, about 8 bytes a parameter with their optimizer, and activations
    python finetune.py --model meta-llama/Llama-2-7b-hf --dataset databricks/databricks-dolly-15k --weights bf16 \\
        --learning_rate 1e-5 --gradient_checkpointing --batch_size 4 --gradient_accumulation 8 --max_eval_samples 200
    # on all GPUs
    accelerate launch finetune.py --model distilbert-base-uncased --dataset glue --subset sst2
"""

import functools
import shutil

import utils
from harness import flags, hub
from harness.results.run import Run
from harness.training import resume

# of a head searched with MiniLM, see docs/training.md; at BERT-base's width it is 5e-5, as in its paper
LEARNING_RATES = {"classification": 1e-4, "qa": 5e-5, "instruction": 5e-5}


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--model", default="assets/models/all-MiniLM-L6-v2", help="hub name or folder (default: %(default)s)"
    )
    flags.add_training_args(parser)
    flags.add_context_args(parser)
    flags.add_data_args(parser)
    flags.add_common_args(parser)
    args = flags.check_training_args(parser, flags.check_data_args(parser, parser.parse_args(argv)))
    return flags.check_context_args(parser, args)


# ------------------------------------------------------------------------------------------------------- the technique


def new_model(args, task, tokenizer, device):
    """The model of a trial, all its weights to be trained."""
    model = trainer.load_base(args, task, tokenizer, device, args.weights)
    heads.start(model, tokenizer, task, args)
    return model


def run_once(args):
    # 1. settings
    run = Run(args, __file__, "full_finetuning", folder=resume.find_resumable(args, __file__))

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        trainer.check_device(args, device)
        run.row.update(
            variant=flags.with_context("full", args),
            model=args.model,
            data_seed=args.data_seed,
            **utils.device_columns(device),
            precision=args.weights,
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
        learning_rate = trainer.learning_rate(args, task, LEARNING_RATES[task.kind])
        args = trainer.with_epochs(args, len(task.train), task.kind)
        if args.tune:
            build = functools.partial(new_model, tokenizer=tokenizer, device=device)
            args = tuning.tune(args, task, tokenizer, run, device, build, learning_rate, chat)
            learning_rate = args.learning_rate
        with utils.measure() as load:
            model = trainer.load_base(args, task, tokenizer, device, args.weights, to_share=True)
        precisions.check_trainable(model, args.model)
        run.row.update(**load.load_columns(), **properties.size_columns(model, trained=True))

        # 5. adapt
        kept = forgetting.Forgetting(args, run) if task.kind != "classification" else None
        heads.start(model, tokenizer, task, args, run)
        reload = functools.partial(trainer.load_base, args, task, tokenizer, device, args.weights)
        before = {"reload": reload, "measure": kept and kept.measure}
        model = trainer.train(model, tokenizer, task, args, run, device, learning_rate, chat, **before)
        if run.main:
            model.save_pretrained(run.path("model"))
            tokenizer.save_pretrained(run.path("model"))
            run.row["artifact_mb"] = utils.folder_mb(run.path("model"))

        # 6. evaluate
        outcome = evaluate.trained(model, tokenizer, task, args, chat, other)
        if kept:
            kept.measure(model, tokenizer)
            kept.record(run)

        # 7. row and report: the row is written by leaving the block
        record.outcome(run, task, outcome, model, other)
        run.headline = f"trained in {run.row['train_seconds']:.0f} s"
        if run.main:
            shutil.rmtree(run.path("checkpoints"))


def import_heavy():
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once."""
    global evaluate, forgetting, heads, loading, precisions, properties, raft, record, tasks, trainer, tuning
    from harness.data import tasks
    from harness.evaluation import evaluate, forgetting, record
    from harness.models import loading, precisions, properties
    from harness.retrieval import raft
    from harness.training import heads, trainer, tuning


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    hub.check_names({"--model": args.model}, {"--dataset": flags.source(args), "--eval_ood": args.eval_ood})
    import_heavy()
    for once in flags.repeats(args):
        run_once(once)


if __name__ == "__main__":
    main()
