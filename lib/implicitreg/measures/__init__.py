"""What we look at: norms, ranks and curvatures of what has been learned."""

from implicitreg.measures.spectral import distance_from_rank, effective_rank, schatten_norm

__all__ = ["distance_from_rank", "effective_rank", "schatten_norm"]
