#include "cuda/soft_mutual_normalize.cuh"

namespace pose_kernels {

#define NORMALIZE(E, G) \
  template __global__ void map_row_maxima_kernel<float, E, G>(MapPair<E, G>, Statistics<float>); \
  template __global__ void map_column_sums_kernel<float, E, G>(MapColumnSumsArguments<float, E, G>); \
  template __global__ void map_normalize_kernel<float, E, G>(MapRowsArguments<float, E, G, G>); \
  template __global__ void map_backward_kernel<float, E, G>(MapRowsArguments<float, E, G, E>);

NORMALIZE(float, float)
NORMALIZE(float, BFloat16)
NORMALIZE(BFloat16, BFloat16)

}  // namespace pose_kernels
