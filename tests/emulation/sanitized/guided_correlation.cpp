#include "cuda/guided_correlation.cuh"

#include "sanitized.h"

namespace {

const Run guided_correlation_run([] {
  for_shapes([](const Shape& shape, bool tf32, bool channels_last) {
    const auto [B, m, S, n] = shape;
    Values<float> source(B * m * S, true), target(B * m * n, true), grad(B * S * n, true);
    Values<float> map(B * S * n), source_grad(source.size()), target_grad(target.size());
    Values<float> row_max(B * S), norm(B * n), beta(B * S);
    std::vector<int64_t> where(B * S, -1);
    const Features<float> z{B, m, S, n, source.data(), target.data(), 0, n};
    const Statistics<float> statistics{1e-5f, row_max.data(), where.data(), norm.data()};
    const auto out = make_map(map.data(), S, n, channels_last);
    const auto G = make_map<const float>(grad.data(), S, n, channels_last);
    Results<float> results;
    in_both_orders([&](const Context& context, bool) {
      run_guided_correlation(z, statistics, tf32, out, context);
      const FeatureGrads<float> grads{source_grad.data(), target_grad.data(), beta.data(), false, true, {}};
      run_guided_backward(z, statistics, tf32, G, grads, context);
      results.keep("guided_correlation", map);
      results.keep("guided_correlation source_grad", source_grad);
      results.keep("guided_correlation target_grad", target_grad);
    });
    results.compare("guided_correlation");
    const Values<float> through(B * S, true);
    Results<float> sums;
    in_both_orders([&](const Context& context, bool reversed) {  // samples in rounds, and all at once
      std::fill(source_grad.begin(), source_grad.end(), 0.0f);
      std::fill(target_grad.begin(), target_grad.end(), 0.0f);
      run_row_max_backward(
          z, statistics, through.data(), source_grad.data(), target_grad.data(), context, reversed ? 1 : INT32_MAX);
      sums.keep("row_max source_grad", source_grad);
      sums.keep("row_max target_grad", target_grad);
    });
    sums.compare("row_max gradients");
    in_both_orders([&](const Context& context, bool) {
      const int64_t begin = n / 3, count = n - begin - n / 4;
      const Features<float> part{B, m, S, n, source.data(), target.data(), begin, count};
      Values<BFloat16> band(B * S * count), band_grad(B * S * count, true);
      Values<float> into(source.size(), true), added(B * S, true), columns(target.size(), true);
      run_row_max(z, statistics, tf32, context);
      run_band(part, statistics, tf32, make_map(band.data(), S, count, false), context);
      run_guided_backward(
          part, statistics, tf32, make_map<const BFloat16>(band_grad.data(), S, count, false),
          FeatureGrads<float>{into.data(), columns.data(), added.data(), true, false, {}}, context);
      run_row_max_backward(z, statistics, added.data(), into.data(), columns.data(), context);
      Results<BFloat16>().keep("band", band);
      Results<float>().keep("band source_grad", into);
      Results<float>().keep("band target_grad", columns);
    });
  });
});

}  // namespace
