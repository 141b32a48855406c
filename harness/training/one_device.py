"""One process trains on one device, which the person chose."""

import contextlib

import torch

import utils


@contextlib.contextmanager
def kept():
    """The current GPU is the same behind the block, in which sentence-transformers makes arguments of its own."""
    gpu = utils.accelerator()
    chosen = gpu and gpu.current_device_index()
    try:
        yield
    finally:
        if gpu:
            gpu.set_device_index(chosen)


def arguments(kind, **options):
    """`kind(**options)`, transformers' TrainingArguments or a kind of them, for the current GPU alone.

    Without a launcher transformers takes cuda:0 and splits each batch over all GPUs that it sees (nn.DataParallel),
    which makes other batches, steps and memory than the flags say.
    """
    if utils.accelerator() is None or utils.world()[1] > 1:
        return kind(**options)
    with kept():
        made = kind(**options)
    if made.device.type in ("cuda", "xpu"):
        made._n_gpu = 1  # as transformers itself has it where a model is spread over devices
        chosen = torch.device(made.device.type, utils.accelerator().current_device_index())
        made.__dict__["_setup_devices"] = chosen  # what its cached property keeps
    return made
