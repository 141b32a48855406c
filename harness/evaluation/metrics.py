"""Scores of predictions, answers and rankings."""

import collections
import re
import statistics
import string

import numpy as np
from rouge_score import rouge_scorer, tokenizers
from scipy.special import logsumexp
from sklearn.metrics import f1_score, ndcg_score

from harness.data.script_tokens import other_script, script_tokens
from harness.results import stats

# a number with a sign or a decimal point keeps them: without, 3.5 would be 35 and -5 would be 5. Not a part of a word
# (F-16), of a range (1990-2000) or of a date (1.2.2003)
NUMBER = (
    r"(?<![\w.])(?:[-\u2212]\$?)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))(?![.,]?[0-9])"
)
NUMBER_OR_PUNCTUATION = re.compile(rf"({NUMBER})|[{re.escape(string.punctuation)}]")


def accuracy(predictions, targets):
    """Share of equal pairs. A prediction of None (an answer that could not be read) counts as wrong."""
    return float(np.mean([p == t for p, t in zip(predictions, targets, strict=True)]))


def macro_f1(predictions, targets, n_labels):
    """Mean over the label set of the per-class F1 (scikit-learn); None is a prediction of no class."""
    filled = [-1 if p is None else p for p in predictions]
    return float(f1_score(targets, filled, labels=list(range(n_labels)), average="macro", zero_division=0))


def _plain_number(text):
    """A number without grouping, currency and zeros that say nothing: "1,000.50" -> "1000.5", "18.00" -> "18"."""
    digits = text.lstrip("-\u2212$").replace(",", "")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".") or "0"
        digits = f"0{digits}" if digits.startswith(".") else digits
    return f"-{digits}" if text[0] in "-\u2212" and digits.strip("0.") else digits


def normalise_answer(text):
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces.

    Beyond SQuAD's: numbers keep sign and decimal point; words of other scripts than Latin lose
    all punctuation, and their characters stand apart where the script has no spaces (see script_tokens); a text of
    nothing but punctuation and articles stays as it is, so that "+" is not "-".
    """
    text = text.lower()
    plain = NUMBER_OR_PUNCTUATION.sub(lambda match: _plain_number(match[1]) if match[1] else "", text)
    words = re.sub(r"\b(a|an|the)\b", " ", plain).split()
    tokens = [token for word in words for token in (script_tokens(word) if other_script(word) else [word])]
    return " ".join(tokens or text.split())


def exact_match(prediction, references):
    """1.0 if the normalised prediction equals a normalised reference."""
    return float(any(normalise_answer(prediction) == normalise_answer(ref) for ref in references))


def contains_answer(prediction, references):
    """1.0 if a normalised reference stands, as whole words, in the normalised prediction."""
    text = f" {normalise_answer(prediction)} "
    return float(any(ref and f" {ref} " in text for ref in map(normalise_answer, references)))


def _tokens(text):
    return normalise_answer(text).split()


def token_f1(prediction, references):
    """SQuAD's F1 over the bag of normalised tokens, the best over the references."""

    def one(reference):
        got, want = _tokens(prediction), _tokens(reference)
        if not got or not want:
            return float(got == want)
        common = (collections.Counter(got) & collections.Counter(want)).total()
        return 2 * common / (len(got) + len(want))

    return max(one(ref) for ref in references)


def jaccard(prediction, references):
    """Common words / all words of both, on sets of normalised words (Jaccard 1901), the best over the references."""

    def one(reference):
        got, want = set(_tokens(prediction)), set(_tokens(reference))
        return len(got & want) / len(got | want) if got | want else 1.0

    return max(one(ref) for ref in references)


def unifiedqa_overlap(prediction, references):
    """Common tokens / tokens of the longer answer, on bags of normalised tokens, the best over the references.

    The overlap by which UnifiedQA (Khashabi et al. 2020) matches an answer to an option.
    """

    def one(reference):
        got, want = _tokens(prediction), _tokens(reference)
        longer = max(len(got), len(want))
        return (collections.Counter(got) & collections.Counter(want)).total() / longer if longer else 1.0

    return max(one(ref) for ref in references)


class _RougeTokens(tokenizers.Tokenizer):
    """rouge-score's own tokens, which know the letters a to z alone, and script_tokens for other scripts than Latin."""

    def __init__(self):
        self.latin = tokenizers.DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text):
        if not other_script(text):
            return self.latin.tokenize(text)
        tokens = script_tokens(text)
        return [token for word in tokens for token in ([word] if other_script(word) else self.latin.tokenize(word))]


ROUGE = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_RougeTokens())


def rouge_l(prediction, references):
    """ROUGE-L F-measure (rouge-score, with its stemmer), the best over the references."""
    return max(ROUGE.score(ref, prediction)["rougeL"].fmeasure for ref in references)


def log_normalise(scores):
    """Log-scores [N, L] -> log-probabilities that sum to one over the labels."""
    return scores - logsumexp(scores, axis=1, keepdims=True)


def label_mass(totals):
    """Mean probability that an answer is one of the labels at all: that of each, summed before they are normalised.

    totals: [N] sequences of log-probabilities of the labels' whole texts.
    """
    return float(np.mean([np.exp(list(some)).sum() for some in totals]))


def median(values):
    """The median of the values that are known, None without any."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def recall_at_k(ranked, relevant, k):
    """Share of the relevant documents that are among the first k. ranked: ids, best first; relevant: ids or {id:
    grade}.
    """
    return len(set(ranked[:k]) & set(relevant)) / len(relevant)


def precision_at_k(ranked, relevant, k):
    """Share of the first k ranks that hold a relevant document; a rank that holds none counts as wrong, as trec_eval
    has it.
    """
    return len(set(ranked[:k]) & set(relevant)) / k


def average_precision(ranked, relevant):
    """Mean over the relevant documents of the precision at their ranks, 0 for one that was not retrieved (trec_eval's
    map).
    """
    ranks = [rank for rank, doc in enumerate(ranked, start=1) if doc in relevant]
    return sum(n / rank for n, rank in enumerate(ranks, start=1)) / len(relevant)


def reciprocal_rank(ranked, relevant):
    """1 / rank of the first relevant document, 0.0 where none was retrieved."""
    return next((1 / rank for rank, doc in enumerate(ranked, start=1) if doc in relevant), 0.0)


def ndcg_at_k(ranked, relevant, k=10):
    """nDCG@k with linear gain and log2 discount (scikit-learn; the same as trec_eval's ndcg_cut). relevant: {id:
    grade}.
    """
    # k fillers keep the relevant documents that were not retrieved out of the first k ranks; they only count in the
    # ideal order
    order = [*ranked, *[None] * k, *(doc for doc in relevant if doc not in ranked)]
    gains = [[relevant.get(doc, 0) for doc in order]]
    return float(ndcg_score(gains, [list(range(len(order), 0, -1))], k=k, ignore_ties=True))


def classification_scores(predictions, targets, n_labels, clusters=None):
    """The quality cells of a classification row.

    predictions: [N] class index, or None for an answer that could not be read (wrong, and counted in invalid_rate);
    targets: [N]; clusters: [N] names, for the interval, see stats.cluster_index.
    """
    score = accuracy(predictions, targets)
    low, high = stats.score_interval([float(p == target) for p, target in zip(predictions, targets)], clusters)
    return {
        "metric": "accuracy",
        "score": score,
        "score_low": low,
        "score_high": high,
        "accuracy": score,
        "macro_f1": macro_f1(predictions, targets, n_labels),
        "invalid_rate": sum(p is None for p in predictions) / len(predictions),
    }


def answer_scores(predictions, references, clusters=None):
    """(cells, per-example scores) of free answers. predictions: [N] texts; references: [N] tuples of texts. Metric:
    token F1.

    Predictions come without a thinking model's thoughts (generation.Answers). invalid_rate: the share of empty ones.
    clusters: [N] names, for the interval, see stats.cluster_index.
    """
    functions = {
        "exact_match": exact_match,
        "token_f1": token_f1,
        "unifiedqa_overlap": unifiedqa_overlap,
        "jaccard": jaccard,
        "rouge_l": rouge_l,
        "contains_answer": contains_answer,
    }
    each = [
        {name: f(p, refs) for name, f in functions.items()} for p, refs in zip(predictions, references, strict=True)
    ]
    cells = {name: float(np.mean([scores[name] for scores in each])) for name in functions if name != "contains_answer"}
    low, high = stats.score_interval([scores["token_f1"] for scores in each], clusters)
    cells.update(
        metric="token_f1",
        score=cells["token_f1"],
        score_low=low,
        score_high=high,
        invalid_rate=float(np.mean([not p.strip() for p in predictions])),
    )
    return cells, each


def number_scores(predictions, references, clusters=None):
    """(cells, per-example scores) of answers whose last number counts. predictions: [N] numbers as text, "" for none;
    references: [N] tuples of numbers as text. Metric: accuracy.
    """
    each = [{"exact_match": float(p in refs)} for p, refs in zip(predictions, references, strict=True)]
    right = [scores["exact_match"] for scores in each]
    low, high = stats.score_interval(right, clusters)
    share = float(np.mean(right))
    cells = {"metric": "accuracy", "score": share, "accuracy": share, "exact_match": share}
    missing = float(np.mean([not p for p in predictions]))
    return {**cells, "score_low": low, "score_high": high, "invalid_rate": missing}, each


NEAR_CONSTANT, MISSED = 0.9, 0.75


def degenerate(predictions, n_labels=None, targets=None):
    """Why a run's outputs are useless, in words, or None: most of them unreadable or empty, or (nearly) all the same.

    Nearly all the same: of at least 20 answers 90 % are one class or text, and so are 75 % of those whose target is
    another. So a rare class may be predicted rarely, as long as a fourth of the rest is told apart.
    targets: [N] class indices, or tuples of reference texts; None where an answer has no target.
    """
    read = [i for i, p in enumerate(predictions) if not (p is None or (isinstance(p, str) and not p.strip()))]
    n, unread = len(predictions), len(predictions) - len(read)
    if unread > n / 2:
        return f"{unread} of {n} answers are empty or could not be read"
    if len(read) < 20:
        return None
    constant, count = collections.Counter(predictions[i] for i in read).most_common(1)[0]
    if count == n:
        return f"all {n} outputs are the same" if n_labels is None else f"all {n} predictions are class {constant}"
    others = [i for i in read if targets is None or not _is_target(constant, targets[i])]
    same = sum(predictions[i] == constant for i in others)
    if count < NEAR_CONSTANT * len(read) or same < MISSED * len(others) or not others:
        return None
    what = "outputs are the same" if n_labels is None else f"predictions are class {constant}"
    return f"{count} of {n} {what}" + (
        "" if targets is None else f", {same} of the {len(others)} of another target too"
    )


def _is_target(prediction, target):
    return exact_match(prediction, target) == 1.0 if isinstance(prediction, str) else prediction == target
