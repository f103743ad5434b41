"""Every source position against every target position (Eq. 1)."""

from operation import Operation


def literal(source, target):
    C = source.flatten(2).transpose(1, 2) @ target.flatten(2)  # Eq. 1
    return C.unflatten(2, target.shape[2:])


class Correlation4d(Operation):
    name = "correlation_4d"
    fields = ("batch", "grid", "dtype", "features")
    eager = oracle = staticmethod(literal)
    has_memory_format = True
    eager_maps, ours_maps, oracle_maps = (1, 1), (1, 1), 2

    def shapes(self, size, form=None):
        features = (size.batch, size.features, size.grid, size.grid)
        result = (size.batch, size.grid**2, size.grid, size.grid)
        return {"source": features, "target": features}, result

    def operations(self, size, backward, form=None):
        """One product forward, one per gradient backward."""
        return 2 * self.map_values(size) * size.features * (3 if backward else 1)


OPERATOR = Correlation4d()
