// correlation_4d on CUDA: the map of guided_correlation and its gradients, without what makes it guided.
#pragma once

#include "cuda/correlation_map.cuh"
#include "cuda/feature_gradients.cuh"

namespace pose_kernels {

template <class In, class E, class T = compute_t<In>>
void run_correlation_4d(const Features<In>& z, bool tf32, const Map<E>& out, const Context& context) {
  with_operands(z, tf32, context, [&](const auto& source, const auto& target) {
    WriteMapArguments<T, E> x{};
    x.walk = make_walk(z.batch, z.targets, z.sources);
    x.out = out;
    write_map<false>(x, source, target, context.stream);
  });
}

// Null for a gradient that is not wanted.
template <class In, class E>
void run_correlation_4d_backward(
    const Features<In>& z, bool tf32, const Map<const E>& grad, In* source_grad, In* target_grad,
    const Context& context) {
  FeatureGrads<In> out{};
  out.source = source_grad;
  out.target = target_grad;
  run_backward<false>(z, {}, tf32, grad, out, context, [](const auto&...) {});
}

}  // namespace pose_kernels
