"""Predictions from the rows: score, latency and memory of a configuration on data that nobody has measured."""

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import t
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

import utils
from harness.results import configurations
from harness.selector import landmark
from harness.selector.candidates import Candidate, Limits, choose, eligible
from harness.selector.regression import NEIGHBOURS, Regression
from harness.selector.spec import Spec, spec

MIN_CONFIGURATIONS, MIN_SETS = 20, 3  # that the predictor needs to learn from
TIE_POINTS = 0.01  # predicted scores closer than this are ties
NOTHING = 3 / 4  # probability of being within the limits below which nothing is recommended
CONFIDENCE = 0.9  # probability of being within the limits that a prediction needs to be recommended as likely
BEYOND = 2  # a size may lie outside the measured range by this factor
REGRESSION = "knn"  # of regression.REGRESSIONS


class Predictor:
    """Regressions for score, log latency, log memory and log training time, for one kind of device."""

    def __init__(self, groups, data, regression=REGRESSION):
        """groups: [((data set, model), Configuration)]. data: from spec.data_of_rows. UserError if they are too few."""
        usable = [(group, c) for group, c in groups if group[0] in data and eligible(c)]
        known = [(group, c, spec(c, data[group[0]])) for group, c in usable if c.mean("labels_used") is not None]
        self.known = [(group, c, s) for group, c, s in known if s.kind]
        self.sets = sorted({group[0] for group, _, _ in self.known})
        self.regression = regression
        self.specs = [s for _, _, s in self.known]
        self.score = self._fit(Spec.vector, above_majority) if len(self.known) >= MIN_CONFIGURATIONS else None
        if self.score is None:
            raise utils.UserError(
                f"the rows are too few to predict from: {len(self.known)} configurations on {len(self.sets)} data "
                f"sets; at least {MIN_CONFIGURATIONS} on {MIN_SETS} are needed, {NEIGHBOURS} of them beside the largest"
            )
        known = [one for one in self.known if one[2].data.landmark is not None and not landmark.is_it(one[1].rows[0])]
        self.by_landmark = self._fit(Spec.vector_by_landmark, above_landmark, known)
        self.latency = self._fit_log(Spec.work, "latency_ms_p50")
        self.memory = self._fit_log(Spec.room, "memory")
        self.serving = self._fit_log(Spec.room, "serving_memory") or self.memory
        self.training = self._fit_log(Spec.effort, "train_seconds")
        self._fit_region()

    def _fit(self, features, target, some=None):
        """(what makes features of a Spec, the Regression of some), None where these, or their data sets, are too few.

        some: of self.known (default: all).
        """
        some = self.known if some is None else some
        sets = Counter(group[0] for group, _, _ in some)
        if len(sets) < MIN_SETS or len(some) - max(sets.values()) < NEIGHBOURS:  # each is predicted from the others
            return None
        columns = zip(*((features(s), target(c, s), group[0], s.family) for group, c, s in some))
        return features, Regression(self.regression, *columns)

    def _fit_log(self, features, column):
        some = [one for one in self.known if one[1].mean(column)]
        return self._fit(features, lambda c, s: math.log(c.mean(column)), some)

    def _fit_region(self):
        """Where predictions are made: as near to a measured configuration of its kind of task as these are to those of
        other data sets. self.regions: {kind: (its (group, Configuration, Spec)s, nearest neighbours, reach)}.
        """
        points = np.array([[x for _, x in s.numbers()] for s in self.specs])
        self.scaler = StandardScaler().fit(points)
        points, sets = self.scaler.transform(points), np.array([group[0] for group, _, _ in self.known])
        kinds, self.regions = np.array([s.kind for s in self.specs]), {}
        for kind in sorted(set(kinds.tolist())):
            here = [one for one in self.known if one[2].kind == kind]
            own, own_sets = points[kinds == kind], sets[kinds == kind]
            if len(set(own_sets.tolist())) >= MIN_SETS:
                reach = max(
                    NearestNeighbors(n_neighbors=1).fit(own[own_sets != one]).kneighbors(own[own_sets == one])[0].max()
                    for one in set(own_sets.tolist())
                )
                self.regions[kind] = here, NearestNeighbors(n_neighbors=1).fit(own), reach

    def refusal(self, wanted):
        """Why a Spec is outside the range of the rows; None if it is within."""
        if wanted.kind not in self.regions:
            n = len({group[0] for group, _, s in self.known if s.kind == wanted.kind})
            return f"{wanted.kind} was measured on {n} data sets, and {MIN_SETS} are needed"
        known, nearest, reach = self.regions[wanted.kind]
        alike = [s for _, _, s in known if s.family == wanted.family and s.learns == wanted.learns]
        if not alike:
            return f"no row of {wanted.strategy}"
        edge = math.log10(BEYOND)
        for i, (name, value) in enumerate(wanted.numbers()):
            seen = [s.numbers()[i][1] for _, _, s in known]
            if not min(seen) - edge <= value <= max(seen) + edge:
                low, high = 10 ** min(seen), 10 ** max(seen)
                return f"{10**value:,.0f} {name} are beyond the {low:,.0f} to {high:,.0f} that were measured"
        if wanted.learns:
            low, high = min(s.labels for s in alike), max(s.labels for s in alike)
            if not max(low / BEYOND, wanted.data.classes) <= wanted.labels <= high * BEYOND:
                return (
                    f"{wanted.labels:,.0f} labels are too few or too many for {wanted.strategy}, which was measured "
                    f"with {low:,.0f} to {high:,.0f}; and a class needs one"
                )
        (distance,), (place,) = nearest.kneighbors(self.scaler.transform([[x for _, x in wanted.numbers()]]))
        if distance[0] > reach:
            near = known[place[0]]
            return f"nothing like it was measured; the nearest is {near[1].name} on {near[0][0]}"
        return None

    def candidate(self, wanted, name, configuration=None):
        """The Candidate of a Spec, with predicted score, latency and memory and the errors of these on new data."""

        def guess(fitted):
            return fitted[1].guess(fitted[0](wanted), wanted.family) if fitted else None

        floor, scored = wanted.data.majority or 0.0, self.score
        if wanted.data.landmark is not None and self.by_landmark:
            floor, scored = wanted.data.landmark, self.by_landmark
        score, latency, memory, serving, training = map(
            guess, (scored, self.latency, self.memory, self.serving, self.training)
        )
        return Candidate(
            name,
            wanted.strategy,
            min(1.0, max(0.0, score.centre + floor)),
            latency and math.exp(latency.centre),
            memory and math.exp(memory.centre),
            wanted.labels,
            math.exp(training.centre) if training and wanted.steps else 0.0,
            score.scale,
            latency.scale if latency else 0.0,
            memory.scale if memory else 0.0,
            wanted.data.majority,
            configuration,
            serving_gb=serving and math.exp(serving.centre),
            serving_error=serving.scale if serving else None,
            degrees=score.degrees,
            predicted=True,
        )


def above_majority(configuration, wanted):
    """What a configuration scores above the most frequent class."""
    return configuration.mean() - (wanted.data.majority or 0.0)


def above_landmark(configuration, wanted):
    """What it scores above the landmark of its data."""
    return configuration.mean() - wanted.data.landmark


def chance(candidate, limits):
    """Probability that a predicted candidate is within the limits.

    The score and the logarithms of latency and memory are taken as independent, each with Student's t of its error.
    """
    if limits.data_size is not None and candidate.labels > limits.data_size:
        return 0.0
    p, apart = 1.0, limits.serving_memory_gb is not None
    for limit, value, error in (
        (limits.latency_ms, candidate.latency_ms, candidate.latency_error),
        (
            None if apart and not candidate.train_seconds else limits.memory_gb,
            candidate.memory_gb,
            candidate.memory_error,
        ),
        (limits.serving_memory_gb, candidate.serving_gb, candidate.error_of_serving),
    ):
        if limit is not None:
            p *= t.cdf((math.log(limit) - math.log(value)) / max(error, 1e-9), candidate.degrees) if value else 0.0
    if limits.required_accuracy is not None:
        p *= t.cdf((candidate.score - limits.required_accuracy) / max(candidate.score_error, 1e-9), candidate.degrees)
    return float(p)


def cautious(candidate, limits):
    """The Candidate with worse figures: it is as good as these in all that is limited with a probability of NOTHING, so
    that it is likely enough to be within limits that are relaxed to them.
    """
    asked = (limits.latency_ms, limits.memory_gb, limits.serving_memory_gb, limits.required_accuracy)
    quantile = float(t.ppf(NOTHING ** (1 / max(1, sum(limit is not None for limit in asked))), candidate.degrees))

    def above(value, error):
        return value and value * math.exp(quantile * error)

    return dataclasses.replace(
        candidate,
        score=candidate.score - quantile * candidate.score_error,
        latency_ms=above(candidate.latency_ms, candidate.latency_error),
        memory_gb=above(candidate.memory_gb, candidate.memory_error),
        serving_gb=above(candidate.serving_gb, candidate.error_of_serving),
    )


def choose_predicted(candidates, limits, prefer="accuracy", chances=None):
    """(choice or None if none can be within the limits, its probability to be, [others, best first]).

    Candidates that are within the limits with a probability of CONFIDENCE are compared like measured ones, scores
    within TIE_POINTS as ties. If there are none, the one with the highest probability is taken, without others.
    chances: [what `chance` says of each], where it is known.
    """
    chances = dict(zip(map(id, candidates), chances or [chance(c, limits) for c in candidates]))
    sure = [c for c in candidates if chances[id(c)] >= CONFIDENCE]
    if not sure:
        best = max((c for c in candidates if chances[id(c)]), key=lambda c: chances[id(c)], default=None)
        return best, chances.get(id(best), 0.0), []
    even = [dataclasses.replace(c, score_error=TIE_POINTS) for c in sure]  # most of the error is common to all
    choice, _, kept = choose(even, Limits(requests=limits.requests), prefer)
    original = {id(e): c for e, c in zip(even, sure)}
    return original[id(choice)], chances[id(original[id(choice)])], [original[id(c)] for c in kept if c is not choice]


def groups_of(rows):
    """[((data set, model), Configuration)] of rows of one kind of device that `configurations.select` kept."""
    return [
        ((panel.data, Path(c["model"]).name), c)
        for panel, members in configurations.panels(rows).items()
        for c in configurations.group_seeds(members)
    ]
