"""The correlation and its normalisation (Eq. 1, 9, 2) in one."""

from operation import Operation

from operators import correlation_4d, soft_mutual_normalize


def literal(source, target):
    return soft_mutual_normalize.literal(correlation_4d.literal(source, target))


def ncnet(source, target):
    return soft_mutual_normalize.ncnet(correlation_4d.literal(source, target))


class GuidedCorrelation(correlation_4d.Correlation4d):
    name = "guided_correlation"
    eager = oracle = staticmethod(literal)
    ncnet = staticmethod(ncnet)
    eager_maps, oracle_maps = Operation.eager_maps, Operation.oracle_maps


OPERATOR = GuidedCorrelation()
