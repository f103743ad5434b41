#include "cuda/flow_sample.cuh"

namespace pose_kernels {

template __global__ void sample_kernel<float, float>(SampleArguments<float, float>);
template __global__ void fine_grad_kernel<float, float>(SampleArguments<float, float>);
template __global__ void coarse_grad_kernel<float, float>(CoarseGradArguments<float, float>);
template __global__ void scatter_kernel<float, float>(ScatterArguments<float, float>);
template __global__ void pairs_kernel<float>(PairsArguments<float>);
template __global__ void image_grad_kernel<float, float>(ImageGradArguments<float, float>);

}  // namespace pose_kernels
