#include "cuda/guided_correlation.cuh"

namespace pose_kernels {

#define PRODUCTS(T, P) \
  template __global__ void row_maxima_kernel<T, P>(RowMaximaArguments<T>, Packed<T, P>, Packed<T, P>); \
  template __global__ void locate_maxima_kernel<T, P>(LocateArguments, Packed<T, P>, Packed<T, P>); \
  template __global__ void column_sums_kernel<T, P, void>(ColumnSumsArguments<T, T>, Packed<T, P>, Packed<T, P>);

#define MAPS(T, P, E) \
  template __global__ void column_sums_kernel<T, P, E>(ColumnSumsArguments<T, E>, Packed<T, P>, Packed<T, P>); \
  template __global__ void write_map_kernel<T, P, E, true>(WriteMapArguments<T, E>, Packed<T, P>, Packed<T, P>); \
  template __global__ void map_gradient_kernel<T, P, E, true>( \
      MapGradientArguments<T, E>, Packed<T, P>, Packed<T, P>);

PRODUCTS(float, 1)
PRODUCTS(float, 3)
PRODUCTS(float, kHalfPairs)
PRODUCTS(float, kBFloat16Pairs)
PRODUCTS(double, 1)
MAPS(float, 1, float)
MAPS(float, 3, float)
MAPS(float, 1, BFloat16)
MAPS(float, 3, BFloat16)
MAPS(float, kBFloat16Pairs, BFloat16)
MAPS(double, 1, double)

template __global__ void feature_gradients_kernel<float, 1>(FeatureGradientsArguments<float, 1>);
template __global__ void feature_gradients_kernel<float, 3>(FeatureGradientsArguments<float, 3>);
template __global__ void feature_gradients_kernel<double, 1>(FeatureGradientsArguments<double, 1>);
template __global__ void add_parts_kernel<float>(AddPartsArguments<float>);
template __global__ void finish_rows_kernel<float>(FinishRowsArguments<float>);
template __global__ void finish_columns_kernel<float>(FinishColumnsArguments<float>);
template __global__ void finish_grads_kernel<float, float, float, true>(
    FinishGradsArguments<float, float, float>, Statistics<float>);
template __global__ void finish_grads_kernel<float, float, float, false>(
    FinishGradsArguments<float, float, float>, Statistics<float>);

}  // namespace pose_kernels
