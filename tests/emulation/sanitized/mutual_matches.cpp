#include "cuda/mutual_matches.cuh"

#include "sanitized.h"

namespace {

const Run mutual_matches_run([] {
  for_shapes([](const Shape& shape, bool tf32, bool) {
    const auto [B, m, S, n] = shape;
    const int64_t k = std::min<int64_t>(S, 3);
    Values<float> source(B * m * S, true), target(B * m * n, true), correlations(B * k * n), back(B * S);
    std::vector<int64_t> sources(B * k * n, -1), targets(B * S, -1);
    const Features<float> z{B, m, S, n, source.data(), target.data(), 0, n};
    Results<float> results;
    in_both_orders([&](const Context& context, bool) {
      run_mutual_matches(
          z, tf32, Matches<float>{k, sources.data(), correlations.data(), targets.data(), back.data()}, context);
      results.keep("mutual_matches", correlations);
      results.keep("mutual_matches target_correlations", back);
    });
    results.compare("mutual_matches");
    const auto within = [](const std::vector<int64_t>& places, int64_t end) {
      return std::all_of(places.begin(), places.end(), [&](int64_t at) { return at >= 0 && at < end; });
    };
    if (!within(sources, S) || !within(targets, n)) {
      std::printf("mutual_matches: a place outside the map\n");
      ++failures;
    }
  });
});

}  // namespace
