#include "cuda/correlation_4d.cuh"

namespace pose_kernels {

#define PLAIN(T, P, E) \
  template __global__ void write_map_kernel<T, P, E, false>(WriteMapArguments<T, E>, Packed<T, P>, Packed<T, P>); \
  template __global__ void map_gradient_kernel<T, P, E, false>( \
      MapGradientArguments<T, E>, Packed<T, P>, Packed<T, P>);

PLAIN(float, 1, BFloat16)
PLAIN(float, kBFloat16Pairs, BFloat16)
PLAIN(float, 3, float)
PLAIN(float, 3, BFloat16)

template __global__ void pack_kernel<float, float, 3>(PackArguments);
template __global__ void pack_kernel<BFloat16, float, kBFloat16Pairs>(PackArguments);

}  // namespace pose_kernels
