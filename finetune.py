"""Full fine-tuning: every weight of a pretrained encoder is trained for classification.

The Hugging Face Trainer trains on batches of similar length and keeps the checkpoint that is best on the validation split;
the evaluation examples, which are the same for every strategy, are scored once at the end.

    # on a CPU, offline (after `python prepare_data.py demo`): about two minutes
    python finetune.py --model assets/models/all-MiniLM-L6-v2 --max_train_samples 2000 --epochs 2 --batch_size 32
    # on a GPU, from the hub
    python finetune.py --model distilbert-base-uncased --dataset glue --subset sst2 --epochs 3 --batch_size 16 --fp16
    # your own files, with or without a header line, any number of labels
    python finetune.py --train_file train.tsv --test_file test.tsv --columns text,label --label_words negative,positive
"""

import shutil

import evaluation
import models
import tasks
import training
import utils

LEARNING_RATE = 1e-4  # used with MiniLM; for BERT-base its paper (Devlin et al. 2019) has 2e-5 to 5e-5


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    parser.add_argument("--model", default="assets/models/all-MiniLM-L6-v2", help="hub name or folder (default: %(default)s)")
    training.add_training_args(parser, LEARNING_RATE)
    tasks.add_data_args(parser)
    utils.add_common_args(parser)
    return tasks.check_data_args(parser, parser.parse_args(argv))


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    models.check_names({"--model": args.model}, {"--dataset": tasks.source(args)})
    run = utils.Run(args, __file__, "full_finetuning", folder=training.find_resumable(args, __file__))

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        run.row.update(variant="full", model=args.model, metric="accuracy", data_seed=args.data_seed, device=device,
                       device_name=utils.device_name(device), precision=training.mixed_precision(args, device))  # fmt: skip

        # 3. data
        task = tasks.from_args(args)
        print(task.summary())
        tasks.require_kind(task, "classification", "fine-tuning")
        run.row.update(task.row())

        # 4. model
        tokenizer = utils.load_tokenizer(args.model, args.trust_remote_code)
        with utils.measure() as loading:
            model = models.load_model(args.model, "classifier", labels=task.labels, device=device, pad_token_id=tokenizer.pad_token_id,
                                      trust_remote_code=args.trust_remote_code)  # fmt: skip
        run.row.update(load_seconds=loading.seconds, **models.size_columns(model, trained=True))

        # 5. adapt
        training.train_classifier(model, tokenizer, task, args, run, device)
        model.save_pretrained(run.path("model"))
        tokenizer.save_pretrained(run.path("model"))
        run.row["artifact_mb"] = utils.folder_mb(run.path("model"))

        # 6. evaluate
        evaluation.evaluate_classifier(model, tokenizer, task, run, args.batch_size, args.latency_runs, args.max_length)

        # 7. row and report: written by leaving the block
        run.headline = f"trained in {run.row['train_seconds']:.0f} s"
        shutil.rmtree(run.path("checkpoints"))


if __name__ == "__main__":
    main()
