"""What we look at: norms, ranks and curvatures of what has been learned."""

from implicitreg.measures.spectral import distance_from_rank, effective_rank, schatten_norm
from implicitreg.measures.tensors import CPRank, cp_rank, reconstruction_error

__all__ = ["CPRank", "cp_rank", "distance_from_rank", "effective_rank", "reconstruction_error", "schatten_norm"]
