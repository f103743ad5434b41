#include "cuda/correlation_4d.cuh"

#include "sanitized.h"

namespace {

const Run correlation_4d_run([] {
  for_shapes([](const Shape& shape, bool tf32, bool channels_last) {
    const auto [B, m, S, n] = shape;
    Values<float> source(B * m * S, true), target(B * m * n, true), grad(B * S * n, true);
    Values<float> map(B * S * n), source_grad(source.size()), target_grad(target.size());
    const Features<float> z{B, m, S, n, source.data(), target.data(), 0, n};
    const auto out = make_map(map.data(), S, n, channels_last);
    const auto G = make_map<const float>(grad.data(), S, n, channels_last);
    Results<float> results;
    in_both_orders([&](const Context& context, bool) {
      run_correlation_4d(z, tf32, out, context);
      run_correlation_4d_backward(z, tf32, G, source_grad.data(), target_grad.data(), context);
      results.keep("correlation_4d", map);
      results.keep("correlation_4d source_grad", source_grad);
      results.keep("correlation_4d target_grad", target_grad);
    });
    results.compare("correlation_4d");
  });
});

}  // namespace
