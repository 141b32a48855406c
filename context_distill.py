"""Distillation: into a model what a k-shot prompt does, or into a small model what a larger one knows.

Context distillation (Askell et al. 2021; Snell et al. 2022): the teacher is the model with k demonstrations in its
prompt. The student is the same model without them, trained to the teacher's distribution over inputs whose labels are
not used: over the label words for classification (KL divergence; the teacher's label prior divided out with
--calibrate), over the tokens of the teacher's own answers for questions and instructions. --targets precomputed asks
the teacher once, --targets online in every step. Teacher, untrained student and distilled student are scored on the
same examples; the row is the distilled student's, comparison.json has all three. --label_budget N without --k_shots
chooses the teacher's demonstrations and calibration on the N labels.

With --teacher MODEL or --student MODEL teacher and student are two models (Hinton et al. 2015). For classification the
student may be an encoder, whose head learns the teacher's label distribution; questions and instructions are learnt
from the answers that the teacher generates (Kim & Rush 2016). train_seconds count what the teacher takes.

    # on a CPU, offline (after `python prepare_data.py demo`): some minutes
    python context_distill.py --model assets/models/SmolLM2-135M-Instruct --k_shots 8 --calibrate batch \\
        --unlabelled 1000 --epochs 1 --max_eval_samples 500
    # a sentence encoder that learns from a language model's zero-shot answers, without any label
    python context_distill.py --student assets/models/all-MiniLM-L6-v2 --calibrate batch --unlabelled 1000 \\
        --max_eval_samples 400
    # on a GPU, from the hub
    python context_distill.py --teacher Qwen/Qwen3-8B --student Qwen/Qwen3-0.6B --dataset squad --bf16
    python context_distill.py --model meta-llama/Llama-2-7b-hf --dataset glue --subset mnli --k_shots 16 --bf16
"""

import argparse
import copy
import functools
import shutil
from pathlib import Path

import utils
from harness import engine_flags, flags, hub
from harness.results.run import Run

LEARNING_RATES = {"lora": 5e-4, "full": 2e-5}
HEAD_RATE = 1e-4  # of a classification head, as in finetune.py
K_SHOTS = 8  # of a teacher that is the student's own model
EPOCHS = 3  # the targets are distributions over many inputs, not a few labels


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--model",
        default="assets/models/SmolLM2-135M-Instruct",
        help="a causal model: hub name or folder (default: %(default)s)",
    )
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher", metavar="MODEL", help="another model as the teacher (default: --model)")
    group.add_argument(
        "--k_shots",
        type=flags.whole_number,
        metavar="K",
        help=f"demonstrations (default: {K_SHOTS}, of another model 0; with --label_budget chosen on its labels)",
    )
    group.add_argument(
        "--calibrate",
        choices=("none", "contextual", "batch"),
        help="of the teacher's label words; batch: on the unlabelled inputs (default: none; with --label_budget and no "
        "--k_shots chosen on its labels)",
    )
    group.add_argument(
        "--unlabelled",
        type=flags.positive_int,
        default=2000,
        metavar="N",
        help="at most so many training inputs to learn from, no demonstrations (default: %(default)s)",
    )
    group.add_argument(
        "--unlabelled_file",
        metavar="FILE",
        help="classification: take them from a file, a .txt or a table of texts, instead of the training split",
    )
    group.add_argument(
        "--targets", choices=("precomputed", "online"), default="precomputed", help="(default: %(default)s)"
    )
    group.add_argument(
        "--temperature", type=flags.positive, default=1.0, help="of both distributions (default: %(default)s)"
    )
    group = parser.add_argument_group("student")
    group.add_argument(
        "--student",
        default="lora",
        metavar="lora|full|MODEL",
        help="what is trained: an adapter on --model, all of it, or all of another model (default: %(default)s)",
    )
    group.add_argument(
        "--quantize",
        choices=("none", "int8", "nf4"),
        default="none",
        help="the frozen weights of teacher and LoRA student",
    )
    group.add_argument("--rank", type=flags.small_count, default=8, help="of LoRA (default: %(default)s)")
    group.add_argument(
        "--alpha", type=flags.positive_int, help="updates are scaled by alpha / rank (default: twice the rank)"
    )
    group.add_argument(
        "--target_modules",
        default="all-linear",
        metavar="auto|attention|mlp|all-linear|A,B,..",
        help="(default: %(default)s)",
    )
    engine_flags.add_engine_args(parser, "the teacher", compares=False)
    flags.add_training_args(parser, resume=False, padding_free=False, tune=False)
    parser.set_defaults(epochs=EPOCHS)
    flags.add_data_args(parser)
    flags.add_common_args(parser)
    args = flags.check_training_args(parser, flags.check_data_args(parser, parser.parse_args(argv)))
    if args.quantize != "none" and args.student == "full":
        parser.error(f"--quantize {args.quantize} freezes the weights; train a LoRA student on them")
    if two_models(args) and args.targets == "online":
        parser.error(
            "--targets online is for a student of the teacher's own model; another one learns from its answers"
        )
    check_student(parser, args)
    engine_flags.check_engine_args(parser, args)
    if args.engine != "hf" and not two_models(args):
        parser.error("--engine asks a teacher that is another model: give --teacher, or a --student MODEL")
    if args.k_shots == 0 and not two_models(args):
        parser.error("--k_shots 0: without demonstrations the model has nothing to learn from itself")
    if not searches(args):
        usual = 0 if two_models(args) else K_SHOTS
        args.k_shots = usual if args.k_shots is None else args.k_shots
        args.calibrate = args.calibrate or "none"
    return args


def check_student(parser, args):
    """Refuse flags that this student has no use for."""
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    named, lora = args.student not in LEARNING_RATES, args.student == "lora"
    unused = {
        "rank, alpha and target_modules are of --student lora": () if lora else ("rank", "alpha", "target_modules"),
        "--student MODEL is trained whole, of --teacher": ("model",) if named and args.teacher else (),
        "the weights of a student are not quantized here": ("quantize",) if two_models(args) and lora else (),
    }
    for reason, names in unused.items():
        if given & set(names):
            parser.error(f"--{min(given & set(names))}: {reason}")


def two_models(args):
    """True if teacher and student are two models."""
    return args.teacher is not None or args.student not in LEARNING_RATES


def searches(args):
    """True if the teacher's prompt is chosen on the labels of --label_budget."""
    return args.label_budget is not None and args.k_shots is None


# -------------------------------------------------------------------------------------------------------- the technique


def add_student(model, args):
    """(student, remark for the row): the model itself, or the frozen model with a new LoRA adapter."""
    if args.student != "lora":
        return model, None
    return layers.add_lora(
        model,
        args.target_modules,
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=args.alpha or 2 * args.rank,
        lora_dropout=0.0,
    )


def chosen_teacher(args, run, task, model, tokenizer, chat):
    """(args with the calibration, demonstrations) of the best prompt of the label budget; see prompt_search.

    It has demonstrations, unless the student is another model: without any there is nothing to distil.
    """
    few_shot.check_enough_labels(args, task)
    chosen = prompt_search.choose(
        model,
        tokenizer,
        task,
        args.data_seed,
        chat,
        likelihood=task.kind == "classification",
        calibrations=(args.calibrate,) if args.calibrate else None,
        least=0 if two_models(args) else 1,
    )
    run.use_labels(chosen.used)
    run.note(chosen.note)
    run.row.update(n_train=len(chosen.demonstrations), train_seconds=chosen.seconds)
    return argparse.Namespace(**{**vars(args), "calibrate": chosen.calibrate}), chosen.demonstrations


def load_student(args, device, precision, folder):
    """A student from a folder: the whole model, or its adapter on the base loaded again."""
    full = args.student == "full"
    model = loading.load_model(
        folder if full else args.model, precision=precision, device=device, trust_remote_code=args.trust_remote_code
    )
    return model if full else adapters.load_adapter(model, folder)


def evaluate_prompted(model, tokenizer, task, args, chat, other, demonstrations=(), prior=None, latency_runs=None):
    """The Outcome on the evaluation examples, prompted as prompt_eval.py prompts. prior: as for by_likelihood.

    latency_runs: requests to time; None: --latency_runs.
    """
    timed = args.latency_runs if latency_runs is None else latency_runs
    common = {"batch_size": "auto", "latency_runs": timed, "chat": chat, "demonstrations": demonstrations}
    if task.kind == "classification":
        return evaluate.by_likelihood(model, tokenizer, task, **common, prior=prior, other=other)
    length = prompting.answer_length(args, task)
    return evaluate.by_generation(model, tokenizer, task, **common, max_new_tokens=length)


def variant(args):
    """The row's variant: 8_shot_batch_calibrated_to_lora_r8, .."""
    name = "searched" if searches(args) else f"{args.k_shots}_shot"
    name += "" if args.calibrate in (None, "none") else f"_{args.calibrate}_calibrated"
    student = args.student if args.student in LEARNING_RATES else Path(args.student).name
    name += f"_to_{student}" + (f"_r{args.rank}" if args.student == "lora" else "")
    return name + ("_online" if args.targets == "online" else "")


def own_student(args, run, task, model, tokenizer, demonstrations, examples, device, chat):
    """The trained student of a teacher that is the same model with demonstrations; a tenth of the inputs chooses the
    checkpoint.
    """
    apart = args.targets == "online" and args.student == "full"  # the teacher must stay as it is
    base = copy.deepcopy(model) if apart else model
    teacher = distillation.Teacher(base, tokenizer, task, demonstrations, args, chat)
    student, remark = add_student(model, args)
    run.note(remark)
    teacher.student = student if args.student == "lora" else None
    run.row.update(properties.size_columns(student, trained=True))
    with utils.measure() as asking:
        data, loss = distillation.own_data(student, teacher, tokenizer, task, examples, args, chat)
    distillation.count_asking(run, asking, len(data.train) + len(data.validation or ()))
    args = trainer.with_epochs(args, len(data.train), task.kind)
    rate = args.learning_rate or LEARNING_RATES[args.student]
    reload = functools.partial(load_student, args, device, run.row["precision"])
    return trainer.fit(student, tokenizer, data, args, run, device, rate, loss=loss, reload=reload)


def other_student(args, run, task, pairs, device, kept):
    """(trained student, its tokenizer) of another model's targets. args.model: the student; pairs: of students.ask;
    kept: a Forgetting, which measures a language model before it is trained.
    """
    with utils.measure() as load:
        student, tokenizer, remark = students.load(args, task, device, add_student)
    run.note(remark)
    run.row.update(**load.load_columns(), **properties.size_columns(student, trained=True))
    if not students.has_head(student):
        kept.measure(student, tokenizer)
    data, loss = students.prepare(student, tokenizer, task, pairs, args, run, device)
    rate = args.learning_rate or LEARNING_RATES["lora" if args.student == "lora" else "full"]
    if students.has_head(student):
        rate = trainer.learning_rate(args, task, HEAD_RATE)
    args = trainer.with_epochs(args, len(data.train), task.kind)
    return trainer.fit(student, tokenizer, data, args, run, device, rate, loss=loss), tokenizer


def run_once(args):
    # 1. settings
    run = Run(args, __file__, "distillation" if two_models(args) else "context_distillation")
    of_teacher, of_student = args.teacher or args.model, args.model if args.student in LEARNING_RATES else args.student

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        trainer.check_device(args, device)
        precision = args.weights if args.quantize == "none" else args.quantize
        run.row.update(
            variant=variant(args),
            model=of_student,
            data_seed=args.data_seed,
            **utils.device_columns(device),
            k_shots=0,
            precision=args.weights if two_models(args) else precision,
        )

        # 3. data
        task = tasks.from_args(args)
        print(task.summary())
        if args.calibrate not in (None, "none"):
            tasks.require_kind(task, "classification", "--calibrate")
        if two_models(args) and args.temperature != 1:
            tasks.require_kind(task, "classification", "--temperature of two models")
        demonstrations = draw(task.train, args.k_shots or 0, args.data_seed)
        run.use_labels(demonstrations)
        examples = distillation.unlabelled_inputs(task, demonstrations, args)
        other = tasks.out_of_domain(args, task)
        run.row.update(task.row(), n_train=args.k_shots)

        # 4. model
        tokenizer = loading.load_tokenizer(of_teacher, args.trust_remote_code, args.thinking)
        with utils.measure() as load:
            model = students.load_language_model(args, of_teacher, device, precision, engine=two_models(args))
        run.row.update(load.load_columns())
        run.note(f"the teacher is asked by {model.name}" if engines.is_engine(model) else None)
        if engines.is_engine(model) and task.kind == "classification" and not model.tells_likelihoods:
            raise utils.UserError("--engine: this server tells no log-probabilities, which the student learns from")
        if model.config.is_encoder_decoder and not two_models(args):
            raise utils.UserError(f"{args.model} is an encoder-decoder; context distillation here is for causal models")
        if args.student == "full" and not two_models(args):
            precisions.check_trainable(model, args.model)
        chat = loading.uses_chat(args.prompt_format, tokenizer, scoring=task.kind == "classification")

        # 5. adapt
        if searches(args):
            args, demonstrations = chosen_teacher(args, run, task, model, tokenizer, chat)
            examples = distillation.unlabelled_inputs(task, demonstrations, args)
        prior = prompting.label_prior(args.calibrate, task, examples[: flags.CALIBRATION_CAP])
        outcome = evaluate_prompted(model, tokenizer, task, args, chat, other, demonstrations, prior)
        sides = {"teacher": record.side(run, task, outcome, "teacher", other)}
        args.model, kept = of_student, forgetting.Forgetting(args, run)
        if two_models(args):
            run.note(f"teacher {of_teacher}")
            with utils.measure() as asking:
                teacher = distillation.Teacher(model, tokenizer, task, demonstrations, args, chat)
                pairs = students.ask(teacher, task, examples)
            distillation.count_asking(run, asking, len(pairs))
            if engines.is_engine(model):
                model.close()
            del outcome, teacher, model  # the Outcome can ask the model for answers out of domain
            utils.free_memory()
            student, tokenizer = other_student(args, run, task, pairs, device, kept)
        else:
            outcome = evaluate_prompted(model, tokenizer, task, args, chat, other)
            sides["untrained_student"] = record.side(run, task, outcome, "untrained", other)
            kept.measure(model, tokenizer)
            student = own_student(args, run, task, model, tokenizer, demonstrations, examples, device, chat)
            del model  # what answers a request is the student alone
        if not students.has_head(student):
            kept.measure(student, tokenizer)
            kept.record(run)
        folder = "adapter" if args.student == "lora" else "model"
        if run.main:
            student.save_pretrained(run.path(folder))
            tokenizer.save_pretrained(run.path(folder))
            run.row["artifact_mb"] = utils.folder_mb(run.path(folder), "*.safetensors")
        if args.student == "lora" and not adapters.changes_outputs(student, tokenizer):
            run.row["status"] = "degenerate"
            run.note("the adapter changed nothing")

        # 6. evaluate: as it is served, merged where that is exact
        chat = loading.uses_chat(args.prompt_format, tokenizer, scoring=task.kind == "classification")

        def evaluated(model, task, latency_runs):
            if students.has_head(model):
                return evaluate.by_head(model, tokenizer, task, 32, latency_runs, args.max_length, other)
            return evaluate_prompted(model, tokenizer, task, args, chat, other, latency_runs=latency_runs)

        outcome, student = serving.merged(run, student, task, evaluated)

        # 7. row and report: the row is written by leaving the block
        record.outcome(run, task, outcome, student, other)
        distillation.compare(run, {**sides, "distilled_student": run.row}, args)
        if run.main:
            shutil.rmtree(run.path("checkpoints"))


def import_heavy():
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once."""
    global adapters, distillation, draw, engines, evaluate, few_shot, forgetting, layers, loading, precisions
    global prompt_search, prompting, properties, record, serving, students, tasks, trainer
    from harness.data import tasks
    from harness.data.examples import draw
    from harness.evaluation import evaluate, few_shot, forgetting, prompt_search, prompting, record, serving
    from harness.models import adapters, engines, layers, loading, precisions, properties
    from harness.training import distillation, students, trainer


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    student = None if args.student in LEARNING_RATES else args.student
    models = {"--model": args.model if args.teacher is None or student is None else None}
    models |= {"--teacher": args.teacher, "--student": student}
    hub.check_names(models, {"--dataset": flags.source(args), "--eval_ood": args.eval_ood})
    import_heavy()
    for once in flags.repeats(args):
        run_once(once)


if __name__ == "__main__":
    main()
