"""The curves of one training run as a PNG."""

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a $ in a name begins no formula
import matplotlib.pyplot as plt  # noqa: E402


def training_curves(history, path, title):
    """Training loss, validation loss and validation accuracy over the optimizer steps.

    history: the log of transformers' Trainer, [{"step": n, "loss" | "eval_loss" | "eval_accuracy": value, ..}].
    """
    figure, axis = plt.subplots(figsize=(8.3, 4.6), layout="constrained")
    for key, label in (
        ("loss", "training loss"),
        ("eval_loss", "validation loss"),
        ("eval_accuracy", "validation accuracy"),
    ):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axis.plot(*zip(*points), marker="o" if len(points) < 20 else None, label=label)
    axis.set(xlabel="optimizer step", title=title)
    if axis.lines:
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
