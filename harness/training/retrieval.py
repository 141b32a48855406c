"""Training an embedder or a reranker on Triples of questions and passages, by sentence-transformers' trainers.

Embedders learn by MultipleNegativesRankingLoss (Henderson et al. 2017): the right passage against the negatives and
the passages of the batch's other questions. Rerankers learn by binary cross-entropy on (question, passage) pairs.
"""

import math
import tempfile

import torch
from datasets import Dataset
from sentence_transformers import (
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import utils
from harness.training import one_device


def train_embedder(model, triples, args, prompts):
    """Train a SentenceTransformer in place; returns the mean loss. prompts: {True: of questions, False: of passages}.

    No batch holds a text twice, which would be its own negative.
    """
    columns = {"anchor": [t.question for t in triples], "positive": [t.positive for t in triples]}
    for i in range(len(triples[0].negatives)):
        columns[f"negative_{i + 1}"] = [t.negatives[i] for t in triples]
    texts = {name: prompts[name == "anchor"] for name in columns if prompts[name == "anchor"]}
    options = {"batch_sampler": BatchSamplers.NO_DUPLICATES, "prompts": texts or None}
    trainer = SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    return _train(trainer, model, columns, MultipleNegativesRankingLoss(model), args, options)


def train_reranker(model, triples, args):
    """Train a CrossEncoder of one output in place; returns the mean loss. A positive weighs as much as all its
    negatives.
    """
    pairs = [(t.question, t.positive, 1.0) for t in triples]
    pairs += [(t.question, text, 0.0) for t in triples for text in t.negatives]
    columns = dict(zip(("question", "passage", "label"), map(list, zip(*pairs))))
    weight = torch.tensor(float(len(triples[0].negatives)), device=model.device)
    loss = BinaryCrossEntropyLoss(model, pos_weight=weight)
    return _train((CrossEncoderTrainer, CrossEncoderTrainingArguments), model, columns, loss, args, {})


def _train(classes, model, columns, loss, args, options):
    trainer_class, arguments_class = classes
    with tempfile.TemporaryDirectory() as folder:
        settings = one_device.arguments(
            arguments_class,
            output_dir=folder,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_steps=args.warmup,  # below 1: a share of all steps
            weight_decay=0.01,
            bf16=args.bf16,
            use_cpu=model.device.type == "cpu",
            seed=args.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            **options,
        )
        data = Dataset.from_dict(columns)
        with one_device.kept():
            trainer = trainer_class(model=model, args=settings, train_dataset=data, loss=loss)
        trainer.remove_callback(trainer.model_card_callback_class)  # asks the model for examples of its card
        value = trainer.train().training_loss
    model.eval()
    if not math.isfinite(value):
        raise utils.RunFailed("the training loss is not a number; lower --learning_rate")
    return value
