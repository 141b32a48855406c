"""The best of several configurations, chosen on one half of the evaluation examples and reported on the other.

The score that chose the best of many is too high on the examples that chose it. So the examples are halved, clusters
kept whole; each half makes the choice for the other (cross-fitting), and the mean over SPLITS random halvings is the
score. Where a configuration has several runs, one of them is scored and the others choose. A configuration of one run
is chosen with the luck of its seed, which no division of the examples takes out.

A mean over halvings varies no more than the score of one halving, whose variance is that of scores on new examples: the
choice was made without them. Five folds would not do for an interval, since what each fold scores then depends on
choices that share most of their examples: in simulations a 95 % interval from the scores' variance covered 82 %.
"""

from dataclasses import dataclass

import numpy as np

from harness.results import stats

SPLITS = 20
MIN_CLUSTERS = 10  # fewer are not halved


@dataclass
class Champion:
    """The configuration with the best mean score, and what choosing so gives on examples that did not choose."""

    configuration: object  # chosen on all examples: the one to use
    among: int  # configurations
    # scores of the examples: [SPLITS, N] if it was chosen among several, else [N]; None: not known
    scores: np.ndarray | None = None
    seed_share: float = 1.0  # 1 / (runs that are averaged), mean over the choices
    optimism: float = 0.0  # without `scores`: by how much the score is too high at most, by expectation

    def __getitem__(self, column):
        return self.configuration[column]

    @property
    def name(self):
        return self.configuration.name

    @property
    def cross_fitted(self):
        return self.among > 1 and self.scores is not None

    def mean(self):
        """The cross-fitted score; where it is not known, the score by which it was chosen."""
        return float(self.scores.mean()) if self.cross_fitted else self.configuration.mean()

    def parts(self):
        """The parts of the variance of `mean`, see stats."""
        return self.configuration.parts_of(self.scores, self.seed_share)

    @property
    def interval(self):
        """95 % interval (low, high) of `mean`; (None, None) where it is not known."""
        if not self.cross_fitted:
            return self.configuration.interval
        return self.configuration.interval_of(self.mean(), self.parts())

    def how(self):
        """How its score was found, in words; "" where nothing was chosen."""
        if self.among < 2:
            return ""
        if self.cross_fitted:
            return f"best of {self.among}, cross-fitted"
        bound = f", at most about {self.optimism:.3f} too high" if self.optimism else ""
        return f"best of {self.among}, chosen and reported on the same examples{bound}"


def halves(clusters, seed):
    """[N] True for the examples of one half: whole clusters, drawn by `seed`, as equal as the clusters allow.

    clusters: [N] names, see stats.cluster_index.
    """
    index = stats.cluster_index(clusters)
    sizes = np.bincount(index)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # clusters of one size stay in the drawn order
    first = np.zeros(len(sizes), dtype=bool)
    first[order[0::4]] = first[order[3::4]] = True  # of each four by size the largest and the smallest
    return first[index]


def comparable(members):
    """True if the scores of single examples are known for all configurations, on the same examples, and can be divided.

    members: Configurations of one panel.
    """
    known = [c.examples for c in members]
    if any(scores is None or scores.ids != known[0].ids for scores in known):
        return False
    return stats.n_clusters(known[0].clusters, len(known[0].ids)) >= MIN_CLUSTERS


def cross_fit(members, choose):
    """([SPLITS, N] scores of the examples under choices made without them, 1 / runs averaged, mean over the choices).

    members: comparable Configurations; choose: a function of their mean scores [M] that returns the index of one.
    """
    runs = [c.examples.runs for c in members]  # [S, N] each
    rounds, share = max(len(some) for some in runs), 0.0
    scores = np.zeros((SPLITS, runs[0].shape[1]))
    firsts = [halves(members[0].examples.clusters, seed) for seed in range(SPLITS)]
    for i in range(rounds):
        kept = [np.delete(some, i % len(some), axis=0) if len(some) > 1 else some for some in runs]
        chosen_on = np.array([some.mean(axis=0) for some in kept])  # [M, N]
        for split, first in enumerate(firsts):
            for inside in (first, ~first):
                best = choose(chosen_on[:, ~inside].mean(axis=1))
                scores[split, inside] += runs[best][i % len(runs[best])][inside] / rounds
                share += 1 / len(runs[best]) / rounds / SPLITS / 2
    return scores, share


def champion(members):
    """The Champion of some Configurations of a panel."""
    best = max(members, key=lambda c: c.mean())
    return promise(members, best, lambda means: int(np.argmax(means)))


def promise(members, best, choose):
    """The Champion of a choice by another rule. best: what it chose on all examples; choose: as cross_fit takes it."""
    if len(members) < 2:
        return Champion(best, len(members), best.scores, best.seed_share)
    if comparable(members):
        return Champion(best, len(members), *cross_fit(members, choose))
    errors = [c.standard_error for c in members if c.standard_error is not None]
    return Champion(
        best, len(members), None, best.seed_share, stats.expected_maximum(len(members)) * max(errors, default=0.0)
    )


def by_strategy(members):
    """The Champions of the strategies (names.kin) of a panel's Configurations, the best first; baselines are none.

    Runs that are all degenerate make no champion where another configuration of the strategy can be one.
    """
    groups = {}
    for c in members:
        if c.usable:
            groups.setdefault(c.kin, []).append(c)
    return sorted((champion(some) for some in groups.values()), key=lambda found: -found.mean())
