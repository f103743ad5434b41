// Every kernel on awkward shapes, for AddressSanitizer and UBSan: inputs, results and scratch have exact sizes. Results
// must be finite (shared memory and scratch start as NaN) and the same in both orders of threads.
#include <cstdio>
#include <random>
#include <vector>

#include "cuda/correlation_4d.cuh"
#include "cuda/flow_sample.cuh"
#include "cuda/guided_correlation.cuh"
#include "cuda/soft_mutual_normalize.cuh"
#include "scratch.h"

using namespace pose_kernels;

namespace {

int failures = 0;

template <class T>
struct Values : std::vector<T> {
  explicit Values(int64_t n, bool random = false) : std::vector<T>(n) {
    static std::mt19937 engine(0);
    std::normal_distribution<float> normal;
    for (T& x : *this) {
      x = static_cast<T>(random ? normal(engine) : NAN);
    }
  }
};

template <class T>
void check(const char* name, const Values<T>& x) {
  for (const T& value : x) {
    if (!std::isfinite(static_cast<double>(value))) {
      std::printf("%s: not finite\n", name);
      ++failures;
      return;
    }
  }
}

struct Shape {
  int64_t batch, m, sources, targets;
};

template <class In>
std::vector<In> correlations(const Shape& shape, bool tf32, bool channels_last) {
  using T = Compute<In>;
  const auto [B, m, S, n] = shape;
  static std::mt19937 engine(0);
  Values<In> source(B * m * S, true), target(B * m * n, true), grad(B * S * n, true);
  Values<In> map(B * S * n), source_grad(source.size()), target_grad(target.size());
  Values<T> row_max(B * S), norm(B * n), beta(B * S);
  std::vector<int64_t> where(B * S, -1);
  std::vector<In> all;
  const auto keep = [&](const char* name, const Values<In>& x) {
    check(name, x);
    all.insert(all.end(), x.begin(), x.end());
  };
  const Features<In> z{B, m, S, n, source.data(), target.data(), 0, n};
  const Statistics<T> statistics{T(1e-5), row_max.data(), where.data(), norm.data()};
  for (bool reversed : {false, true}) {
    emulation::state().reversed = reversed;
    Scratch scratch;
    run_correlation_4d<In>(z, tf32, make_map(map.data(), S, n, channels_last), scratch.allocate(), nullptr);
    keep("correlation_4d", map);
    run_correlation_4d_backward<In>(
        z, tf32, make_map<const In>(grad.data(), S, n, channels_last), source_grad.data(), target_grad.data(),
        scratch.allocate(), nullptr);
    keep("correlation_4d source_grad", source_grad);
    keep("correlation_4d target_grad", target_grad);
    run_guided_correlation<In>(
        z, statistics, tf32, make_map(map.data(), S, n, channels_last), scratch.allocate(), nullptr);
    keep("guided_correlation", map);
    run_backward<true, In, In>(
        z, statistics, tf32, make_map<const In>(grad.data(), S, n, channels_last),
        FeatureGrads<In>{source_grad.data(), target_grad.data(), beta.data(), false, true}, scratch.allocate(),
        nullptr);
    keep("guided_correlation source_grad", source_grad);
    keep("guided_correlation target_grad", target_grad);
    run_soft_mutual_normalize<In>(grad.data(), B, S, n, statistics, map.data(), scratch.allocate(), nullptr);
    keep("soft_mutual_normalize", map);
    run_soft_mutual_normalize_backward<In>(
        grad.data(), grad.data(), B, S, n, statistics, map.data(), scratch.allocate(), nullptr);
    keep("soft_mutual_normalize_backward", map);
    if constexpr (std::is_same_v<In, T>) {
      const int64_t begin = n / 3, count = n - begin - n / 4;
      const Features<In> part{B, m, S, n, source.data(), target.data(), begin, count};
      Values<BFloat16> band(B * S * count), band_grad(B * S * count, true);
      Values<In> into(source.size(), true), added(B * S, true), columns(target.size(), true);
      run_row_max<In>(z, statistics, tf32, scratch.allocate(), nullptr);
      run_band<In, BFloat16>(
          part, statistics, tf32, make_map(band.data(), S, count, false), scratch.allocate(), nullptr);
      check("band", band);
      run_backward<true, In, BFloat16>(
          part, statistics, tf32, make_map<const BFloat16>(band_grad.data(), S, count, false),
          FeatureGrads<In>{into.data(), columns.data(), added.data(), true, false}, scratch.allocate(), nullptr);
      run_row_max_backward<In>(z, statistics, added.data(), into.data(), columns.data(), nullptr);
      check("band source_grad", into);
      check("band target_grad", columns);
    }
  }
  return all;
}

template <class In, class Flow>
std::vector<In> samples(int64_t channels, int64_t image, int64_t flow, int64_t size, bool zeros) {
  using T = Compute<In>;
  constexpr int64_t B = 2;
  Values<In> pixels(B * channels * image * (image + 1), true), result(B * channels * size * (size + 2));
  Values<In> grad(result.size(), true), image_grad(pixels.size());
  Values<Flow> to(B * 2 * flow * (flow + 2), true), flow_grad(to.size());
  std::vector<In> all;
  for (bool reversed : {false, true}) {
    emulation::state().reversed = reversed;
    Scratch scratch;
    const Axis<T> x = make_axis<T>(image + 1, flow + 2, size + 2), y = make_axis<T>(image, flow, size);
    SampleGeometry<T> g{B, channels, x, y, zeros, nullptr};
    g.displacement = make_displacement<Flow, T>(B, flow, flow + 2, to.data(), scratch.allocate(), nullptr);
    run_flow_sample<In>(g, pixels.data(), result.data(), nullptr);
    run_image_gradient<In>(g, grad.data(), image_grad.data(), scratch.allocate(), nullptr, reversed ? 1 : INT32_MAX);
    run_flow_gradient<In, Flow>(g, pixels.data(), grad.data(), flow_grad.data(), scratch.allocate(), nullptr);
    check("flow_sample", result);
    check("flow_sample image_grad", image_grad);
    check("flow_sample flow_grad", flow_grad);
    all.insert(all.end(), result.begin(), result.end());
    all.insert(all.end(), image_grad.begin(), image_grad.end());
  }
  return all;
}

// What the second order of threads gave is what the first one gave.
template <class In>
void same_halves(const char* name, const std::vector<In>& all) {
  const size_t half = all.size() / 2;
  if (std::memcmp(all.data(), all.data() + half, half * sizeof(In)) != 0) {
    std::printf("%s: depends on the order of threads\n", name);
    ++failures;
  }
}

}  // namespace

int main() {
  for (const Shape& shape : {Shape{2, 9, 131, 66}, Shape{1, 1, 1, 1}, Shape{1, 50, 5, 133}}) {
    emulation::state().few_blocks = shape.batch == 2;
    same_halves("float32", correlations<float>(shape, false, true));
    same_halves("TF32", correlations<float>(shape, true, false));
  }
  same_halves("flow float32", samples<float, float>(5, 7, 3, 9, false));
  same_halves("flow float32", samples<float, float>(1, 1, 1, 20, true));
  same_halves("flow float16", samples<Half, BFloat16>(9, 6, 9, 4, true));
  std::printf("%s\n", failures == 0 ? "nothing found" : "FAILED");
  return failures != 0;
}
