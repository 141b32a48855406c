"""Distillation: a teacher's targets, batches of them for a student without its prompt, and the losses."""

import contextlib
import dataclasses

import numpy as np
import torch
from torch.nn.functional import kl_div

import utils
from harness import flags
from harness.data import tasks, unlabelled
from harness.data.examples import draw
from harness.data.prompts import render
from harness.evaluation import metrics, prompting
from harness.models import batching, generation, prefix_cache, properties, scoring
from harness.training import collators

COMPARED = (
    "metric",
    "score",
    "score_low",
    "score_high",
    "score_ood",
    "latency_ms_p50",
    "cached_latency_ms_p50",
    "prompt_tokens",
    "reference_perplexity",
)
TOP_K = 64  # likeliest tokens that precomputed targets of answers keep at each position; the rest counts as one


def unlabelled_inputs(task, demonstrations, args):
    """At most --unlabelled Examples of the training split, whose labels are not looked at, or of --unlabelled_file;
    no demonstrations.
    """
    if args.unlabelled_file:
        tasks.require_kind(task, "classification", "--unlabelled_file")
        columns = args.text_column, args.text_pair_column, args.encoding
        seen = {ex.key() for ex in (*task.evaluation, *demonstrations)}
        others = unlabelled.read_inputs(args.unlabelled_file, task, *columns)
        others = [ex for ex in others if ex.key() not in seen]
    else:
        shown = {ex.id for ex in demonstrations}
        others = [*task.train, *task.unlabelled]
        others = [ex for ex in others if ex.id not in shown]
    examples = draw(others, min(args.unlabelled, len(others)), args.data_seed + 1, balanced=False)
    if len(examples) < 12:
        raise utils.UserError(
            f"{len(examples)} unlabelled inputs are left to learn from; context distillation needs at least twelve"
        )
    return examples


class Teacher:
    """The model with its demonstrations: it gives log-probabilities of labels, or answers and those of their tokens.

    student: set it to a PeftModel around the same base, whose adapter is then switched off while the teacher is asked.
    """

    def __init__(self, model, tokenizer, task, demonstrations, args, chat):
        self.model, self.tokenizer, self.task, self.chat, self.args = model, tokenizer, task, chat, args
        self.demonstrations, self.prefix, self.prior, self.student = demonstrations, None, 0.0, None
        self.new_tokens = prompting.answer_length(args, task)
        limit = properties.context_length(model)
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
        stop = prompting.task_stop(self.model, self.tokenizer, self.task, self.chat)
        with self.asked():
            return generation.generate(
                self.model, self.tokenizer, prompts, self.new_tokens, "auto", stop, not self.chat, "answering"
            ).ids

    def token_targets(self, examples, answers, top_k=None, progress=None):
        """For each answer the log-probabilities [T, V] at its tokens; with top_k the highest, tempered, and their ids
        [T, K].
        """
        prompts, _ = self.prompts(examples)
        rows = self.tokenizer(prompts, add_special_tokens=not self.chat, verbose=False).input_ids

        def kept(log_probs):
            if top_k is None:
                return log_probs.cpu()
            tempered = log_probs.div(self.args.temperature).log_softmax(-1)
            return tuple(x.cpu() for x in tempered.topk(min(top_k, log_probs.shape[1])))  # not the whole vocabulary

        with self.asked():
            return scoring.continuation_log_probs(self.model, rows, answers, kept, progress)


def label_rows(model, tokenizer, task, examples, chat):
    """The student's prompts as token ids, and the label words behind each: [N] dicts with input_ids and ends."""
    rendered = [render(task, ex, (), tokenizer if chat else None) for ex in examples]
    sets = [[separator + word for word in task.words] for _, separator in rendered]
    contexts, ends, _ = scoring.encode(model, tokenizer, [prompt for prompt, _ in rendered], sets, not chat)
    return [{"input_ids": context, "ends": some} for context, some in zip(contexts, ends)]


class LabelBatches:
    """Collates examples into rows padded on the left, one for each distinct beginning of a label, and where labels are
    read.

    teacher: None, or the function of examples that online targets come from.
    """

    def __init__(self, pad_id, teacher=None):
        self.pad_id, self.teacher = pad_id, teacher

    def __call__(self, items):
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
        log_probs = logits_of(model, batch).log_softmax(-1)  # [rows, kept, V]
        row, place, token, label = batch["picks"].T
        scores = torch.zeros(batch["labels"].numel(), device=log_probs.device)
        scores = scores.index_add(0, label, log_probs[row, -place, token]).view_as(batch["labels"])  # [B, L]
        student, teacher = (x.div(temperature).log_softmax(-1) for x in (scores, batch["labels"]))
        return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

    return loss


class AnswerBatches:
    """Collates the student's prompts with the teacher's answers; the teacher's distributions stand under "labels"."""

    def __init__(self, pad_id, teacher=None):
        self.pad_id, self.teacher = pad_id, teacher

    def __call__(self, items):
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
    """KL(teacher || student) at each token of the answers.

    Precomputed targets hold the TOP_K likeliest tokens; all others then count as one.
    """

    def loss(model, batch):
        out = logits_of(model, batch)  # [B, kept, V]
        sequence, place = batch["places"].T
        student = out[sequence, -place]  # [T, V]
        if "tokens" not in batch:
            student, teacher = (x.float().div(temperature).log_softmax(-1) for x in (student, batch["labels"]))
            return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

        def with_rest(log_probs):  # [T, K] -> [T, K + 1]
            rest = torch.log((1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=1e-6))
            return torch.cat([log_probs, rest], -1).log_softmax(-1)

        student = with_rest(student.div(temperature).log_softmax(-1).gather(1, batch["tokens"]))
        return kl_div(student, with_rest(batch["labels"]), reduction="batchmean", log_target=True) * temperature**2

    return loss


def head_loss(temperature):
    """KL(teacher || student) over the labels, of a classification head, times the squared temperature."""

    def loss(model, batch):
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits  # [B, L]
        student, teacher = (x.float().div(temperature).log_softmax(-1) for x in (logits, batch["labels"]))
        return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

    return loss


def head_data(model, tokenizer, task, pairs, n_validation, args, device):
    """collators.Data of [(Example, log-probabilities [L])] for a classification head; the first ones validate."""
    told = dataclasses.replace(
        task, train=pseudo_labelled(pairs[n_validation:]), validation=pseudo_labelled(pairs[:n_validation])
    )
    data = collators.classification_data(model, tokenizer, told, args, device)
    order = np.argsort(properties.label_order(model, task.labels))  # the task's label at each place of the head

    def with_targets(rows, some):
        targets = [[target[i] for i in order] for _, target in some]
        return rows and rows.remove_columns("labels").add_column("labels", targets)

    train, validation = (
        with_targets(data.train, pairs[n_validation:]),
        with_targets(data.validation, pairs[:n_validation]),
    )
    return collators.Data(train, validation, data.collate)


def pseudo_labelled(pairs):
    """[N] Examples with the teacher's likeliest label in place of their own. pairs: [(Example, log-probabilities)]."""
    return [dataclasses.replace(ex, label=max(range(len(target)), key=target.__getitem__)) for ex, target in pairs]


def logits_of(model, batch):
    """The student's logits at the last `kept` positions of each row, in fp32."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    return model(**inputs, logits_to_keep=batch["kept"]).logits.float()


def left_padded(rows, pad_id):
    """Token ids and mask [B, T] of rows that end together."""
    return batching.pad_rows(rows, pad_id, "cpu", left=True)


def own_data(student, teacher, tokenizer, task, examples, args, chat):
    """(collators.Data, loss) of a student that is the teacher's own model, of at most --max_validation_samples or a
    tenth of the inputs for validation. Inputs that the teacher does not answer are left out.
    """
    classes, online = task.kind == "classification", args.targets == "online"
    make = label_items if classes else answer_items
    items, targets = make(student, teacher, tokenizer, task, examples, args, chat)
    for i, item in enumerate(items):
        item.update({"example": examples[i]} if online else {"target": targets[i]})
    note = cut_prompts(items, student, args.max_length)
    items = [item for item in items if classes or item["answer"]]
    cap = flags.VALIDATION_CAP if args.max_validation_samples is None else args.max_validation_samples
    cut = min(len(items) // 10, cap)
    ask = (teacher.targets if classes else teacher.token_targets) if online else None
    batches = (LabelBatches if classes else AnswerBatches)(tokenizer.pad_token_id, ask)
    loss = (label_loss if classes else answer_loss)(args.temperature)
    return collators.Data(items[cut:], items[:cut] or None, batches, note), loss


def cut_prompts(items, student, max_length=None):
    """Cut the students' prompts to their last max_length tokens (512 by default), and to what its context leaves beside
    the answer or the longest label. Returns a note of how many; None where all fit.
    """
    most, context, n_cut = max_length or 512, properties.context_length(student), 0
    for item in items:
        rest = len(item["answer"]) if "answer" in item else max(map(len, item["ends"]))
        room = min(most, context - rest) if context else most
        n_cut += len(item["input_ids"]) > room
        item["input_ids"] = item["input_ids"][-max(room, 1) :]
    return f"{n_cut} inputs were cut to their last tokens to train the student, {most} at most" if n_cut else None


def label_items(student, teacher, tokenizer, task, examples, args, chat):
    """Classification: the student's rows, with the teacher's calibrated label distributions unless they come online."""
    online = args.targets == "online"
    # online, the teacher only needs them for its label prior
    asked = examples[: flags.CALIBRATION_CAP] if online else examples
    parts = utils.over_processes(lambda part: teacher.label_scores(part, "asking the teacher"), asked)
    raw = np.concatenate(parts)
    teacher.calibrate(raw)
    items = label_rows(student, tokenizer, task, examples, chat)
    return items, None if online else teacher.targets(examples, raw).tolist()


def answer_items(student, teacher, tokenizer, task, examples, args, chat):
    """Questions and instructions: the student's prompts with the teacher's answers, and their tokens' distributions."""
    answers = [ids for part in utils.over_processes(teacher.answers, examples) for ids in part]
    prompts = [render(task, ex, (), tokenizer if chat else None)[0] for ex in examples]
    prompt_ids = tokenizer(prompts, add_special_tokens=not chat, verbose=False).input_ids
    items = [{"input_ids": ids, "answer": answer} for ids, answer in zip(prompt_ids, answers)]
    if args.targets == "online":
        return items, None
    pairs = list(zip(examples, answers))
    asked = utils.over_processes(lambda part: teacher.token_targets(*zip(*part), TOP_K), pairs)
    return items, [target for part in asked for target in part]


def compare(run, sides, args):
    """comparison.json, and what the note and the summary line tell of teacher and untrained student.

    sides: {name: cells}, the distilled student last.
    """
    table = {name: {column: cells.get(column) for column in COMPARED} for name, cells in sides.items()}
    run.write_json("comparison.json", table)
    teacher, untrained = table["teacher"], table.get("untrained_student")
    for name, cells in list(table.items())[:-1]:
        interval = "" if cells["score_low"] is None else f"[{cells['score_low']:.3f}, {cells['score_high']:.3f}]"
        latency = f", {cells['latency_ms_p50']:.0f} ms" if cells["latency_ms_p50"] else ""
        run.note(f"{name.replace('_', ' ')}: {cells['metric']} {cells['score']:.3f} {interval}{latency}")
    run.headline = f"teacher {teacher['score']:.3f}" + (f", untrained {untrained['score']:.3f}" if untrained else "")
    if args.latency_runs:
        saved = teacher["latency_ms_p50"] - run.row["latency_ms_p50"]
        run.headline += f", {saved:.0f} ms a request saved"


def count_asking(run, asking, n):
    """Add what the teacher took to train_seconds. asking: the Measurement; n: inputs that it answered."""
    if n < 12:
        raise utils.RunFailed(
            f"the teacher answered only {n} of the inputs; try other demonstrations or a longer --max_new_tokens"
        )
    run.row["train_seconds"] = (run.row.get("train_seconds") or 0.0) + asking.seconds
    run.note(f"{n} unlabelled inputs; the teacher was asked for {asking.seconds:.0f} s of train_seconds")
