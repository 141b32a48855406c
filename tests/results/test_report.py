from helpers import result_row, rows_as_read

from harness.results import compare, configurations


def test_a_study_is_what_differs_in_one_flag_alone(tmp_path):
    rows = [
        result_row(score=0.5 + rank / 100, seed=seed, variant=f"lora_r{rank}", flags={"rank": rank, "epochs": 2})
        for rank in (4, 8, 16)
        for seed in (0, 1)
    ]
    rows.append(result_row(score=0.9, variant="lora_r32", flags={"rank": 32, "epochs": 3}))
    ((flag, levels),) = compare.studies(configurations.group_seeds(rows_as_read(tmp_path, rows)))
    assert flag == "rank" and [level for level, _ in levels] == [4, 8, 16] and all(len(c.rows) == 2 for _, c in levels)
