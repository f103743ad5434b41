#include "cuda/flow_sample.cuh"

#include "sanitized.h"

namespace {

template <class In, class Flow>
void samples(int64_t channels, int64_t image, int64_t flow, int64_t size, bool zeros) {
  using T = compute_t<In>;
  constexpr int64_t B = 2;
  Values<In> pixels(B * channels * image * (image + 1), true), result(B * channels * size * (size + 2));
  Values<In> grad(result.size(), true), image_grad(pixels.size());
  Values<Flow> to(B * 2 * flow * (flow + 2), true), flow_grad(to.size());
  Results<In> results;
  in_both_orders([&](const Context& context, bool reversed) {
    const Axis<T> x = make_axis<T>(image + 1, flow + 2, size + 2), y = make_axis<T>(image, flow, size);
    SampleGeometry<T> g{B, channels, x, y, zeros, nullptr};
    g.displacement = make_displacement<Flow, T>(B, flow, flow + 2, to.data(), context);
    run_flow_sample(g, pixels.data(), result.data(), nullptr);
    scatter_image_gradient(g, grad.data(), image_grad.data(), context);
    Results<In>().keep("flow_sample image_grad in any order", image_grad);
    gather_image_gradient(g, grad.data(), image_grad.data(), context, reversed ? 1 : INT32_MAX);
    run_flow_gradient(g, pixels.data(), grad.data(), flow_grad.data(), context);
    results.keep("flow_sample", result);
    results.keep("flow_sample image_grad", image_grad);
    Results<Flow>().keep("flow_sample flow_grad", flow_grad);
  });
  results.compare("flow_sample");
}

const Run flow_sample_run([] {
  samples<float, float>(5, 7, 3, 9, false);
  samples<float, float>(1, 1, 1, 20, true);
  samples<Half, BFloat16>(9, 6, 9, 4, true);
});

}  // namespace
