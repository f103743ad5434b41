#include "cuda/mutual_matches.cuh"

namespace pose_kernels {

#define BEST(T, P, A) \
  template __global__ void column_best_kernel<T, P, A>(ColumnBestArguments<T>, Packed<T, P>, Packed<T, P>);

BEST(float, 1, false)
BEST(float, 1, true)
BEST(float, kBFloat16Pairs, false)
BEST(float, 3, false)
BEST(float, 3, true)
BEST(double, 1, true)

template __global__ void finish_best_kernel<float>(FinishBestArguments<float>);

}  // namespace pose_kernels
