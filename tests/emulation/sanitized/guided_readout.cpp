#include "cuda/guided_readout.cuh"

#include "sanitized.h"

namespace {

const Run guided_readout_run([] {
  for_shapes([](const Shape& shape, bool tf32, bool own) {
    const auto [B, m, S, n] = shape;
    const int64_t outputs = own ? 3 : 33;
    Values<float> source(B * m * S, true), target(B * m * n, true), values((own ? B : 1) * outputs * S, true);
    Values<float> grad(B * outputs * n, true), result(grad.size());
    Values<float> source_grad(source.size()), target_grad(target.size()), values_grad(values.size());
    Values<float> row_max(B * S), norm(B * n);
    std::vector<int64_t> where(B * S, -1);
    const Features<float> z{B, m, S, n, source.data(), target.data(), 0, n};
    const Readout<float> readout{z, values.data(), outputs, own, tf32 ? 2 : 1};
    const Statistics<float> statistics{1e-5f, row_max.data(), where.data(), norm.data()};
    Results<float> results;
    in_both_orders([&](const Context& context, bool) {
      run_guided_readout(readout, statistics, tf32, result.data(), context);
      run_guided_readout_backward(
          readout, statistics, tf32, grad.data(), result.data(),
          ReadoutGrads<float>{source_grad.data(), target_grad.data(), values_grad.data()}, context);
      results.keep("guided_readout", result);
      results.keep("guided_readout source_grad", source_grad);
      results.keep("guided_readout target_grad", target_grad);
      results.keep("guided_readout values_grad", values_grad);
    });
    results.compare("guided_readout");
  });
});

}  // namespace
