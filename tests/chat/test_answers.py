from harness.chat import answers


def test_two_systems_never_have_one_name():
    found = answers.names_of([("org1/m", None), ("org2/m", None), ("org1/m", "runs/x/adapter"), ("b/reference", None)])
    assert found == {
        ("org1/m", None): "org1_m",
        ("org2/m", None): "org2_m",
        ("org1/m", "runs/x/adapter"): "m+x",
        ("b/reference", None): "b_reference_",
    }
