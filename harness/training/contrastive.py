"""SetFit's first stage: a sentence encoder trained on pairs of labelled texts (Tunstall et al. 2022, arXiv:2209.11055).

Texts of one class are drawn together and texts of two classes apart, by the cosine of their vectors. The pairs, the
loss and the training are the setfit package's.
"""

import tempfile

import setfit
from setfit import logging

import utils

BATCH, RATE, ROUNDS = 16, 2e-5, 20  # pairs a step, learning rate, pairs of each kind a text: the paper's
MOST_TEXTS = 5000  # setfit 1.2 lists all pairs first: 12 million of so many texts


def tune(encoder, texts, labels, seed, rounds=ROUNDS, learning_rate=RATE):
    """Train a SentenceTransformer in place on texts [N] with labels [N]: `rounds` * N pairs of one class and as many of
    two, once. Returns the number of steps. UserError for more than MOST_TEXTS.
    """
    if len(texts) > MOST_TEXTS:
        raise utils.UserError(
            f"--tune contrastive is for few labels, at most {MOST_TEXTS}, not {len(texts)}; give --label_budget"
        )
    logging.set_verbosity_error()
    steps = -(-2 * rounds * len(texts) // BATCH)
    with tempfile.TemporaryDirectory() as folder:
        args = setfit.TrainingArguments(
            output_dir=folder,
            batch_size=BATCH,
            num_epochs=1,
            num_iterations=rounds,
            max_steps=steps,  # bounds the pairs that are listed, too
            body_learning_rate=learning_rate,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            show_progress_bar=False,
        )
        trainer = setfit.Trainer(model=setfit.SetFitModel(model_body=encoder), args=args)
        trainer.train_embeddings(texts, labels, args=args)
    encoder.eval()
    return steps
