// Products of bfloat16 through amx.h, and what else of their operators has a form of its own for them. Part of
// products.inl.

#if defined(SIMD_AVX512) && defined(SIMD_AMX)

// ---- float32 in two parts, vectors at a time: leading bits, and the rest rounded; infinities have no rest

SIMD_INLINE u32s upper_bits(vec<float> x) {
  return reinterpret_cast<u32s>(x) & 0xffff0000u;
}

SIMD_INLINE u32s rest_bits(vec<float> x) {
  constexpr int kInfinities = 0x18;
  const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(x, kInfinities));
  const vec<float> rest = _mm512_maskz_sub_ps(finite, x, reinterpret_cast<vec<float>>(upper_bits(x)));
  return reinterpret_cast<u32s>(rest) + 0x8000;
}

// Two rows as pairs.
SIMD_INLINE void store_pairs(vec<float> even, vec<float> odd, amx::Bits* high) {
  const u32s leading = (reinterpret_cast<u32s>(even) >> 16) | upper_bits(odd);
  std::memcpy(high, &leading, sizeof(leading));
}

SIMD_INLINE void store_pairs(vec<float> even, vec<float> odd, amx::Bits* high, amx::Bits* low) {
  store_pairs(even, odd, high);
  const u32s rest = (rest_bits(even) >> 16) | (rest_bits(odd) & 0xffff0000u);
  std::memcpy(low, &rest, sizeof(rest));
}

SIMD_INLINE void store_pairs(const vec<float> (&rows)[2][kVecs], amx::Bits* high, amx::Bits* low) {
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) {
    const int64_t at = 2 * j * simd<float>::width;
    store_pairs(rows[0][j], rows[1][j], high + at, low + at);
  }
}

// The upper halves of two vectors.
SIMD_INLINE void store_halves(u32s first, u32s second, amx::Bits* to) {
  static constexpr auto kOdd = [] {
    std::array<amx::Bits, 32> order{};
    for (int i = 0; i < 32; ++i) {
      order[i] = static_cast<amx::Bits>(2 * i + 1);
    }
    return order;
  }();
  const __m512i order = _mm512_loadu_si512(kOdd.data());
  _mm512_storeu_si512(
      to, _mm512_permutex2var_epi16(reinterpret_cast<__m512i>(first), order, reinterpret_cast<__m512i>(second)));
}

// Two rows, `stride` apart.
SIMD_INLINE void store_rows(const vec<float> (&rows)[2][kVecs], int64_t stride, amx::Bits* high, amx::Bits* low) {
  static_assert(kVecs == 2);
  for (int i = 0; i < 2; ++i) {
    store_halves(reinterpret_cast<u32s>(rows[i][0]), reinterpret_cast<u32s>(rows[i][1]), high + i * stride);
    store_halves(rest_bits(rows[i][0]), rest_bits(rows[i][1]), low + i * stride);
  }
}

// ---- C

// The same as Products, through the tile registers, or where there are none through vectors of pairs.
struct TileProducts {
  const amx::Bits* left;  // rows
  const amx::Bits* right;  // panels of pairs
  int64_t depth, m;
  bool registers = simd_level() == SimdLevel::amx;

  using Session = amx::Session;
  static constexpr bool kCheap = true;
  static_assert(kRows <= amx::kHeight && kRows == bf16::kHeight && kCols<float> == amx::kWidth);

  void write(int64_t i, int64_t q, float* block) const {
    if (registers) {
      amx::multiply(depth, rows(i), pairs(q), block, amx::kWidth);
    } else {
      bf16::multiply(m, rows(i), pairs(q), block);
    }
  }
  __attribute__((always_inline)) void tile(int64_t p, int64_t q, vec<float> (&c)[kRows][kVecs]) const {
    alignas(64) float block[amx::kHeight * amx::kWidth];
    write(p * kRows, q, block);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        c[i][j] = load(block + i * amx::kWidth + j * simd<float>::width);
      }
    }
  }
  void row(int64_t i, int64_t q, vec<float> (&c)[1][kVecs]) const {
    alignas(64) float block[amx::kHeight * amx::kWidth];
    if (registers) {
      amx::multiply(depth, rows(i), pairs(q), block, amx::kWidth);
    } else {
      bf16::multiply_row(m, rows(i), pairs(q), block);
    }
    for (int j = 0; j < kVecs; ++j) {
      c[0][j] = load(block + j * simd<float>::width);
    }
  }
  void prefetch(int64_t, int64_t, int64_t) const {}

 private:
  amx::Matrix rows(int64_t i) const {
    const int64_t size = depth * amx::kDepth;
    return {left + i * size, nullptr, size};
  }
  amx::Matrix pairs(int64_t q) const {
    return {right + q * depth * amx::kDepth * amx::kWidth, nullptr, 2 * amx::kWidth};
  }
};

class PackedTileProducts {
 public:
  using Tiles = TileProducts;

  PackedTileProducts(
      int64_t batch, int64_t m, const Operand<BFloat16>& left, int64_t rows, const Operand<BFloat16>& right,
      int64_t columns)
      : m_(m),
        depth_(round_up(m, amx::kDepth) / amx::kDepth),
        rows_(rows + amx::kHeight),  // those that are read behind the last
        columns_(columns),
        left_(batch * rows_ * depth_ * amx::kDepth),
        right_(batch * columns * depth_ * amx::kDepth) {
    const int64_t size = depth_ * amx::kDepth;
    pack<amx::pack_rows>(batch, m, left, rows_, size, left_.data());
    pack<amx::pack_panels>(batch, m, right, columns_, size, right_.data());
  }
  Tiles at(int64_t b) {
    const int64_t size = depth_ * amx::kDepth;
    return {left_.data() + b * rows_ * size, right_.data() + b * columns_ * size, depth_, m_};
  }

 private:
  // Columns in groups, each for whichever thread.
  template <auto function>
  void pack(int64_t batch, int64_t m, const Operand<BFloat16>& x, int64_t padded, int64_t size, amx::Bits* to) const {
    constexpr int64_t kGroup = 4 * amx::kWidth;
    const int64_t groups = round_up(padded, kGroup) / kGroup;
    torch::stable::parallel_for(0, batch * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / groups, first = i % groups * kGroup;
        const BFloat16* from = x.data + b * m * x.stride + x.first + first;
        function(
            reinterpret_cast<const amx::Bits*>(from), m, x.stride, std::max<int64_t>(0, x.count - first),
            std::min(kGroup, padded - first), depth_, to + (b * padded + first) * size);
      }
    });
  }

  int64_t m_, depth_, rows_, columns_;
  Scratch<amx::Bits> left_, right_;
};

template <class In>
constexpr bool kHasTiles = std::is_same_v<In, BFloat16>;
template <class In>
using TilesOrPanels = std::conditional_t<kHasTiles<In>, PackedTileProducts, PackedProducts<In>>;

#else

template <class In>
constexpr bool kHasTiles = false;
template <class In>
using TilesOrPanels = PackedProducts<In>;

#endif

// Whether the products of these features are TilesOrPanels, else PackedProducts: an operator's loops are compiled for
// both, which are the same but for bfloat16.
template <class In>
static bool uses_tiles() {
  return kHasTiles<In> && simd_level() >= SimdLevel::bf16;
}

// Whether other products of theirs go through the tile registers, too: in two parts, which in vectors gain nothing.
template <class In>
static bool uses_tile_registers() {
  return kHasTiles<In> && simd_level() == SimdLevel::amx;
}
