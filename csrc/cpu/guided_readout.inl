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

// The values and the results of sample b.
template <class T>
static PerPower<ReadoutValues<T>> values_of_sample(PerPower<ReadoutValues<T>> v, int64_t b) {
  for (ReadoutValues<T>& one : v) {
    one.values += b * one.values_batch;
  }
  return v;
}
template <class T, class Pointer>
static PerPower<Pointer> results_of_sample(
    const PerPower<ReadoutValues<T>>& v, PerPower<Pointer> all, int64_t targets, int64_t b) {
  for (int p = 0; p < 2; ++p) {
    all[p] += b * v[p].outputs * targets;
  }
  return all;
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

// In the place of values that are not there.
struct NoValues {
  static constexpr int kHeight = 1;
  static int64_t size(int64_t) {
    return 0;
  }
  template <class T>
  explicit NoValues(T*) {}
  template <class T>
  void begin(const ReadoutValues<T>&, int64_t, int64_t, int64_t) {}
  template <class V>
  __attribute__((always_inline)) void put(int64_t, const V&) {}
  template <class T>
  void add(int64_t, int64_t, T*) const {}
};

// u and u^2 of a chunk, `count` panels of sources by one of targets, and the squares of u summed over it.
template <class Linear, class Squares, class Tiles, class T>
static void panel_powers(
    const Tiles& z, const T* inverse_b, int64_t p0, int64_t count, int64_t q, Linear& linear, Squares& squared,
    vec<T> (&total)[kVecs]) {
  vec<T> squares[kVecs] = {};
  for (int64_t p = 0; p < count; ++p) {
    vec<T> c[kRows][kVecs];
    z.tile(p0 + p, q, c);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i += 2) {
      vec<T> power[2][kVecs], square[2][kVecs];
#pragma GCC unroll 4
      for (int j = 0; j < 2 * kVecs; ++j) {
        const vec<T> here = c[i + j / kVecs][j % kVecs];
        const vec<T> u = here * here * (here * inverse_b[(p0 + p) * kRows + i + j / kVecs]);
        power[j / kVecs][j % kVecs] = u;
        square[j / kVecs][j % kVecs] = u * u;
        squares[j % kVecs] += u * u;
      }
      linear.put(p * kRows + i, power);
      squared.put(p * kRows + i, square);
    }
  }
  for (int j = 0; j < kVecs; ++j) {
    total[j] += squares[j];
  }
}

// Results [n][.] of a panel from target t0 on: its sums, each column times its scale.
template <class T>
static void write_results(
    const T* sums, int64_t outputs, int64_t targets, int64_t t0, const vec<T> (&scale)[kVecs], T* result) {
  constexpr int W = simd<T>::width;
  const int64_t valid = std::min<int64_t>(kCols<T>, targets - t0);
  for (int64_t r = 0; r < outputs; ++r) {
    for (int64_t t = 0; t < valid; t += W) {
      T* const out = result + r * targets + t0 + t;
      const vec<T> x = load(sums + r * kCols<T> + t) * scale[t / W];
      if (t + W <= valid) {
        store(out, x);
      } else {
        store_part(out, x, valid - t);
      }
    }
  }
}

// A worker's values of one power, and its sums [panels][outputs][kCols].
template <class Values, class T>
struct ReadoutSums {
  int64_t outputs;  // in whole panels
  Values chunk;
  T* sums;

  ReadoutSums(int64_t n, T* scratch)
      : outputs(round_up(n, Values::kHeight)), chunk(scratch), sums(scratch + Values::size(outputs)) {}
  static int64_t size(int64_t n, int64_t panels) {
    const int64_t outputs = round_up(n, Values::kHeight);
    return Values::size(outputs) + panels * outputs * kCols<T>;
  }
  T* of(int64_t panel) {
    return sums + panel * outputs * kCols<T>;
  }
};

// Target panels [q0, q0 + panels) of T targets: their results [n][T] and norms.
template <class Linear, class Squares, class Tiles, class T>
static void readout_block(
    const Tiles& z, int64_t S, int64_t targets, int64_t q0, int64_t panels, const T* inverse_b, T eps,
    const PerPower<ReadoutValues<T>>& v, Linear& linear, Squares& squared, const PerPower<T*>& result, T* norm) {
  constexpr int W = simd<T>::width;
  const int64_t padded = round_up(S, kRows);
  vec<T> total[kMaxVecs / kVecs][kVecs] = {};
  std::fill(linear.of(0), linear.of(panels), T(0));
  std::fill(squared.of(0), squared.of(panels), T(0));
  for (int64_t s0 = 0; s0 < padded; s0 += kChunkSources) {
    const int64_t count = std::min<int64_t>(kChunkSources, padded - s0);
    linear.chunk.begin(v[0], S, s0, count);
    squared.chunk.begin(v[1], S, s0, count);
    for (int64_t q = 0; q < panels; ++q) {
      panel_powers(z, inverse_b, s0 / kRows, count / kRows, q0 + q, linear.chunk, squared.chunk, total[q]);
      linear.chunk.add(linear.outputs, count, linear.of(q));
      squared.chunk.add(squared.outputs, count, squared.of(q));
    }
  }
  for (int64_t q = 0; q < panels; ++q) {
    const int64_t t0 = (q0 + q) * kCols<T>, valid = std::min<int64_t>(kCols<T>, targets - t0);
    vec<T> scale[2][kVecs] = {};
    for (int64_t t = 0; t < valid; ++t) {
      const T root = std::sqrt(total[q][t / W][t % W]);
      norm[t0 + t] = root < eps ? eps : root;
      const T inverse = 1 / norm[t0 + t];
      scale[0][t / W][t % W] = inverse;
      scale[1][t / W][t % W] = inverse * inverse;
    }
    write_results(linear.of(q), v[0].outputs, targets, t0, scale[0], result[0]);
    write_results(squared.of(q), v[1].outputs, targets, t0, scale[1], result[1]);
  }
}

// The widest block whose tasks are still enough for many threads.
template <class T>
static int64_t readout_panels(int64_t batch, int64_t panels) {
  return std::clamp<int64_t>(batch * panels / 32, 1, kMaxVecs / kVecs);
}

template <class In, class Packed, class Linear, class Squares>
static void readout_with(const ReadoutArguments<In>& x) {
  using T = compute_t<In>;
  using OfLinear = ReadoutSums<Linear, T>;
  using OfSquares = ReadoutSums<Squares, T>;
  const Features<In>& z = x.z;
  Packed packed = pack_all<Packed>(z);
  row_max_of<In>({z, x.statistics, nullptr}, packed);
  const int64_t rows = round_up(z.sources, kRows), panels = round_up(z.targets, kCols<T>) / kCols<T>;
  const int64_t per_block = readout_panels<T>(z.batch, panels), blocks = round_up(panels, per_block) / per_block;
  Scratch<T> inverse_b(z.batch * rows);
  for (int64_t b = 0; b < z.batch; ++b) {
    invert(x.statistics.row_max + b * z.sources, z.sources, rows, inverse_b.data() + b * rows);
  }
  const int64_t of_linear = OfLinear::size(x.v[0].outputs, per_block);
  const int64_t per_worker = of_linear + OfSquares::size(x.v[1].outputs, per_block);
  Scratch<T> scratch(count_workers(z.batch * blocks) * per_worker);
  for_each_task(z.batch * blocks, [&](int64_t worker, int64_t task) {
    [[maybe_unused]] const typename Packed::Tiles::Session session;
    const int64_t b = task / blocks, q0 = task % blocks * per_block;
    T* mine = scratch.data() + worker * per_worker;
    OfLinear linear(x.v[0].outputs, mine);
    OfSquares squared(x.v[1].outputs, mine + of_linear);
    readout_block(
        packed.at(b), z.sources, z.targets, q0, std::min(per_block, panels - q0), inverse_b.data() + b * rows,
        x.statistics.eps, values_of_sample(x.v, b), linear, squared, results_of_sample(x.v, x.result, z.targets, b),
        x.statistics.norm + b * z.targets);
  });
}

#include "cpu/guided_readout_backward.inl"
#include "cpu/guided_readout_tiles.inl"

// What multiplies: values of bfloat16 in the tile registers, where there are some, alone or beside squares' in C's type.
template <class In, class Packed, class Linear, class Wide>
static void readout_of(const ReadoutArguments<In>& x) {
  if (x.v[1].outputs == 0) {
    readout_with<In, Packed, Linear, NoValues>(x);
  } else if (x.v[0].outputs == 0) {
    readout_with<In, Packed, NoValues, Linear>(x);
  } else {
    readout_with<In, Packed, Linear, Wide>(x);
  }
}

template <class In>
void guided_readout(const ReadoutArguments<In>& x) {
  using Wide = WideValues<compute_t<In>>;
  const bool narrow = x.v[x.v[0].outputs == 0].narrow && uses_tile_registers<In>();
  auto function = readout_of<In, PackedProducts<In>, Wide, Wide>;
  if (uses_tiles<In>()) {
    function = narrow ? readout_of<In, TilesOrPanels<In>, NarrowValues<In>, Wide>
                      : readout_of<In, TilesOrPanels<In>, Wide, Wide>;
  }
  function(x);
}

template <class In>
void guided_readout_backward(const ReadoutBackwardArguments<In>& x) {
  using Wide = WideReadout<compute_t<In>>;
  auto function = readout_backward_of<In, WideFeatures<In, PackedProducts<In>>, Wide, Wide>;
  if (uses_tile_registers<In>()) {
    function = x.v[x.v[0].outputs == 0].narrow ? readout_backward_of<In, NarrowFeatures<In>, NarrowReadout<In>, Wide>
                                               : readout_backward_of<In, NarrowFeatures<In>, Wide, Wide>;
  } else if (uses_tiles<In>()) {
    function = readout_backward_of<In, WideFeatures<In, TilesOrPanels<In>>, Wide, Wide>;
  }
  function(x);
}
