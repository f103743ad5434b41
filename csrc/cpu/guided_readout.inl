// Loops of guided_readout for one instruction set; the mathematics is at the top of guided_readout.cpp.
#include "cpu/matrix.inl"
#include "cpu/product.inl"
#include "cpu/products.inl"
#include "cpu/soft_mutual.inl"
#include "cpu/row_max.inl"

// Columns [s0, s0 + count) of v [n][S] as rows [round_up(n, kRows)][count], zeros where there are none.
template <class In, class T = compute_t<In>>
static void copy_columns(const In* v, int64_t n, int64_t S, int64_t s0, int64_t count, T* to) {
  const int64_t valid = std::clamp<int64_t>(S - s0, 0, count);
  for (int64_t r = 0; r < round_up(n, kRows); ++r, to += count) {
    const int64_t here = r < n ? valid : 0;
    std::transform(v + r * S + s0, v + r * S + s0 + here, to, [](In x) { return static_cast<T>(x); });
    std::fill(to + here, to + count, T(0));
  }
}

// ---- forward: a block of targets walks the sources in chunks

constexpr int kChunkSources = 96;  // a multiple of every kRows

// The values of a chunk, and powers of u by a panel of targets: what a worker multiplies. In the compute type.
template <class T>
struct WideValues {
  static constexpr int kHeight = kRows;
  T* powers;  // [kChunkSources][kCols]
  T* values;  // [outputs][kChunkSources]

  // In units of T.
  static int64_t size(int64_t outputs) {
    return kChunkSources * (kCols<T> + outputs);
  }
  explicit WideValues(T* scratch) : powers(scratch), values(scratch + kChunkSources * kCols<T>) {}

  // Of the sources from s0 on, of which `count` have powers.
  void begin(const ReadoutValues<T>& v, int64_t S, int64_t s0, int64_t) {
    copy_columns(v.values, v.outputs, S, s0, kChunkSources, values);
  }
  // Rows s and s + 1.
  __attribute__((always_inline)) void put(int64_t s, const vec<T> (&power)[2][kVecs]) {
    for (int i = 0; i < 2 * kVecs; ++i) {
      store(powers + s * kCols<T> + i * simd<T>::width, (&power[0][0])[i]);
    }
  }
  // sums [outputs][kCols] += values times powers: a sum of its own for each chunk, so that float32 keeps its accuracy
  // over thousands of sources.
  void add(int64_t outputs, int64_t count, T* sums) const {
    constexpr int W = simd<T>::width;
    for (int64_t r = 0; r < outputs; r += kRows) {
      vec<T> acc[kRows][kVecs];
      zero_tile<T>(acc);
      multiply_tile<T, kRows, kVecs>(count, values + r * kChunkSources, kChunkSources, 1, powers, kCols<T>, acc);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          T* at = sums + (r + i) * kCols<T> + j * W;
          store(at, load(at) + acc[i][j]);
        }
      }
    }
  }
};

// The powers u^p of a chunk, `count` panels of sources by one of targets, and the squares of u summed over it.
template <bool kSquared, class Tiles, class Values, class T>
static void panel_powers(
    const Tiles& z, const T* inverse_b, int64_t p0, int64_t count, int64_t q, Values& to, vec<T> (&total)[kVecs]) {
  vec<T> squares[kVecs] = {};
  for (int64_t p = 0; p < count; ++p) {
    vec<T> c[kRows][kVecs];
    z.tile(p0 + p, q, c);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i += 2) {
      vec<T> power[2][kVecs];
#pragma GCC unroll 4
      for (int j = 0; j < 2 * kVecs; ++j) {
        const vec<T> here = c[i + j / kVecs][j % kVecs];
        const vec<T> u = here * here * (here * inverse_b[(p0 + p) * kRows + i + j / kVecs]);
        squares[j % kVecs] += u * u;
        power[j / kVecs][j % kVecs] = kSquared ? u * u : u;
      }
      to.put(p * kRows + i, power);
    }
  }
  for (int j = 0; j < kVecs; ++j) {
    total[j] += squares[j];
  }
}

// Target panels [q0, q0 + panels) of T targets: their results [n][T] and norms. `sums` is [panels][outputs][kCols].
template <bool kSquared, class Tiles, class Values, class T>
static void readout_block(
    const Tiles& z, int64_t S, int64_t targets, int64_t q0, int64_t panels, const T* inverse_b, T eps,
    const ReadoutValues<T>& v, Values& chunk, T* sums, T* result, T* norm) {
  constexpr int W = simd<T>::width;
  const int64_t outputs = round_up(v.outputs, Values::kHeight), padded = round_up(S, kRows);
  vec<T> total[kMaxVecs / kVecs][kVecs] = {};
  std::fill(sums, sums + panels * outputs * kCols<T>, T(0));
  for (int64_t s0 = 0; s0 < padded; s0 += kChunkSources) {
    const int64_t count = std::min<int64_t>(kChunkSources, padded - s0);
    chunk.begin(v, S, s0, count);
    for (int64_t q = 0; q < panels; ++q) {
      panel_powers<kSquared>(z, inverse_b, s0 / kRows, count / kRows, q0 + q, chunk, total[q]);
      chunk.add(outputs, count, sums + q * outputs * kCols<T>);
    }
  }
  for (int64_t q = 0; q < panels; ++q) {
    const int64_t t0 = (q0 + q) * kCols<T>, valid = std::min<int64_t>(kCols<T>, targets - t0);
    vec<T> scale[kVecs] = {};
    for (int64_t t = 0; t < valid; ++t) {
      const T root = std::sqrt(total[q][t / W][t % W]);
      norm[t0 + t] = root < eps ? eps : root;
      const T inverse = 1 / norm[t0 + t];
      scale[t / W][t % W] = kSquared ? inverse * inverse : inverse;
    }
    for (int64_t r = 0; r < v.outputs; ++r) {
      for (int64_t t = 0; t < valid; t += W) {
        T* const out = result + r * targets + t0 + t;
        const vec<T> x = load(sums + (q * outputs + r) * kCols<T> + t) * scale[t / W];
        if (t + W <= valid) {
          store(out, x);
        } else {
          store_part(out, x, valid - t);
        }
      }
    }
  }
}

// The widest block whose tasks are still enough for many threads.
template <class T>
static int64_t readout_panels(int64_t batch, int64_t panels) {
  return std::clamp<int64_t>(batch * panels / 32, 1, kMaxVecs / kVecs);
}

template <class In, class Packed, class Values>
static void readout_with(const ReadoutArguments<In>& x) {
  using T = compute_t<In>;
  using Tiles = typename Packed::Tiles;
  const Features<In>& z = x.z;
  Packed packed = pack_all<Packed>(z);
  row_max_of<In>({z, x.statistics, nullptr}, packed);
  const int64_t rows = round_up(z.sources, kRows), panels = round_up(z.targets, kCols<T>) / kCols<T>;
  const int64_t per_block = readout_panels<T>(z.batch, panels), blocks = round_up(panels, per_block) / per_block;
  Scratch<T> inverse_b(z.batch * rows);
  for (int64_t b = 0; b < z.batch; ++b) {
    invert(x.statistics.row_max + b * z.sources, z.sources, rows, inverse_b.data() + b * rows);
  }
  const int64_t outputs = round_up(x.v.outputs, Values::kHeight), of_values = Values::size(outputs);
  const int64_t per_worker = of_values + per_block * outputs * kCols<T>;
  Scratch<T> scratch(count_workers(z.batch * blocks) * per_worker);
  const auto block =
      x.v.squared ? readout_block<true, Tiles, Values, T> : readout_block<false, Tiles, Values, T>;
  for_each_task(z.batch * blocks, [&](int64_t worker, int64_t task) {
    [[maybe_unused]] const typename Tiles::Session session;
    const int64_t b = task / blocks, q0 = task % blocks * per_block;
    T* mine = scratch.data() + worker * per_worker;
    Values chunk(mine);
    ReadoutValues<T> v = x.v;
    v.values += b * v.values_batch;
    block(
        packed.at(b), z.sources, z.targets, q0, std::min(per_block, panels - q0), inverse_b.data() + b * rows,
        x.statistics.eps, v, chunk, mine + of_values, x.result + b * v.outputs * z.targets,
        x.statistics.norm + b * z.targets);
  });
}

#include "cpu/guided_readout_backward.inl"
#include "cpu/guided_readout_tiles.inl"

template <class In>
void guided_readout(const ReadoutArguments<In>& x) {
  using Wide = WideValues<compute_t<In>>;
  auto function = readout_with<In, PackedProducts<In>, Wide>;
  if (uses_tiles<In>()) {
    function = x.v.narrow ? readout_with<In, TilesOrPanels<In>, NarrowValues<In>>
                          : readout_with<In, TilesOrPanels<In>, Wide>;
  }
  function(x);
}

template <class In>
void guided_readout_backward(const ReadoutBackwardArguments<In>& x) {
  using Wide = WideReadout<compute_t<In>>;
  auto function = readout_backward_with<In, WideFeatures<In>, Wide>;
  if (uses_tiles<In>()) {
    function = x.v.narrow ? readout_backward_with<In, NarrowFeatures<In>, NarrowReadout<In>>
                          : readout_backward_with<In, NarrowFeatures<In>, Wide>;
  }
  function(x);
}
