"""Regressions whose errors are those on data sets that they have not seen."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PENALTIES = np.logspace(-2, 3, 16)
NEIGHBOURS = 5
PRIOR_SETS = 3.0  # data sets that the error of all families counts as, in that of one


def ridge():
    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES))


def neighbours():
    return make_pipeline(StandardScaler(), KNeighborsRegressor(NEIGHBOURS, weights="distance"))


def gaussian_process():
    """One length scale over standardised features, a linear kernel, and noise."""
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(2.0, (0.5, 20))
    kernel += ConstantKernel(0.1, (1e-4, 1e1)) * DotProduct(1.0, (0.1, 10))
    process = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-3, 1)), normalize_y=True, random_state=0)
    return make_pipeline(StandardScaler(), process)


REGRESSIONS = {"ridge": ridge, "knn": neighbours, "gp": gaussian_process}


@dataclass(frozen=True)
class Guess:
    """A prediction for a new data set: Student's t with this centre, scale and degrees of freedom."""

    centre: float
    scale: float
    degrees: float


class Regression:
    """A regression over rows of several data sets.

    Its errors are cross-fitted: each data set is predicted by a model of the others. The scale is that of a new data
    set's errors, a root mean square in which each data set counts the same; families of configurations with larger
    errors have larger ones, shrunk towards that of all.
    """

    def __init__(self, name, features, targets, data_sets, families):
        """name: of REGRESSIONS; features: [N, F]; targets, data_sets, families: [N]."""
        self.features, targets = np.asarray(features, dtype=float), np.asarray(targets, dtype=float)
        data_sets, self.name = np.asarray(data_sets), name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an optimum at a bound is expected
            self.model = REGRESSIONS[name]().fit(self.features, targets)
            fitted = cross_val_predict(
                REGRESSIONS[name](), self.features, targets, groups=data_sets, cv=LeaveOneGroupOut()
            )
        self.residuals, self.sets = targets - fitted, sorted(set(data_sets.tolist()))
        squares = {one: [] for one in dict.fromkeys(families)}
        for one in self.sets:
            for family in squares:
                here = self.residuals[(data_sets == one) & (np.asarray(families) == family)]
                if len(here):
                    squares[family].append(float(np.mean(here**2)))
        every = [float(np.mean(self.residuals[data_sets == one] ** 2)) for one in self.sets]
        self.variance = float(np.mean(every))
        self.variances = {
            family: (PRIOR_SETS * self.variance + sum(some)) / (PRIOR_SETS + len(some))
            for family, some in squares.items()
        }

    def guess(self, features, family):
        """The Guess for one [F] vector of features."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            centre = float(self.model.predict([features])[0])
        n = len(self.sets)
        scale = float(np.sqrt(self.variances.get(family, self.variance) * (1 + 1 / n)))
        return Guess(centre, scale, n - 1)
