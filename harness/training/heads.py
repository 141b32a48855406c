"""A new classification head that starts as a logistic regression on the frozen model's features.

Fine-tuning from a random head first moves the features towards it, which costs steps and, with few labels, accuracy
(linear probing, then fine-tuning: Kumar et al. 2022, arXiv:2202.10054).
"""

import time
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from harness.data.examples import draw
from harness.models import batching, properties, scoring

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # inverse regularisation C, for features of mean square length 1 at most
FOLDS, ENOUGH = 3, 2  # labels of the rarest class from which on C is cross-validated
UNSEEN = -10.0  # bias of a class without an example
MOST = 5000  # examples that the regression is fitted on; fine-tuning sees the others


def output_layer(model):
    """The last linear layer of a new head, None for a head that came with its checkpoint or has another form."""
    found = None
    for name in getattr(model, "new_layers", []):
        for module in model.get_submodule(name).modules():
            if type(module) is torch.nn.Linear and module.out_features == model.config.num_labels:
                found = module
    return found


@torch.inference_mode()
def features(model, tokenizer, examples, layer, max_length=None):
    """What reaches the output layer for each example [N, H], without dropout, as float64."""
    place = next(name for name, module in model.named_modules() if module is layer)
    parent, _, last = place.rpartition(".")
    limit = scoring.classifier_length(model, tokenizer, max_length)
    pairs = None if examples[0].text_pair is None else [ex.text_pair for ex in examples]
    rows = tokenizer([ex.text for ex in examples], pairs, truncation=True, max_length=limit)
    lengths, result = [len(ids) for ids in rows["input_ids"]], [None] * len(examples)

    def work(batch):
        inputs = tokenizer.pad({name: [rows[name][i] for i in batch] for name in rows}, return_tensors="pt")
        for i, row in zip(batch, model(**inputs.to(model.device)).logits.double().cpu().numpy()):
            result[i] = row

    was_training = model.training
    model.eval()
    setattr(model.get_submodule(parent), last, torch.nn.Identity())  # heads then return their features as logits
    try:
        alike = model.config.model_type in properties.READS_PADDING
        batching.in_batches(lengths, "auto", 2 * batching.PACK_TOKENS[model.device.type], work, alike=alike)
    finally:
        setattr(model.get_submodule(parent), last, layer)
        model.train(was_training)
    return np.stack(result)


def regression(values, labels):
    """(weights [classes seen, H], biases, their classes) of a logistic regression; C by cross-validation."""
    plain = LogisticRegression(C=STRENGTHS[-2], max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if np.bincount(labels)[np.unique(labels)].min() >= ENOUGH:
            rarest = np.bincount(labels)[np.unique(labels)].min()
            split = StratifiedKFold(min(FOLDS, rarest), shuffle=True, random_state=0)
            search = GridSearchCV(plain, {"C": STRENGTHS}, cv=split, scoring="neg_log_loss")
            plain = search.fit(values, labels).best_estimator_
        else:
            plain.fit(values, labels)
    weights, biases = plain.coef_, plain.intercept_
    if len(weights) == 1:  # two classes share one row of weights
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    return weights, biases, plain.classes_


def start(model, tokenizer, task, args, run=None):
    """Set a new head's output layer to the regression on the training examples.

    run: its row's train_seconds grow by what this takes, and its note says so. A head that came with its checkpoint
    stays as it is.
    """
    layer = output_layer(model) if task.kind == "classification" else None
    examples = draw(task.train, min(len(task.train), MOST), args.seed)
    labels = np.array([ex.label for ex in examples])
    if layer is None or args.head_start == "random" or len(np.unique(labels)) < 2:
        return
    begin = time.perf_counter()
    values = features(model, tokenizer, examples, layer, args.max_length)
    if values.shape[1:] != (layer.in_features,):  # the architecture does more behind its output layer
        return
    mean = values.mean(0)
    # features that hardly differ would get weights so large that no learning rate suits both head and body
    scale = max(np.sqrt(((values - mean) ** 2).sum(1).mean()), 1.0)
    weights, biases, classes = regression((values - mean) / scale, labels)
    all_weights = np.zeros(tuple(layer.weight.shape))
    all_biases = np.full(len(all_weights), UNSEEN)
    all_weights[classes], all_biases[classes] = weights / scale, biases - weights @ mean / scale
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(all_biases))
        layer.weight.copy_(torch.as_tensor(all_weights))
    if run:
        run.row["train_seconds"] = (run.row.get("train_seconds") or 0.0) + time.perf_counter() - begin
        run.note("the head starts as a logistic regression on the frozen features")
