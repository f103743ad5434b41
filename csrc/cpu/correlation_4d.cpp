// correlation_4d on the CPU: C(s,t) = <z_s(s), z_t(t)>, every value written once.
//
// Backward reads G = dL/dC once, in blocks of all sources by some targets: dz_t = sum_s G z_s is complete in the block,
// dz_s += sum_t G z_t.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "checks.h"
#include "cpu/bf16_vectors.h"
#include "cpu/memory.h"
#include "cpu/simd.h"

namespace pose_kernels {

template <class In, class Out>
struct CorrelationArguments {
  int64_t batch, m, rows, columns;
  const In* row_features;  // [B, m, rows]
  const In* column_features;  // [B, m, columns]
  Out* result;  // [B, rows, columns]
};

template <class In, class G>
struct CorrelationBackwardArguments {
  Features<In> z;
  const G* grad;  // [B, S, T]
  MapStrides grad_strides;
  compute_t<In>* source_grad;  // [B, m, S], added to, or null
  In* target_grad;  // [B, m, T] or null
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/correlation_4d.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

static void correlate(const Tensor& source_, const Tensor& target_, const MapResult& result) {
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  fill_map(result, source.scalar_type(), [&](const MapResult& to) {
    dispatch_map(source.scalar_type(), to.map.scalar_type(), "correlation_4d", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using Out = decltype(narrow);
      if (to.fresh) {
        prefault(to.map.mutable_data_ptr(), to.map.numel() * static_cast<int64_t>(sizeof(Out)));
      }
      CorrelationArguments<In, Out> x{
          source.size(0), source.size(1), positions(source), positions(target), const_data<In>(source),
          const_data<In>(target), mutable_data<Out>(to.map)};
      if (to.channels_last) {  // the transposed product
        std::swap(x.rows, x.columns);
        std::swap(x.row_features, x.column_features);
      }
      SIMD_DISPATCH(correlate<In, Out>)(x);
    });
  });
}

static Tensor correlation_4d(
    const Tensor& source, const Tensor& target, bool, bool channels_last, ScalarType out_dtype) {
  check_features(source, target);
  check_map_type(out_dtype, "out_dtype", source.scalar_type());
  const Tensor result = empty_map(target, positions(source), channels_last, out_dtype);
  correlate(source, target, {result, channels_last, true});
  return result;
}

static void correlation_4d_out(const Tensor& source, const Tensor& target, bool, Tensor out) {
  check_features(source, target);
  check_out(out, source, target);
  correlate(source, target, given_map(out));
}

static std::tuple<Tensor, Tensor> correlation_4d_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, bool, bool want_source, bool want_target) {
  check_features(source_, target_);
  check_map_gradient(grad_, source_, target_);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  MapStrides strides;
  const Tensor grad = with_map_strides(readable_gradient(grad_, source.scalar_type()), strides);
  const Tensor source_grad = new_like(source, want_source), target_grad = new_like(target, want_target);
  if (source.size(0) > 0) {
    dispatch_map(source.scalar_type(), grad.scalar_type(), "correlation_4d_backward", [&](auto zero, auto narrow) {
      using In = decltype(zero);
      using G = decltype(narrow);
      Sums<compute_t<In>> sum(source_grad.numel());
      CorrelationBackwardArguments<In, G> x{features_of<In>(source, target), const_data<G>(grad), strides};
      x.source_grad = want_source ? sum.data() : nullptr;
      x.target_grad = data_or_null<In>(target_grad);
      SIMD_DISPATCH(correlate_backward<In, G>)(x);
      sum.round_to(mutable_data<In>(source_grad));
    });
  }
  return {source_grad, target_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("correlation_4d", TORCH_BOX(&pose_kernels::correlation_4d));
  m.impl("correlation_4d_out", TORCH_BOX(&pose_kernels::correlation_4d_out));
  m.impl("correlation_4d_backward", TORCH_BOX(&pose_kernels::correlation_4d_backward));
}
