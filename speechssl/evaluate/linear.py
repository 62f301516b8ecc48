"""A linear classifier of features: the probe."""

import warnings

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def read_right(train: Features, train_labels: Labels, test: Features, test_labels: Labels) -> npt.NDArray[np.bool_]:
    """Tell which test labels a logistic regression reads right, trained on other features.

    Args:
        train, test: (N, D), standardized here by the mean and deviation of ``train``.
        train_labels, test_labels: (N,).
    """
    from sklearn.exceptions import ConvergenceWarning  # here, since it is slow to load
    from sklearn.linear_model import LogisticRegression

    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-5
    classifier = LogisticRegression(C=0.1, max_iter=100)  # C: the inverse of the penalty on the weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit((train - mean) / deviation, train_labels)
    return np.asarray(classifier.predict((test - mean) / deviation) == test_labels)
