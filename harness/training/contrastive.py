"""SetFit's first stage: a sentence encoder trained on pairs of labelled texts (Tunstall et al. 2022, arXiv:2209.11055).

Texts of one class are drawn together and texts of two classes apart, by the cosine of their vectors. The pairs, the
loss and the training are the setfit package's.
"""

import contextlib
import functools
import math
import tempfile

import setfit
from setfit import logging

import utils
from harness.arguments import PAIRS, PAIRS_A_STEP, setfit_steps
from harness.training import one_device

RATE = 2e-5  # the paper's
MOST_TEXTS = 5000  # setfit 1.2 lists all pairs first: 12 million of so many texts


def tune(encoder, texts, labels, seed, max_steps=None):
    """Train a SentenceTransformer in place on texts [N] with labels [N]: PAIRS * N pairs once, half of them of one
    class, or max_steps if that is less. Returns the number of steps. UserError for more than MOST_TEXTS.
    """
    if len(texts) > MOST_TEXTS:
        raise utils.UserError(
            f"--tune contrastive is for few labels, at most {MOST_TEXTS}, not {len(texts)}; give --label_budget"
        )
    logging.set_verbosity_error()
    steps = min(setfit_steps(len(texts)), max_steps or math.inf)
    with tempfile.TemporaryDirectory() as folder:
        args = setfit.TrainingArguments(
            output_dir=folder,
            batch_size=PAIRS_A_STEP,
            num_epochs=1,
            num_iterations=PAIRS // 2,
            max_steps=steps,  # bounds the pairs that are listed, too
            body_learning_rate=RATE,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            show_progress_bar=False,
        )
        with _on(encoder.device), one_device.kept():
            trainer = setfit.Trainer(model=setfit.SetFitModel(model_body=encoder), args=args)
        trainer.train_embeddings(texts, labels, args=args)
    encoder.eval()
    return steps


@contextlib.contextmanager
def _on(device):
    """setfit's trainer of pairs takes all GPUs where there are some, and has no setting for another device."""
    usual = setfit.trainer.SentenceTransformerTrainingArguments
    ours = functools.partial(one_device.arguments, usual, use_cpu=device.type == "cpu")
    setfit.trainer.SentenceTransformerTrainingArguments = ours
    try:
        yield
    finally:
        setfit.trainer.SentenceTransformerTrainingArguments = usual
