// The schemas of all operators, for the CPU and the CUDA library alike. Each implementation registers itself in
// csrc/cpu/<op>.cpp and csrc/cuda/<op>.cu; shapes for tracing (fakes) and autograd are in pose_kernels/<op>.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pose_kernels, m) {
  m.def("simd_level() -> int");
  // Qhat [B, S, ht, wt], max_t C clamped at eps [B, S], its first argmax [B, S], column norms [B, T]
  m.def(
      "guided_correlation(Tensor source, Tensor target, float eps)"
      " -> (Tensor correlation, Tensor row_max, Tensor row_argmax, Tensor norm)");
  m.def(
      "guided_correlation_backward(Tensor grad, Tensor source, Tensor target, Tensor row_max, Tensor row_argmax,"
      " Tensor norm, float eps) -> (Tensor source_grad, Tensor target_grad)");
  m.def("flow_sample(Tensor image, Tensor flow, SymInt height, SymInt width, bool zeros) -> Tensor");
  // An output that is not asked for is an empty tensor.
  m.def(
      "flow_sample_backward(Tensor grad, Tensor image, Tensor flow, bool zeros, bool image_grad, bool flow_grad)"
      " -> (Tensor image_grad, Tensor flow_grad)");
}
