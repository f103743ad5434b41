#include "cuda/soft_mutual_normalize.cuh"

#include "sanitized.h"

namespace {

const Run soft_mutual_normalize_run([] {
  for_shapes([](const Shape& shape, bool, bool) {
    const int64_t B = shape.batch, S = shape.sources, n = shape.targets;
    Values<float> map(B * S * n, true), result(map.size()), map_grad(map.size()), row_max(B * S), norm(B * n);
    std::vector<int64_t> where(B * S, -1);
    const Statistics<float> statistics{1e-5f, row_max.data(), where.data(), norm.data()};
    Results<float> results;
    in_both_orders([&](const Context& context, bool) {
      run_soft_mutual_normalize(MapPair<float, float>{B, S, n, map.data(), nullptr}, statistics, result.data(), context);
      run_soft_mutual_normalize_backward(
          MapPair<float, float>{B, S, n, map.data(), map.data()}, statistics, map_grad.data(), context);
      results.keep("soft_mutual_normalize", result);
      results.keep("soft_mutual_normalize_backward", map_grad);
    });
    results.compare("soft_mutual_normalize");
  });
});

}  // namespace
