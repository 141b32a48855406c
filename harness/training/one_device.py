"""One process trains on one device, which the person chose."""


def of(training):
    """TrainingArguments for one GPU of those that are visible: without a launcher transformers would split each batch
    over all (nn.DataParallel), which makes other batches, steps and memory than the flags say.
    """
    if training.n_gpu > 1:
        training._n_gpu = 1  # as transformers itself has it where a model is spread over devices
    return training
