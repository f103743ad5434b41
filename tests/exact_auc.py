"""The area under a ROC curve by SciPy: the oracle of what counts scores in cells."""

from scipy.stats import mannwhitneyu


def roc_auc(scores, labels) -> float:
    """The chance that a true element scores above a false one; ties count half."""
    true, false = scores[labels].double(), scores[~labels].double()
    wins = mannwhitneyu(true, false, method="asymptotic").statistic
    return float(wins) / (len(true) * len(false))
