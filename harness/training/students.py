"""Students that are another model than their teacher: what the teacher says, and what each kind of them learns of it.

A classification head or a language model's label words learn the teacher's label distribution (Hinton et al. 2015);
answers are learnt from the texts that the teacher generates (sequence-level distillation, Kim & Rush 2016), which need
no common tokenizer.
"""

import argparse
import functools
from dataclasses import replace

import numpy as np

import utils
from harness import flags
from harness.models import engines, loading, scoring
from harness.training import collators, distillation, heads, trainer


def load_language_model(args, name, device, precision, engine=False):
    """A causal or sequence-to-sequence model by its name or folder. engine: it may be that of --engine."""
    options = {"trust_remote_code": args.trust_remote_code, "attention": trainer.scoring_attention(args, precision)}
    load = functools.partial(engines.load, args) if engine else loading.load_model
    return load(name, device=device, precision=precision, **options)


def ask(teacher, task, examples):
    """[(Example, target)] of the inputs that a distillation.Teacher answers: calibrated log-probabilities [L] of the
    labels, or the text of its answer.
    """
    if task.kind == "classification":
        parts = utils.over_processes(lambda part: teacher.label_scores(part, "asking the teacher"), examples)
        raw = np.concatenate(parts)
        teacher.calibrate(raw)
        return list(zip(examples, teacher.targets(examples, raw).tolist()))
    ids = [answer for part in utils.over_processes(teacher.answers, examples) for answer in part]
    texts = [text.strip() for text in teacher.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return [(ex, text) for ex, text in zip(examples, texts) if text]


def load(args, task, device, add_student):
    """(student, tokenizer, remark or None): --model, an encoder with a new head for classes, with an adapter on it for
    --student lora. UserError for an encoder that should generate answers.

    add_student: (model, args) -> (model, remark).
    """
    kind = loading.model_kind(args.model, args.trust_remote_code)
    tokenizer = loading.load_tokenizer(args.model, args.trust_remote_code, args.thinking)
    head = task.kind == "classification" and kind != "causal"
    if kind in ("encoder", "classifier") and not head:
        raise utils.UserError(
            f"--student {args.model} is an encoder, which generates no answers; name a language model"
        )
    if head and args.student == "lora":
        raise utils.UserError(f"--student lora is for causal models; to train {args.model}, name it with --student")
    if head:
        return trainer.load_base(with_head(args), task, tokenizer, device, args.weights), tokenizer, None
    model, remark = add_student(load_language_model(args, args.model, device, args.weights), args)
    return model, tokenizer, remark


def with_head(args):
    """`args` with what a script that trains heads has besides."""
    return argparse.Namespace(**{**vars(args), "head_reads": "auto", "head_start": "logreg"})


def has_head(model):
    """True if the student classifies by a head."""
    return not model.can_generate()


def prepare(student, tokenizer, task, pairs, args, run, device):
    """(collators.Data, loss or None for the model's own) of what `ask` returns; the first tenth validates, at most
    --max_validation_samples.

    A new head starts as a logistic regression on the teacher's likeliest labels.
    """
    cap = flags.VALIDATION_CAP if args.max_validation_samples is None else args.max_validation_samples
    n_validation = min(len(pairs) // 10, cap)
    if has_head(student):
        told = replace(task, train=distillation.pseudo_labelled(pairs))
        if args.max_length:  # saved with the tokenizer, so that whoever loads it cuts inputs alike
            tokenizer.model_max_length = scoring.classifier_length(student, tokenizer, args.max_length)
        heads.start(student, tokenizer, told, with_head(args), run)
        data = distillation.head_data(student, tokenizer, task, pairs, n_validation, args, device)
        return data, distillation.head_loss(args.temperature)
    chat = loading.uses_chat(args.prompt_format, tokenizer, scoring=task.kind == "classification")
    if task.kind == "classification":
        items = distillation.label_rows(student, tokenizer, task, [ex for ex, _ in pairs], chat)
        for item, (_, target) in zip(items, pairs):
            item["target"] = target
        note = distillation.cut_prompts(items, student, args.max_length)
        batches = distillation.LabelBatches(tokenizer.pad_token_id)
        data = collators.Data(items[n_validation:], items[:n_validation] or None, batches, note)
        return data, distillation.label_loss(args.temperature)
    answered = [replace(ex, references=(text,)) for ex, text in pairs]
    told = replace(task, train=answered[n_validation:], validation=answered[:n_validation])
    padded = argparse.Namespace(**{**vars(args), "padding_free": False})
    return collators.answer_data(student, tokenizer, told, padded, chat), None
