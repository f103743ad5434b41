// Loops of mutual_matches for one instruction set; how they go is at the top of mutual_matches.cpp.
#include "cpu/matrix.inl"
#include "cpu/product.inl"
#include "cpu/products.inl"
#include "cpu/maxima.inl"

template <class T>
SIMD_INLINE bool any(ints<T> lanes) {
  uint64_t words[SIMD_BYTES / 8], found = 0;
  std::memcpy(words, &lanes, SIMD_BYTES);
  for (const uint64_t word : words) {
    found |= word;
  }
  return found != 0;
}

// A NaN is the largest value.
template <class T>
SIMD_INLINE bool better(T value, T than) {
  return value > than || (value != value && than == than);
}
template <bool kMayBeNan, class T>
SIMD_INLINE ints<T> better_lanes(vec<T> value, vec<T> than) {
  if constexpr (kMayBeNan) {
    return (value > than) | ((value != value) & (than == than));
  }
  return value > than;
}
template <bool kMayBeNan, class T>
SIMD_INLINE vec<T> better_of(vec<T> value, vec<T> than) {
  return better_lanes<kMayBeNan, T>(value, than) ? value : than;
}

// Of a vector; by quarters where it has as many.
template <bool kMayBeNan, class T>
SIMD_INLINE T best_lane(vec<T> x) {
  typedef T part __attribute__((vector_size(16)));
  constexpr int kParts = SIMD_BYTES / 16, kLanes = 16 / sizeof(T);
  part parts[kParts], most;
  std::memcpy(parts, &x, SIMD_BYTES);
  most = parts[0];
  for (int i = 1; i < kParts; ++i) {
    if constexpr (kMayBeNan) {
      most = (parts[i] > most) | ((parts[i] != parts[i]) & (most == most)) ? parts[i] : most;
    } else {
      most = parts[i] > most ? parts[i] : most;
    }
  }
  T best = most[0];
  for (int i = 1; i < kLanes; ++i) {
    best = better(T(most[i]), best) ? T(most[i]) : best;
  }
  return best;
}

// The best sources so far of the targets of a segment, best first. Sources come in their order, so that one which is
// only as good as another stands behind it.
template <class T>
struct BestSources {
  int64_t k;
  T* values;  // [targets][k]
  int64_t* sources;
  T* least;  // [targets]: the last of those that are there

  // Source s, which is better than the least, or one of the first k.
  void insert(int64_t target, T value, int64_t s) const {
    T* const values_here = values + target * k;
    int64_t* const sources_here = sources + target * k;
    int64_t at = std::min(s, k - 1);
    const int64_t last = at;
    for (; at > 0 && better(value, values_here[at - 1]); --at) {
      values_here[at] = values_here[at - 1];
      sources_here[at] = sources_here[at - 1];
    }
    values_here[at] = value;
    sources_here[at] = s;
    least[target] = values_here[last];
  }
};

// A register tile of C in memory, and which of its columns have something for their lists.
template <class T>
struct StoredTile {
  T c[kRows][kCols<T>];
  typename simd<T>::lane found[kCols<T>];
};

// The sources [s0, s0 + rows) of a tile, for the targets from `first` on.
template <class T>
static __attribute__((noinline)) void insert_tile(
    const StoredTile<T>& tile, int64_t s0, int64_t rows, int64_t first, const BestSources<T>& best) {
  for (int64_t column = 0; column < kCols<T>; ++column) {
    if (s0 >= best.k && !tile.found[column]) {
      continue;
    }
    for (int64_t i = 0; i < rows; ++i) {
      const T value = tile.c[i][column];
      if (s0 + i < best.k || better(value, best.least[first + column])) {
        best.insert(first + column, value, s0 + i);
      }
    }
  }
}

template <bool kMayBeNan, class T>
SIMD_INLINE void keep_sources(
    const vec<T> (&c)[kRows][kVecs], int64_t s0, int64_t rows, int64_t first, const BestSources<T>& best) {
  constexpr int W = simd<T>::width;
  ints<T> found[kVecs], either{};
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) {
    vec<T> most = c[0][j];
#pragma GCC unroll 16
    for (int i = 1; i < kRows; ++i) {
      most = better_of<kMayBeNan, T>(c[i][j], most);
    }
    found[j] = better_lanes<kMayBeNan, T>(most, load(best.least + first + j * W));
    either |= found[j];
  }
  if (s0 < best.k || any<T>(either)) {
    StoredTile<T> tile;
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        store(&tile.c[i][j * W], c[i][j]);
      }
      std::memcpy(&tile.found[j * W], &found[j], SIMD_BYTES);
    }
    insert_tile<T>(tile, s0, rows, first, best);
  }
}

// The best targets so far of all sources, and the segment each is in.
template <class T>
struct BestTargets {
  T* values;  // [S]
  int32_t* segments;
};

template <bool kMayBeNan, class T>
SIMD_INLINE void keep_targets(
    const vec<T> (&best)[kRows][kVecs], int64_t s0, int64_t rows, int64_t segment, const BestTargets<T>& targets) {
  for (int64_t i = 0; i < rows; ++i) {
    vec<T> most = best[i][0];
    for (int j = 1; j < kVecs; ++j) {
      most = better_of<kMayBeNan, T>(best[i][j], most);
    }
    const T value = best_lane<kMayBeNan, T>(most);
    if (better(value, targets.values[s0 + i])) {
      targets.values[s0 + i] = value;
      targets.segments[s0 + i] = static_cast<int32_t>(segment);
    }
  }
}

// All sources against a segment of n targets.
template <bool kMayBeNan, class Tiles, class T>
static void match_segment(
    const Tiles& z, int64_t S, int64_t n, int64_t segment, const BestSources<T>& sources,
    const BestTargets<T>& targets) {
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  const int64_t first = segment * kSegment, last = std::min(first + kSegment, round_up(n, kCols<T>) / kCols<T>);
  std::fill(sources.least, sources.least + kSegment * kCols<T>, kLowest);
  for (int64_t s0 = 0; s0 < S; s0 += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, S - s0);
    vec<T> best[kRows][kVecs];
    std::fill_n(&best[0][0], kRows * kVecs, splat<T>(kLowest));
    for (int64_t q = first; q < last; ++q) {
      vec<T> c[kRows][kVecs];
      z.tile(s0 / kRows, q, c);
      keep_larger<kMayBeNan, T>(c, n - q * kCols<T>, best);
      keep_sources<kMayBeNan, T>(c, s0, rows, (q - first) * kCols<T>, sources);
    }
    keep_targets<kMayBeNan, T>(best, s0, rows, segment, targets);
  }
}

// The results of a segment's targets.
template <class In, class T = compute_t<In>>
static void write_sources(const MatchArguments<In>& x, int64_t b, int64_t segment, const BestSources<T>& best) {
  const int64_t t0 = segment * kSegment * kCols<T>, n = x.z.targets, k = x.k;
  for (int64_t t = t0; t < std::min<int64_t>(n, t0 + kSegment * kCols<T>); ++t) {
    for (int64_t r = 0; r < k; ++r) {
      x.sources[(b * k + r) * n + t] = best.sources[(t - t0) * k + r];
      x.correlations[(b * k + r) * n + t] = static_cast<In>(best.values[(t - t0) * k + r]);
    }
  }
}

// From the maxima that tasks have found, those of a sample in a row, to the result.
template <class In, class Packed, class T = compute_t<In>>
static void write_targets(
    const MatchArguments<In>& x, int64_t slots, Packed& packed, const BestTargets<T>& found) {
  const int64_t S = x.z.sources;
  torch::stable::parallel_for(0, x.z.batch * S, 64, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const typename Packed::Tiles::Session session;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / S, s = i % S;
      T value = found.values[b * slots * S + s];
      int64_t segment = found.segments[b * slots * S + s];
      for (int64_t slot = 1; slot < slots; ++slot) {
        const int64_t at = (b * slots + slot) * S + s;
        if (better(found.values[at], value)) {
          value = found.values[at];
          segment = found.segments[at];
        }
      }
      x.targets[i] = find_in_segment<T>(packed.at(b), s, x.z.targets, segment);
      x.target_correlations[i] = static_cast<In>(value);
    }
  });
}

template <class In, class Packed>
static void match_with(const MatchArguments<In>& x) {
  using T = compute_t<In>;
  using Tiles = typename Packed::Tiles;
  constexpr int64_t kTargets = kSegment * kCols<T>;
  const Features<In>& z = x.z;
  const int64_t S = z.sources, n = z.targets;
  Packed packed = pack_all<Packed>(z);
  const auto function = may_be_nan(z) ? match_segment<true, Tiles, T> : match_segment<false, Tiles, T>;
  const int64_t segments = round_up(n, kTargets) / kTargets;
  const int64_t slots = std::clamp<int64_t>((32 + z.batch - 1) / z.batch, 1, segments), tasks = z.batch * slots;
  Scratch<T> target_values(tasks * S), values(count_workers(tasks) * kTargets * x.k);
  Scratch<T> least(count_workers(tasks) * kTargets);
  Scratch<int32_t> target_segments(tasks * S);
  Scratch<int64_t> places(count_workers(tasks) * kTargets * x.k);
  std::fill_n(target_values.data(), tasks * S, -std::numeric_limits<T>::infinity());
  for_each_task(tasks, [&](int64_t worker, int64_t task) {
    [[maybe_unused]] const typename Tiles::Session session;
    const int64_t b = task / slots, slot = task % slots, first = segments * slot / slots;
    const BestTargets<T> targets{target_values.data() + task * S, target_segments.data() + task * S};
    const BestSources<T> sources{
        x.k, values.data() + worker * kTargets * x.k, places.data() + worker * kTargets * x.k,
        least.data() + worker * kTargets};
    // Where all is minus infinity, the first segment is as good as any.
    std::fill_n(targets.segments, S, static_cast<int32_t>(first));
    for (int64_t segment = first; segment < segments * (slot + 1) / slots; ++segment) {
      function(packed.at(b), S, n, segment, sources, targets);
      write_sources(x, b, segment, sources);
    }
  });
  write_targets(x, slots, packed, BestTargets<T>{target_values.data(), target_segments.data()});
}

template <class In>
void match(const MatchArguments<In>& x) {
  const auto function = uses_tiles<In>() ? match_with<In, TilesOrPanels<In>> : match_with<In, PackedProducts<In>>;
  function(x);
}
