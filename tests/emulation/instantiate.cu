// The kernels in the types that matter, for the compiler's report on registers (resources.py).
#include "cuda/flow_sample.cuh"
#include "cuda/guided_correlation.cuh"
#include "cuda/soft_mutual_normalize.cuh"

namespace pose_kernels {

#define PRODUCTS(T, P) \
  template __global__ void row_maxima_kernel<T, P>(RowMaximaArguments<T>, Packed<T, P>, Packed<T, P>); \
  template __global__ void column_sums_kernel<T, P, void>(ColumnSumsArguments<T, T>, Packed<T, P>, Packed<T, P>);

#define MAPS(T, P, E) \
  template __global__ void column_sums_kernel<T, P, E>(ColumnSumsArguments<T, E>, Packed<T, P>, Packed<T, P>); \
  template __global__ void write_map_kernel<T, P, E, true>(WriteMapArguments<T, E>, Packed<T, P>, Packed<T, P>); \
  template __global__ void backward_kernel<T, P, E, true>( \
      BackwardArguments<T, E>, Packed<T, P>, Packed<T, P>, Packed<T, P>, Packed<T, P>);

#define PLAIN(T, P, E) \
  template __global__ void write_map_kernel<T, P, E, false>(WriteMapArguments<T, E>, Packed<T, P>, Packed<T, P>); \
  template __global__ void backward_kernel<T, P, E, false>( \
      BackwardArguments<T, E>, Packed<T, P>, Packed<T, P>, Packed<T, P>, Packed<T, P>);

PRODUCTS(float, 1)
PRODUCTS(float, 3)
PRODUCTS(double, 1)
MAPS(float, 1, float)
MAPS(float, 3, float)
MAPS(float, 1, BFloat16)
MAPS(float, 3, BFloat16)
MAPS(double, 1, double)
PLAIN(float, 1, BFloat16)
PLAIN(float, 3, float)

template __global__ void pack_kernel<float, float, 3>(PackArguments);
template __global__ void finish_rows_kernel<float>(FinishRowsArguments<float>);
template __global__ void finish_columns_kernel<float>(FinishColumnsArguments<float>);
using Grads = FinishGradsArguments<float, float>;
template __global__ void finish_grads_kernel<float, float, true>(Grads, const float*, float);
template __global__ void finish_grads_kernel<float, float, false>(Grads, const float*, float);

#define NORMALIZE(E) \
  template __global__ void map_row_maxima_kernel<float, E>(MapRowMaximaArguments<float, E>); \
  template __global__ void map_column_sums_kernel<float, E>(MapColumnSumsArguments<float, E>); \
  template __global__ void map_normalize_kernel<float, E>(MapRowsArguments<float, E>); \
  template __global__ void map_backward_kernel<float, E>(MapRowsArguments<float, E>);

NORMALIZE(float)
NORMALIZE(BFloat16)

template __global__ void sample_kernel<float, float>(SampleArguments<float, float>);
template __global__ void fine_grad_kernel<float, float>(SampleArguments<float, float>);
template __global__ void coarse_grad_kernel<float, float>(CoarseGradArguments<float, float>);
template __global__ void pairs_kernel<float>(PairsArguments<float>);
template __global__ void image_grad_kernel<float, float>(ImageGradArguments<float, float>);

}  // namespace pose_kernels
