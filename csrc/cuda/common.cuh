// Shared by the operators' registrations: the device, the stream, scratch, the memory format of gradients.
#pragma once

#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda/launch.cuh"

namespace pose_kernels {

// Makes a tensor's device the current one for as long as it lives, and allocates scratch there. Scratch is torch's own
// memory: it may be handed on when a call returns, for everything runs in the order of the stream.
class Call {
 public:
  explicit Call(const Tensor& x) : like_(x), guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }
  Context context() {
    return {stream_, [this](int64_t bytes) {
              scratch_.push_back(empty(like_, {bytes}, ScalarType::Byte));
              return scratch_.back().mutable_data_ptr();
            }};
  }

 private:
  Tensor like_;
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_ = nullptr;
  std::vector<Tensor> scratch_;
};

// A gradient that is neither contiguous nor channels-last (expanded, for one) is copied.
inline Tensor readable_map(const Tensor& grad, bool* channels_last) {
  *channels_last = !grad.is_contiguous() && is_channels_last(grad);
  return *channels_last ? grad : torch::stable::contiguous(grad);
}

// Positions of a sample are counted in 32 bits.
inline void check_positions(const Tensor& source, const Tensor& target) {
  STD_TORCH_CHECK(
      std::max(positions(source), positions(target)) < 1 << 30,
      "source, target: 2^30 positions and more are not supported");
}

}  // namespace pose_kernels
