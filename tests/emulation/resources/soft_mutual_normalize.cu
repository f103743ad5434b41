#include "cuda/soft_mutual_normalize.cuh"

namespace pose_kernels {

#define NORMALIZE(E) \
  template __global__ void map_row_maxima_kernel<float, E>(MapPair<E>, Statistics<float>); \
  template __global__ void map_column_sums_kernel<float, E>(MapColumnSumsArguments<float, E>); \
  template __global__ void map_normalize_kernel<float, E>(MapRowsArguments<float, E>); \
  template __global__ void map_backward_kernel<float, E>(MapRowsArguments<float, E>);

NORMALIZE(float)
NORMALIZE(BFloat16)

}  // namespace pose_kernels
