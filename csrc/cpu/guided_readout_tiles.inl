// What guided_readout multiplies through the tile registers, with bfloat16 features, beside C. Part of
// guided_readout.inl.

#if defined(SIMD_AVX512) && defined(SIMD_AMX)

// x [n][S] from column s0 on, whose values are bfloat16, as rows [.][count]; zeros up to `padded` rows and beyond S.
static void copy_narrow(
    const float* x, int64_t n, int64_t S, int64_t s0, int64_t count, int64_t padded, amx::Bits* to) {
  const int64_t valid = std::clamp<int64_t>(S - s0, 0, count);
  for (int64_t r = 0; r < padded; ++r, to += count) {
    const int64_t here = r < n ? valid : 0;
    const float* from = x + r * S + s0;
    for (int64_t i = 0; i < here; ++i) {
      uint32_t bits;
      std::memcpy(&bits, from + i, sizeof(bits));
      to[i] = static_cast<amx::Bits>(bits >> 16);
    }
    std::fill(to + here, to + count, amx::Bits(0));
  }
}

// As WideValues, for values that are bfloat16.
struct NarrowTiles {
  static constexpr int kHeight = amx::kHeight;
  static constexpr int64_t kPowers = kChunkSources * amx::kWidth;
  static_assert(kChunkSources % amx::kDepth == 0);
  amx::Bits* high;  // pairs of sources [kChunkSources / 2][kWidth][2]
  amx::Bits* low;
  amx::Bits* values;  // [outputs][kChunkSources]

  static int64_t size(int64_t outputs) {
    return kPowers + outputs * kChunkSources / 2;
  }
  explicit NarrowTiles(float* scratch)
      : high(reinterpret_cast<amx::Bits*>(scratch)), low(high + kPowers), values(low + kPowers) {}

  void begin(const ReadoutValues<float>& v, int64_t S, int64_t s0, int64_t count) {
    copy_narrow(v.values, v.outputs, S, s0, kChunkSources, round_up(v.outputs, kHeight), values);
    for (amx::Bits* powers : {high, low}) {
      std::fill(powers + count * amx::kWidth, powers + kPowers, amx::Bits(0));
    }
  }
  __attribute__((always_inline)) void put(int64_t s, const vec<float> (&power)[2][kVecs]) {
    store_pairs(power, high + s * amx::kWidth, low + s * amx::kWidth);
  }
  void add(int64_t outputs, int64_t count, float* sums) const {
    const amx::Matrix powers{high, low, 2 * amx::kWidth};
    const int64_t depth = round_up(count, amx::kDepth) / amx::kDepth;
    for (int64_t r = 0; r < outputs; r += 2 * kHeight) {
      alignas(64) float block[2 * kHeight * amx::kWidth];
      const bool tall = r + kHeight < outputs;
      (tall ? amx::multiply_tall : amx::multiply)(
          depth, {values + r * kChunkSources, nullptr, kChunkSources}, powers, block, amx::kWidth);
      float* const at = sums + r * amx::kWidth;
      for (int64_t i = 0; i < (tall ? 2 : 1) * kHeight * amx::kWidth; i += simd<float>::width) {
        store(at + i, load(at + i) + load(block + i));
      }
    }
  }
};

// ---- backward

// dC or Qhat^p of a block by a chunk in pairs of targets: [kBlockSources / kWidth][kBlockTargets / 2][kWidth][2].
struct PairsOfTargets {
  static constexpr int64_t kPanel = kBlockTargets * amx::kWidth, kSize = kBlockSources * kBlockTargets;
  static_assert(kBlockTargets % amx::kDepth == 0 && kBlockSources % amx::kWidth == 0 && kMostRows == amx::kHeight);
  amx::Bits* high;
  amx::Bits* low;

  explicit PairsOfTargets(amx::Bits* scratch) : high(scratch), low(scratch + kSize) {}
  __attribute__((always_inline)) void put(int64_t t, int64_t s, const vec<float> (&c)[2][kVecs]) {
    const int64_t at = s / amx::kWidth * kPanel + t * amx::kWidth;
    store_pairs(c, high + at, low + at);
  }
  // Rows [0, n) of out [.][S], at most `valid` columns, += a [.][kBlockTargets] times these.
  void add_product_to_rows(int64_t n, const amx::Bits* a, int64_t valid, float* out, int64_t S) const {
    for (int64_t r = 0; r < n; r += 2 * amx::kHeight) {
      for (int64_t s = 0; s < valid; s += amx::kWidth) {
        const int64_t panel = s / amx::kWidth * kPanel;
        alignas(64) float block[2 * amx::kHeight][amx::kWidth];
        (n - r > amx::kHeight ? amx::multiply_tall : amx::multiply)(
            kBlockTargets / amx::kDepth, {a + r * kBlockTargets, nullptr, kBlockTargets},
            {high + panel, low + panel, 2 * amx::kWidth}, block[0], amx::kWidth);
        for (int64_t i = 0; i < std::min<int64_t>(2 * amx::kHeight, n - r); ++i) {
          add_row(block[i], valid - s, out + (r + i) * S + s);
        }
      }
    }
  }
  static void add_row(const float* row, int64_t valid, float* out) {
    constexpr int W = simd<float>::width;
    for (int64_t j = 0; j < std::min<int64_t>(valid, amx::kWidth); j += W) {
      if (j + W <= valid) {
        store(out + j, load(out + j) + load(row + j));
      } else {
        store_part(out + j, load_part(out + j, valid - j) + load(row + j), valid - j);
      }
    }
  }
};

// As WideFeatures; dC is in two parts of bfloat16.
class FeatureTiles {
 public:
  struct Packed {
    Packed(const Features<BFloat16>& z, int64_t columns, int64_t rows_)
        : products(z.batch, z.m, targets_of(z), columns, sources_of(z), rows_),
          rows(rows_),
          depth(round_up(z.m, amx::kDepth) / amx::kDepth),
          source_pairs(z.batch * rows * depth * amx::kDepth) {
      torch::stable::parallel_for(0, z.batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          amx::pack_columns(
              reinterpret_cast<const amx::Bits*>(z.source + b * z.m * z.sources), z.m, z.sources, z.sources, rows,
              depth, source_pairs.data() + b * rows * depth * amx::kDepth);
        }
      });
    }
    PackedTileProducts products;
    int64_t rows, depth;
    Scratch<amx::Bits> source_pairs;  // [depth kDepth / kWidth][rows / 2][kWidth][2] per sample
  };
  using Session = amx::Session;

  static int64_t size(const Packed& packed, int64_t m) {
    return round_up(m, amx::kHeight) * kBlockTargets / 2 + 2 * kBlockTargets * kBlockSources +
           kBlockTargets * packed.depth * amx::kDepth;
  }
  FeatureTiles(Packed& packed, int64_t b, const ReadoutSample<BFloat16>& x, int64_t t0, float* scratch)
      : tiles_(packed.products.at(b)),
        rows_(packed.rows),
        stride_(packed.depth * amx::kDepth),
        source_pairs_(packed.source_pairs.data() + b * rows_ * stride_),
        target_grad_(scratch),
        dc_rows_(reinterpret_cast<amx::Bits*>(target_grad_ + kBlockTargets * stride_)),
        dc_pairs_(dc_rows_ + 2 * kBlock),
        target_(dc_rows_ + 4 * kBlock) {
    std::fill(target_grad_, target_grad_ + kBlockTargets * stride_, 0.0f);
    const int64_t valid = std::min<int64_t>(kBlockTargets, x.targets - t0), padded = round_up(x.m, amx::kHeight);
    std::fill(target_, target_ + padded * kBlockTargets, amx::Bits(0));
    for (int64_t k = 0; k < x.m; ++k) {
      std::memcpy(target_ + k * kBlockTargets, x.target + k * x.targets + t0, valid * sizeof(amx::Bits));
    }
  }
  void fill(int64_t t, int64_t s, float* c) const {
    tiles_.write(t, s / amx::kWidth, c);
  }
  __attribute__((always_inline)) void put(int64_t t, int64_t s, const vec<float> (&dc)[2][kVecs]) {
    const int64_t at = t * kBlockSources + s;
    store_rows(dc, kBlockSources, dc_rows_ + at, dc_rows_ + kBlock + at);
    dc_pairs_.put(t, s, dc);
  }
  void add_target_grad(int64_t s0) {
    for (int64_t k = 0; k < stride_; k += amx::kWidth) {
      const amx::Matrix sources{source_pairs_ + k * rows_ + s0 * amx::kWidth, nullptr, 2 * amx::kWidth};
      static_assert(kBlockTargets % (2 * amx::kHeight) == 0);
      for (int64_t t = 0; t < kBlockTargets; t += 2 * amx::kHeight) {
        const amx::Bits* dc = dc_rows_ + t * kBlockSources;
        amx::add_tall(
            kBlockSources / amx::kDepth, {dc, dc + kBlock, kBlockSources}, sources, target_grad_ + t * stride_ + k,
            stride_);
      }
    }
  }
  void add_source_grad(const ReadoutSample<BFloat16>& x, int64_t s0, int64_t count) const {
    dc_pairs_.add_product_to_rows(x.m, target_, count, x.source_grad + s0, x.sources);
  }
  void write_target_grad(const ReadoutSample<BFloat16>& x, int64_t t0, int64_t valid) const {
    for (int64_t k = 0; k < x.m; ++k) {
      for (int64_t t = 0; t < valid; ++t) {
        x.target_grad[k * x.targets + t0 + t] = target_grad_[t * stride_ + k];
      }
    }
  }

 private:
  static constexpr int64_t kBlock = kBlockTargets * kBlockSources;
  TileProducts tiles_;
  int64_t rows_, stride_;
  const amx::Bits* source_pairs_;
  float* target_grad_;  // [kBlockTargets][stride]
  amx::Bits* dc_rows_;  // [kBlockTargets][kBlockSources], and the rest
  PairsOfTargets dc_pairs_;
  amx::Bits* target_;  // [m][kBlockTargets]
};

// As WideReadout, for values and a gradient that are bfloat16; Qhat^p is in two parts.
class ReadoutTiles {
 public:
  static int64_t size(int64_t outputs) {
    const int64_t depth = round_up(outputs, amx::kDepth), rows = round_up(outputs, amx::kHeight);
    return ((kBlockTargets + amx::kHeight + kBlockSources) * depth + rows * kBlockTargets) / 2 + PairsOfTargets::kSize;
  }
  ReadoutTiles(const ReadoutSample<BFloat16>& x, int power, int64_t t0, float* scratch)
      : outputs_(x.v[power].outputs),
        depth_(round_up(outputs_, amx::kDepth) / amx::kDepth),
        weights_(reinterpret_cast<amx::Bits*>(scratch)),
        grad_(weights_.low + PairsOfTargets::kSize),
        targets_(grad_ + round_up(outputs_, amx::kHeight) * kBlockTargets),
        values_(targets_ + (kBlockTargets + amx::kHeight) * depth_ * amx::kDepth) {
    const int64_t padded = round_up(outputs_, amx::kHeight);
    copy_narrow(x.grad[power], outputs_, x.targets, t0, kBlockTargets, padded, grad_);
    amx::pack_rows(
        grad_, outputs_, kBlockTargets, kBlockTargets, kBlockTargets + amx::kHeight, depth_, targets_);
  }
  void begin(const ReadoutValues<float>& v, int64_t S, int64_t s0) {
    const int64_t valid = std::min<int64_t>(kBlockSources, S - s0);
    constexpr int W = simd<float>::width;
    for (int64_t r = 0; r < depth_ * amx::kDepth; r += 2) {
      for (int64_t s = 0; s < kBlockSources; s += W) {
        vec<float> row[2] = {};
        for (int64_t i = 0; i < std::min<int64_t>(2, outputs_ - r); ++i) {
          const float* from = v.values + (r + i) * S + s0 + s;
          row[i] = s + W <= valid ? load(from) : s < valid ? load_part(from, valid - s) : vec<float>{};
        }
        const int64_t panel = s / amx::kWidth * depth_ * amx::kDepth * amx::kWidth;
        store_pairs(row[0], row[1], values_ + panel + r * amx::kWidth + s % amx::kWidth * 2);
      }
    }
  }
  void fill(int64_t t, int64_t s, float* g) const {
    TileProducts{targets_, values_, depth_, outputs_}.write(t, s / amx::kWidth, g);
  }
  __attribute__((always_inline)) void put(int64_t t, int64_t s, const vec<float> (&weights)[2][kVecs]) {
    weights_.put(t, s, weights);
  }
  void add_values_grad(int64_t count, float* out, int64_t S) const {
    weights_.add_product_to_rows(outputs_, grad_, count, out, S);
  }

 private:
  int64_t outputs_, depth_;
  PairsOfTargets weights_;
  amx::Bits* grad_;  // [outputs][kBlockTargets]
  amx::Bits* targets_;  // the same in rows of outputs, a register tile's height more of them
  amx::Bits* values_;  // panels of kWidth sources, pairs of outputs
};

template <class In>
using NarrowValues = std::conditional_t<kHasTiles<In>, NarrowTiles, WideValues<compute_t<In>>>;
template <class In>
using NarrowFeatures = std::conditional_t<kHasTiles<In>, FeatureTiles, WideFeatures<In, PackedProducts<In>>>;
template <class In>
using NarrowReadout = std::conditional_t<kHasTiles<In>, ReadoutTiles, WideReadout<compute_t<In>>>;

#else

template <class In>
using NarrowValues = WideValues<compute_t<In>>;
template <class In>
using NarrowFeatures = WideFeatures<In, PackedProducts<In>>;
template <class In>
using NarrowReadout = WideReadout<compute_t<In>>;

#endif
