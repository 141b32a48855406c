import pytest
from row_helpers import result_row, results_csv

from harness.results import configurations, store
from harness.selector import lessons


def test_the_mean_counts_and_not_the_best_one(tmp_path):
    """Averages over the configurations of a strategy; of a trained one those with the most labels."""
    rows = [
        result_row(score=0.8, strategy="rag", variant="k4_flat", flags={"k": 4}),
        result_row(score=0.4, strategy="rag", variant="k1_flat", flags={"k": 1}),
        result_row(score=0.7, strategy="prompting", variant="0_shot"),
        result_row(score=0.5, strategy="peft", variant="lora_r8", n_train=100),
        result_row(score=0.9, strategy="peft", variant="lora_r8", n_train=500, flags={"max_train_samples": 500}),
        result_row(score=0.6, n_train=100),
    ]
    kept, _ = configurations.select(store.read_results(results_csv(tmp_path / "r.csv", rows)))
    by_strategy = {}
    for c in configurations.group_seeds(kept):
        by_strategy.setdefault(c["strategy"], []).append(c)

    def gap(first, second):
        return lessons.difference(by_strategy.get(first, []), by_strategy.get(second, []))

    error = 0.05 / 1.96 * 2**0.5  # every row has an interval of 0.05 to each side
    assert gap("rag", "prompting") == pytest.approx((-0.1, error))
    assert gap("peft", "prompting") == pytest.approx((0.2, error))
    assert gap("peft", "full_finetuning") == pytest.approx((-0.1, error)), "both with 100 labels"
    assert gap("peft", "quantized") is None
