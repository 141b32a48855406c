"""A trained adapter evaluated as it is served: folded into its base where that is exact."""

import dataclasses

from harness.models import adapters

CHECKED = 32  # evaluation examples on which the merged model is compared with the adapter beside its base


def merged(run, model, task, evaluate):
    """(Outcome, model) after an adapter was merged; as it is where adapters.merges says no, or there is no adapter.

    Scores, times and memory are those of the merged model. The note says how many of the first CHECKED predictions
    differ from the unmerged adapter's.
    evaluate: (model, task, number of requests to time, None for that of the flags) -> Outcome.
    """
    before = None
    if adapters.merges(model):
        some = dataclasses.replace(task, evaluation=task.evaluation[:CHECKED])
        before = evaluate(model, some, 0).predictions
    model, remark = adapters.merge_adapter(model)
    run.note(remark)
    outcome = evaluate(model, task, None)
    if before is not None:
        differ = sum(one != other for one, other in zip(before, outcome.predictions))
        outcome.notes.append(f"{differ} of the first {len(before)} predictions differ from the unmerged adapter's")
    return outcome, model
