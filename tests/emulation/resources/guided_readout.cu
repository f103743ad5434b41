#include "cuda/guided_readout.cuh"

namespace pose_kernels {

#define READOUT(T, P) \
  template __global__ void readout_kernel<T, P, true>(Sweep<T, P>, ReadoutScales<T>); \
  template __global__ void readout_kernel<T, P, false>(Sweep<T, P>, ReadoutScales<T>); \
  template __global__ void readout_gradient_kernel<T, P, true>(Sweep<T, P>, GradientTerms<T, P>); \
  template __global__ void readout_gradient_kernel<T, P, false>(Sweep<T, P>, GradientTerms<T, P>);

READOUT(float, 1)
READOUT(float, 3)
READOUT(float, kBFloat16Pairs)
READOUT(double, 1)

template __global__ void finish_readout_kernel<float, BFloat16>(FinishReadoutArguments<float>, BFloat16*);
template __global__ void target_terms_kernel<float, BFloat16>(TargetTermsArguments<float, BFloat16>);

}  // namespace pose_kernels
