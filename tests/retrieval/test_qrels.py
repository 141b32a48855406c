import pytest
from retrieval_helpers import SCIFACT

from harness.retrieval import qrels


@pytest.mark.real
@pytest.mark.skipif(not SCIFACT.is_dir(), reason="no shared data here")
def test_scifact_is_read_whole():
    documents, queries, judgements = qrels.load_beir(SCIFACT)
    assert (len(documents), len(queries), sum(map(len, judgements.values()))) == (5183, 300, 339)
