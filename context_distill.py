"""Context distillation (Askell et al. 2021; Snell et al. 2022): what a k-shot prompt makes a model do goes into its weights.

The teacher is the model with k demonstrations in its prompt, the student the same model without them, trained to the teacher's
distribution over inputs whose labels nobody looks at: over the label words for classification (KL divergence, with the
teacher's answers calibrated if asked for), over the tokens of the teacher's own answers for question answering and
instructions. --targets precomputed asks the teacher once, --targets online in every step. Teacher, untrained student and
distilled student are scored on the same examples; the row is the distilled student's, the others are in comparison.json.

    # on a CPU, offline (after `python prepare_data.py demo`): some minutes
    python context_distill.py --model assets/models/SmolLM2-135M-Instruct --k_shots 8 --calibrate batch --unlabelled 1000 --epochs 1 \\
        --max_eval_samples 500
    # on a GPU, from the hub
    python context_distill.py --model meta-llama/Llama-2-7b-hf --dataset glue --subset mnli --k_shots 16 --bf16
"""

import contextlib
import copy
import functools
import shutil

import numpy as np

import utils
from harness import flags, hub
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import render
from harness.evaluation import evaluate, metrics, prompting
from harness.models import adapters, batching, generation, loading, prefix_cache, scoring
from harness.results.run import Run
from harness.training import collators, trainer

LEARNING_RATES = {"lora": 5e-4, "full": 2e-5}
TOP_K = (
    64  # of the vocabulary, that precomputed targets of generated answers keep at each token; the rest counts as one
)


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--model",
        default="assets/models/SmolLM2-135M-Instruct",
        help="a causal model: hub name or folder (default: %(default)s)",
    )
    group = parser.add_argument_group("teacher")
    group.add_argument(
        "--k_shots", type=flags.positive_int, default=8, metavar="K", help="demonstrations (default: %(default)s)"
    )
    group.add_argument(
        "--calibrate", choices=("none", "contextual", "batch"), default="none", help="of the teacher's label words"
    )
    group.add_argument(
        "--unlabelled",
        type=flags.positive_int,
        default=2000,
        metavar="N",
        help="at most so many training inputs to learn from, no demonstrations (default: %(default)s)",
    )
    group.add_argument(
        "--targets", choices=("precomputed", "online"), default="precomputed", help="(default: %(default)s)"
    )
    group.add_argument(
        "--temperature", type=flags.positive, default=1.0, help="of both distributions (default: %(default)s)"
    )
    group = parser.add_argument_group("student")
    group.add_argument(
        "--student", choices=tuple(LEARNING_RATES), default="lora", help="what is trained (default: %(default)s)"
    )
    group.add_argument(
        "--quantize",
        choices=("none", "int8", "nf4"),
        default="none",
        help="the frozen weights of teacher and LoRA student",
    )
    group.add_argument("--rank", type=flags.positive_int, default=8, help="of LoRA (default: %(default)s)")
    group.add_argument(
        "--alpha", type=flags.positive_int, help="updates are scaled by alpha / rank (default: twice the rank)"
    )
    group.add_argument(
        "--target_modules",
        default="all-linear",
        metavar="auto|attention|mlp|all-linear|A,B,..",
        help="(default: %(default)s)",
    )
    flags.add_training_args(parser, resume=False, padding_free=False)
    flags.add_data_args(parser)
    flags.add_common_args(parser)
    args = flags.check_training_args(parser, flags.check_data_args(parser, parser.parse_args(argv)))
    if args.quantize != "none" and args.student == "full":
        parser.error(f"--quantize {args.quantize} freezes the weights; train a LoRA student on them")
    return args


# ----------------------------------------------------------------------------------------------------------- the technique


class Teacher:
    """The model with its demonstrations: of examples it gives log-probabilities of labels, or answers and their tokens'.

    student: set it to a PeftModel around the same base, whose adapter is then switched off while the teacher is asked.
    """

    def __init__(self, model, tokenizer, task, demonstrations, args, chat):
        self.model, self.tokenizer, self.task, self.chat, self.args = model, tokenizer, task, chat, args
        self.demonstrations, self.prefix, self.prior, self.student = demonstrations, None, 0.0, None
        self.new_tokens = trainer.answer_length(args, task)
        limit = loading.context_length(model)
        self.room = limit and limit - (self.new_tokens if task.kind != "classification" else 16)

    def prompts(self, examples):
        """(texts, separator)."""
        return prompting.fit_prompts(self.task, examples, self.demonstrations, self.tokenizer, self.chat, self.room)[:2]

    @contextlib.contextmanager
    def asked(self):
        """The base as it was, without dropout and adapter, within the block."""
        if self.student is None:
            yield
            return
        training_now = self.student.training
        self.student.eval()
        with self.student.disable_adapter():
            yield
        self.student.train(training_now)

    def label_scores(self, examples, progress=None):
        """Log-probabilities [N, L], the prior not yet divided out."""
        prompts, separator = self.prompts(examples)
        labels = [separator + word for word in self.task.words]
        with self.asked():
            found = scoring.score_labels(
                self.model, self.tokenizer, prompts, labels, "auto", not self.chat, progress, self.prefix
            )
            if self.prefix is None and len(prompts) > 1:
                self.prefix = prefix_cache.prefill(self.model, found.prefix)
        return metrics.log_normalise(found.total)

    def calibrate(self, raw):
        """Set the log prior as prompt_eval.py does. raw: log-probabilities of many examples [N, L]."""
        prior = prompting.label_prior(self.args.calibrate, self.task)
        self.prior = prior(self.label_scores, raw) if prior else 0.0

    def targets(self, examples, raw=None):
        """Calibrated log-probabilities [N, L]. raw: the label_scores of the examples, where they are there."""
        return metrics.log_normalise((self.label_scores(examples) if raw is None else raw) - self.prior)

    def answers(self, examples):
        """Token ids of its greedy answers [N], each to its end-of-sequence token or stop string."""
        prompts, _ = self.prompts(examples)
        stop = prompting.answer_stop(self.model, self.tokenizer, self.task.kind, self.chat)
        with self.asked():
            return generation.generate(
                self.model, self.tokenizer, prompts, self.new_tokens, "auto", stop, not self.chat, "answering"
            ).ids

    def token_targets(self, examples, answers, top_k=None, progress=None):
        """For each answer log-probabilities [T, V] of its tokens; with top_k a pair [T, K]: the highest, tempered, and their ids."""
        prompts, _ = self.prompts(examples)
        rows = self.tokenizer(prompts, add_special_tokens=not self.chat, verbose=False).input_ids

        def kept(log_probs):
            if top_k is None:
                return log_probs
            return tuple(log_probs.div(self.args.temperature).log_softmax(-1).topk(min(top_k, log_probs.shape[1])))

        with self.asked():
            return scoring.continuation_log_probs(self.model, rows, answers, kept, progress)


def label_rows(model, tokenizer, task, examples, chat):
    """The student's prompts as token ids, and the label words behind each: [N] dicts with input_ids and ends."""
    rendered = [render(task, ex, (), tokenizer if chat else None) for ex in examples]
    sets = [[separator + word for word in task.words] for _, separator in rendered]
    contexts, ends, _ = scoring.encode(model, tokenizer, [prompt for prompt, _ in rendered], sets, not chat)
    return [{"input_ids": context, "ends": some} for context, some in zip(contexts, ends)]


class LabelBatches:
    """Collates examples: a row for each distinct beginning of a label, padded on the left, and where each label's tokens are read.

    teacher: None, or the function of examples that online targets come from.
    """

    def __init__(self, pad_id, teacher=None):
        self.pad_id, self.teacher = pad_id, teacher

    def __call__(self, items):
        import torch

        rows, picks = {}, []  # a pick: row, position from the row's end, token, label
        for b, item in enumerate(items):
            for label, end in enumerate(item["ends"]):
                row = rows.setdefault((b, *item["input_ids"], *end[:-1]), len(rows))
                picks += [(row, len(end) - t, token, b * len(item["ends"]) + label) for t, token in enumerate(end)]
        ids = [list(row[1:]) for row in rows]
        ids, mask = left_padded(ids, self.pad_id)
        targets = (
            self.teacher([item["example"] for item in items]) if self.teacher else [item["target"] for item in items]
        )
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "labels": torch.tensor(targets, dtype=torch.float32),
            "picks": torch.tensor(picks),
            "kept": max(pick[1] for pick in picks),
        }


def label_loss(temperature):
    """KL(teacher || student) over the label words, times the squared temperature (Hinton et al. 2015)."""

    def loss(model, batch):
        import torch
        from torch.nn.functional import kl_div

        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=batch["position_ids"],
                       logits_to_keep=batch["kept"]).logits.float().log_softmax(-1)  # [rows, kept, V] # fmt: skip
        row, place, token, label = batch["picks"].T
        scores = torch.zeros(batch["labels"].numel(), device=logits.device)
        scores = scores.index_add(0, label, logits[row, -place, token]).view_as(batch["labels"])  # [B, L]
        student, teacher = (x.div(temperature).log_softmax(-1) for x in (scores, batch["labels"]))
        return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

    return loss


class AnswerBatches:
    """Collates the student's prompts with the teacher's answers, whose distributions stand under "labels" in their order."""

    def __init__(self, pad_id, teacher=None):
        self.pad_id, self.teacher = pad_id, teacher

    def __call__(self, items):
        import torch

        ids, mask = left_padded([item["input_ids"] + item["answer"] for item in items], self.pad_id)
        places = [(b, len(item["answer"]) + 1 - t) for b, item in enumerate(items) for t in range(len(item["answer"]))]
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "places": torch.tensor(places),
            "kept": 1 + max(len(item["answer"]) for item in items),
        }
        if self.teacher:
            return {
                **batch,
                "labels": torch.cat(
                    self.teacher([item["example"] for item in items], [item["answer"] for item in items])
                ),
            }
        values, tokens = (torch.cat([item["target"][i] for item in items]) for i in (0, 1))
        return {**batch, "labels": values.float(), "tokens": tokens}


def answer_loss(temperature):
    """KL(teacher || student) at each token of the answers; of the likeliest tokens and all others as one where the rest is unknown."""

    def loss(model, batch):
        import torch
        from torch.nn.functional import kl_div

        out = model(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            logits_to_keep=batch["kept"],
        ).logits.float()
        sequence, place = batch["places"].T
        student = out[sequence, -place]  # [T, V]
        if "tokens" not in batch:
            student, teacher = (
                student.div(temperature).log_softmax(-1),
                batch["labels"].float().div(temperature).log_softmax(-1),
            )
            return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

        def with_rest(log_probs):  # [T, K] -> [T, K + 1]
            rest = torch.log((1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=1e-6))
            return torch.cat([log_probs, rest], -1).log_softmax(-1)

        student = with_rest(student.div(temperature).log_softmax(-1).gather(1, batch["tokens"]))
        return kl_div(student, with_rest(batch["labels"]), reduction="batchmean", log_target=True) * temperature**2

    return loss


def left_padded(rows, pad_id):
    """Token ids and mask [B, T] of rows that end together."""
    return batching.pad_rows(rows, pad_id, "cpu", left=True)


def distil(student, teacher, tokenizer, task, examples, args, run, device, chat, reload):
    """Train the student on the teacher's targets for examples whose labels are not looked at; a tenth chooses the checkpoint."""
    classes, online = task.kind == "classification", args.targets == "online"
    with utils.measure() as asking:
        if classes:
            some = examples[:256] if online else examples
            raw = np.concatenate(
                utils.over_processes(lambda part: teacher.label_scores(part, "asking the teacher"), some)
            )
            teacher.calibrate(raw)
            items = label_rows(student, tokenizer, task, examples, chat)
            targets = None if online else teacher.targets(examples, raw).tolist()
        else:
            answers = [ids for part in utils.over_processes(teacher.answers, examples) for ids in part]
            prompts = [render(task, ex, (), tokenizer if chat else None)[0] for ex in examples]
            items = [
                {"input_ids": ids, "answer": answer}
                for ids, answer in zip(
                    tokenizer(prompts, add_special_tokens=not chat, verbose=False).input_ids, answers
                )
            ]
            if not online:
                asked = utils.over_processes(
                    lambda part: teacher.token_targets(*zip(*part), TOP_K), list(zip(examples, answers))
                )
                targets = [found for part in asked for found in part]
    for i, item in enumerate(items):
        item.update({"example": examples[i]} if online else {"target": targets[i]})
        item["input_ids"] = item["input_ids"][-(args.max_length or 512) :]
    items = [item for item in items if classes or item["answer"]]
    if len(items) < 12:
        raise utils.RunFailed(
            f"the teacher answered only {len(items)} of the inputs; try other demonstrations or a longer --max_new_tokens"
        )
    run.note(f"{len(items)} unlabelled inputs; the teacher was asked for {asking.seconds:.0f} s")
    cut = min(
        len(items) // 10, flags.VALIDATION_CAP if args.max_validation_samples is None else args.max_validation_samples
    )
    ask = (teacher.targets if classes else teacher.token_targets) if online else None
    batches = (LabelBatches if classes else AnswerBatches)(tokenizer.pad_token_id, ask)
    data = collators.Data(items[cut:], items[:cut] or None, batches)
    rate = args.learning_rate or LEARNING_RATES[args.student]
    loss = (label_loss if classes else answer_loss)(args.temperature)
    return trainer.fit(student, tokenizer, data, args, run, device, rate, loss=loss, reload=reload)


def load_student(args, device, precision, folder):
    """A student that lies in a folder: the whole model, or an adapter for the base that is read again."""
    full = args.student == "full"
    model = loading.load_model(
        folder if full else args.model, precision=precision, device=device, trust_remote_code=args.trust_remote_code
    )
    return model if full else adapters.load_adapter(model, folder)


def measured(model, tokenizer, task, run, args, chat, other, demonstrations=(), calibrate="none"):
    """Score on the evaluation examples as prompt_eval.py does."""
    common = {"batch_size": "auto", "latency_runs": args.latency_runs, "chat": chat, "demonstrations": demonstrations}
    if task.kind == "classification":
        evaluate.evaluate_labels(
            model, tokenizer, task, run, **common, prior=prompting.label_prior(calibrate, task), other=other
        )
    else:
        evaluate.evaluate_answers(
            model, tokenizer, task, run, **common, max_new_tokens=trainer.answer_length(args, task)
        )
    names = (
        "metric",
        "score",
        "score_low",
        "score_high",
        "score_ood",
        "latency_ms_p50",
        "cached_latency_ms_p50",
        "prompt_tokens",
        "perplexity",
    )
    return {name: run.row.get(name) for name in names}


@utils.clean_exit
def main(argv=None):
    # 1. settings
    given, base = parse_args(argv), None
    hub.check_names({"--model": given.model}, {"--dataset": flags.source(given), "--eval_ood": given.eval_ood})
    for args in flags.repeats(given):
        run = Run(args, __file__, "context_distillation")

        with run:
            # 2. seed and device
            utils.set_seed(args.seed)
            device = utils.pick_device(args.device)
            trainer.check_device(args, device)
            precision = args.weights if args.quantize == "none" else args.quantize
            name = f"{args.k_shots}_shot" + ("" if args.calibrate == "none" else f"_{args.calibrate}_calibrated")
            name += f"_to_{args.student}" + (f"_r{args.rank}" if args.student == "lora" else "")
            run.row.update(
                variant=name + ("_online" if args.targets == "online" else ""),
                model=args.model,
                data_seed=args.data_seed,
                device=device,
                device_name=utils.device_name(device),
                k_shots=0,
                precision=precision,
            )

            # 3. data
            task = tasks.from_args(args)
            print(task.summary())
            if args.calibrate != "none":
                tasks.require_kind(task, "classification", "--calibrate")
            demonstrations = draw(task.train, args.k_shots, args.data_seed)
            taken = {ex.id for ex in demonstrations}
            examples = [ex for ex in task.train if ex.id not in taken]
            examples = draw(examples, min(args.unlabelled, len(examples)), args.data_seed + 1, balanced=False)
            other = tasks.out_of_domain(args, task)
            if len(examples) < 12:
                raise utils.UserError(
                    f"{len(examples)} unlabelled inputs are left to learn from; context distillation needs at least twelve"
                )
            run.row.update(task.row(), n_train=args.k_shots)

            # 4. model
            tokenizer = utils.load_tokenizer(args.model, args.trust_remote_code)
            with utils.measure() as load:
                base = base or loading.load_model(
                    args.model,
                    precision=precision,
                    device=device,
                    trust_remote_code=args.trust_remote_code,
                    attention=args.attn_implementation,
                )
                model = trainer.own_copy(base, args, given)
            if model.config.is_encoder_decoder:
                raise utils.UserError(
                    f"{args.model} is an encoder-decoder; context distillation here is for causal models"
                )
            chat = loading.uses_chat(args.prompt_format, tokenizer, scoring=task.kind == "classification")

            # 5. adapt
            compared = {
                "teacher": measured(
                    model, tokenizer, task, run.part("teacher"), args, chat, other, demonstrations, args.calibrate
                ),
                "untrained_student": measured(model, tokenizer, task, run.part("untrained"), args, chat, other),
            }
            apart = args.targets == "online" and args.student == "full"  # the teacher must stay as it is
            teacher = Teacher(copy.deepcopy(model) if apart else model, tokenizer, task, demonstrations, args, chat)
            student = model
            if args.student == "lora":
                import peft

                config = peft.LoraConfig(
                    task_type="CAUSAL_LM",
                    r=args.rank,
                    lora_alpha=args.alpha or 2 * args.rank,
                    lora_dropout=0.0,
                    target_modules=adapters.target_modules(model, args.target_modules),
                )
                student = teacher.student = peft.get_peft_model(model, config)
            run.row.update(**trainer.load_columns(load, given), **loading.size_columns(student, trained=True))
            whole = functools.partial(load_student, args, device, precision)
            student = distil(student, teacher, tokenizer, task, examples, args, run, device, chat, whole)
            folder = "adapter" if args.student == "lora" else "model"
            if run.main:
                student.save_pretrained(run.path(folder))
                tokenizer.save_pretrained(run.path(folder))
                run.row["artifact_mb"] = utils.folder_mb(run.path(folder), "*.safetensors")

            # 6. evaluate
            if args.student == "lora":
                if not adapters.changes_outputs(student, tokenizer):
                    run.row["status"] = "degenerate"
                    run.note("the adapter changed nothing")
                student, merged = adapters.merge_adapter(student)
                run.note(merged)
            compared["distilled_student"] = measured(student, tokenizer, task, run, args, chat, other)
            run.write_json("comparison.json", compared)
            for side in ("teacher", "untrained_student"):
                found = compared[side]
                interval = (
                    "" if found["score_low"] is None else f"[{found['score_low']:.3f}, {found['score_high']:.3f}]"
                )
                latency = f", {found['latency_ms_p50']:.0f} ms" if found["latency_ms_p50"] else ""
                run.note(f"{side.replace('_', ' ')}: {found['metric']} {found['score']:.3f} {interval}{latency}")

            # 7. row and report: written by leaving the block
            run.headline = (
                f"teacher {compared['teacher']['score']:.3f}, untrained {compared['untrained_student']['score']:.3f}"
            )
            if args.latency_runs:
                saved = compared["teacher"]["latency_ms_p50"] - run.row["latency_ms_p50"]
                run.headline += f", {saved:.0f} ms a request saved by the shorter prompt"
            if run.main:
                shutil.rmtree(run.path("checkpoints"))


if __name__ == "__main__":
    main()
