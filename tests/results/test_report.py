from row_helpers import result_row, rows_as_read

from harness.results import champions, compare, configurations, report


def test_a_study_is_what_differs_in_one_flag_alone(tmp_path):
    rows = [
        result_row(score=0.5 + rank / 100, seed=seed, variant=f"lora_r{rank}", flags={"rank": rank, "epochs": 2})
        for rank in (4, 8, 16)
        for seed in (0, 1)
    ]
    rows.append(result_row(score=0.9, variant="lora_r32", flags={"rank": 32, "epochs": 3}))
    ((flag, levels),) = compare.studies(configurations.group_seeds(rows_as_read(tmp_path, rows)))
    assert flag == "rank" and [level for level, _ in levels] == [4, 8, 16] and all(len(c.rows) == 2 for _, c in levels)


def precision_line(tmp_path, source):
    rows = [
        result_row(score=score, strategy="quantized", variant=name, flags={"precision": name}, model_source=source)
        for name, score in (("fp32", 0.9), ("int8", 0.8), ("nf4", 0.5))
    ]
    found = configurations.group_seeds(rows_as_read(tmp_path, rows))
    return report.effect(*compare.studies(found)[0])


def test_what_a_precision_costs_is_not_read_from_weights_that_were_quantized_before(tmp_path):
    scores = "- By precision (0-shot prompt, m): fp32: 0.900, int8: 0.800, nf4: 0.500."
    assert precision_line(tmp_path, "hub/m@1").startswith(f"{scores} Between nf4 and fp32: +0.400, p ")
    source = "Q4_1 weights de-quantized to bf16"
    shown = precision_line(tmp_path, source)
    assert shown == f"{scores} No precision's cost: these weights were quantized before ({source})."
    shown = precision_line(tmp_path, "")
    assert shown == f"{scores} No precision's cost: these rows do not say where the weights come from."


def test_strategies_with_other_labels_or_models_are_not_compared_as_if_they_were_alike(tmp_path):
    rows = [
        result_row(score=0.8, variant="full", labels_used=2000, score_low=0.78, score_high=0.82, train_seconds=9),
        result_row(score=0.6, strategy="peft", variant="lora_r8", labels_used=2000, score_low=0.58, score_high=0.62),
        result_row(score=0.5, strategy="prompting", variant="8_shot", labels_used=8, model="n", score_low=0.48),
    ]
    found = configurations.group_seeds(rows_as_read(tmp_path, rows))
    best, peft, prompting = report.between_strategies(champions.by_strategy(found))
    assert "Not like with like" not in best + peft
    assert prompting.endswith(" Not like with like: on n against m; with 8 labels against 2,000.")


def test_left_out_rows_are_a_short_line_each():
    lines = report.left_out([("b", "status oom: " + "x " * 200), ("c", "no score")])
    assert lines[0].startswith("b: status oom: x x") and lines[0].endswith(" ...") and len(lines[0]) <= 110
    assert lines[1] == "c: no score"


def test_degenerate_runs_are_told_and_are_not_the_best(tmp_path):
    rows = [
        result_row(score=0.64, variant="a", status="degenerate", note="all 100 predictions are class 1"),
        result_row(score=0.60, strategy="prompting", variant="0_shot", majority_baseline=0.64),
        *(
            result_row(score=score, strategy="peft", variant="lora_r8", seed=seed, train_seconds=9, status=status)
            for seed, (score, status) in enumerate(((0.63, "ok"), (0.36, "degenerate"), (0.36, "degenerate")))
        ),
    ]
    ((panel, members),) = configurations.panels(configurations.select(rows_as_read(tmp_path, rows))[0]).items()
    lines = report.findings(panel, configurations.group_seeds(members))
    assert lines[0].startswith("The highest score is that of **0-shot prompt, m**: accuracy 0.600")
    assert lines[1].endswith("(1 of 1 run degenerate); LoRA r=8, m (2 of 3 runs degenerate).")
    assert "LoRA r=8, m (0.450 ± 0.156" in "\n".join(lines)


def test_a_report_says_what_its_intervals_count(tmp_path):
    rows = [result_row(score=0.5 + seed / 100, seed=seed, train_seconds=9) for seed in range(3)]
    found = configurations.group_seeds(rows_as_read(tmp_path, rows))
    assert report.what_varies(found) == ["The standard deviation over seeds is 0.010 (2 degrees of freedom)."]
    two = configurations.group_seeds(found[0].rows[:2])
    assert report.what_varies(two)[0].startswith("There are too few repeated runs to know the variance over seeds")


def test_files_below_the_page_are_linked_relatively(tmp_path):
    assert str(report.link(tmp_path / "plots" / "a.png", tmp_path / "R.md")) == "plots/a.png"
    assert report.link(tmp_path / "a.png", tmp_path / "docs" / "R.md") == (tmp_path / "a.png").resolve()


def test_data_sets_of_one_name_are_told_apart_by_their_paths(tmp_path):
    rows = [result_row(score=0.5, dataset=f"{place}/d", eval_id=place, n_eval=n) for place, n in (("x", 9), ("y", 9))]
    rows += [result_row(score=0.5, dataset="z/d", eval_id="z", n_eval=8)]
    read = rows_as_read(tmp_path, rows)
    groups = {panel: configurations.group_seeds(some) for panel, some in configurations.panels(read).items()}
    report.write(tmp_path / "R.md", read, read, [], groups, {}, "r.csv", "command")
    headings = [line for line in (tmp_path / "R.md").read_text().splitlines() if line.startswith("## d")]
    assert headings == ["## d: accuracy, n = 9 (x/d)", "## d: accuracy, n = 9 (y/d)", "## d: accuracy, n = 8"]
