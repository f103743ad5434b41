// C as the product of packed features, for one instruction set: `tile(p, q, c)` gives the register tile of panel p of
// the left operand, kRows high, and panel q of the right one; `row(i, q, c)` the same bits of its row i alone. Needs
// product.inl.

template <class T>
struct Products {
  const T* left;  // panels
  const T* right;  // panels
  int64_t m;

  struct Session {};
  static constexpr bool kCheap = false;  // beside what is done with it

  __attribute__((always_inline)) void tile(int64_t p, int64_t q, vec<T> (&c)[kRows][kVecs]) const {
    correlation_tile<T>(m, left + p * kRows * m, right + q * kCols<T> * m, c);
  }
  // The same as rows of kCols, from row i on, which begins a panel.
  __attribute__((always_inline)) void write(int64_t i, int64_t q, T* to) const {
    vec<T> c[kRows][kVecs];
    tile(i / kRows, q, c);
    store_tile<T>(c, to);
  }
  // Single rows sum in the same order as tiles do.
  __attribute__((always_inline)) void row(int64_t i, int64_t q, vec<T> (&c)[1][kVecs]) const {
    std::fill_n(&c[0][0], kVecs, vec<T>{});
    multiply_tile<T, 1, kVecs>(
        m, left + i / kRows * kRows * m + i % kRows, 1, kRows, right + q * kCols<T> * m, kCols<T>, c);
  }
  void prefetch(int64_t, int64_t, int64_t) const {}
};

// Columns [first, first + count) of features [B, m, stride].
template <class In>
struct Operand {
  const In* data;
  int64_t stride, first, count;
};
template <class In>
static Operand<In> sources_of(const Features<In>& z) {
  return {z.source, z.sources, 0, z.sources};
}
template <class In>
static Operand<In> targets_of(const Features<In>& z) {
  return {z.target, z.targets, z.begin, z.count};
}

// The operands of all samples of a batch. `rows` and `columns` are padded.
template <class In, class T = compute_t<In>>
class PackedProducts {
 public:
  using Tiles = Products<T>;

  PackedProducts(
      int64_t batch, int64_t m, const Operand<In>& left, int64_t rows, const Operand<In>& right, int64_t columns)
      : m_(m), rows_(rows), columns_(columns), left_(batch * rows * m), right_(batch * columns * m) {
    for (int64_t b = 0; b < batch; ++b) {
      pack_panels(
          left.data + b * m * left.stride, m, left.stride, left.first, left.count, rows, kRows,
          left_.data() + b * rows * m);
      pack_panels(
          right.data + b * m * right.stride, m, right.stride, right.first, right.count, columns, kCols<T>,
          right_.data() + b * columns * m);
    }
  }
  Tiles at(int64_t b) {
    return {left_.data() + b * rows_ * m_, right_.data() + b * columns_ * m_, m_};
  }

 private:
  int64_t m_, rows_, columns_;
  Scratch<T> left_, right_;
};

// Of all sources and the targets of the band, in whole panels.
template <class Packed, class In>
static Packed pack_all(const Features<In>& z) {
  constexpr int kWidth = kCols<compute_t<In>>;
  return {z.batch, z.m, sources_of(z), round_up(z.sources, kRows), targets_of(z), round_up(z.count, kWidth)};
}

#include "cpu/tile_products.inl"
