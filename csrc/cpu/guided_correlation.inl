// Loops of guided_correlation for one instruction set; the mathematics is at the top of guided_correlation.cpp.
#include "cpu/matrix.inl"
#include "cpu/product.inl"
#include "cpu/products.inl"
#include "cpu/soft_mutual.inl"
#include "cpu/row_max.inl"

template <class In, class Out, class Packed>
static void normalize_band(const BandArguments<In, Out>& x, Packed& packed) {
  const Features<In>& z = x.z;
  auto found = x.statistics;
  found.norm += z.begin;
  normalize_columns<Out>(
      z.batch, z.sources, z.count, found, [&](int64_t b) { return packed.at(b); },
      [&](int64_t b) {
        return Matrix<Out>{x.out + b * x.out_strides.batch, x.out_strides.source, x.out_strides.target};
      },
      z.targets);
}

template <class In, class Out>
void guided_band(const BandArguments<In, Out>& x) {
  PackedProducts<In> packed = pack_all<PackedProducts<In>>(x.z);
  normalize_band(x, packed);
}

template <class In, class Out, class Packed>
static void map_with(const BandArguments<In, Out>& x, FreshPages& pages) {
  Packed packed = pack_all<Packed>(x.z);
  row_max_of<In>({x.z, x.statistics, &pages}, packed);
  normalize_band(x, packed);
}

// All targets, after the maxima, which are filled in.
template <class In, class Out>
void guided_map(const BandArguments<In, Out>& x, FreshPages& pages) {
  const auto function =
      uses_tiles<In>() ? map_with<In, Out, TilesOrPanels<In>> : map_with<In, Out, PackedProducts<In>>;
  function(x, pages);
}

// ---- backward

// Everything the backward of one sample reads, in the layouts its products want. Targets are those of the band.
template <class Tiles, class T>
struct BackwardSample {
  Tiles tiles;
  const T* source_rows;  // [rows][source_stride]
  const T* target_rows;  // [columns][target_stride]
  const T* inverse_b;  // [rows], 0 in the padding
  const T* norm;  // [n]
  int64_t rows, source_stride, target_stride;
};

// The same of all samples.
template <class In, class Packed, class T = compute_t<In>>
struct BackwardBatch {
  using Tiles = typename Packed::Tiles;

  BackwardBatch(const Features<In>& z_, const Statistics<T>& statistics, int64_t rows_, int64_t columns_)
      : z(z_),
        rows(rows_),
        columns(columns_),
        source_stride(round_up(z.m, kRows)),
        target_stride(round_up(z.m, simd<T>::width)),
        norm(statistics.norm),
        packed(z.batch, z.m, sources_of(z), rows, targets_of(z), columns),
        inverse_b(z.batch * rows),
        source_rows(z.batch * rows * source_stride),
        target_rows(z.batch * columns * target_stride) {
    pack_all_rows(z, rows, columns, source_stride, target_stride, source_rows.data(), target_rows.data());
    for (int64_t b = 0; b < z.batch; ++b) {
      invert(statistics.row_max + b * z.sources, z.sources, rows, inverse_b.data() + b * rows);
    }
  }
  BackwardSample<Tiles, T> at(int64_t b) {
    return {
        packed.at(b),
        source_rows.data() + b * rows * source_stride,
        target_rows.data() + b * columns * target_stride,
        inverse_b.data() + b * rows,
        norm + b * z.targets + z.begin,
        rows,
        source_stride,
        target_stride};
  }

  const Features<In>& z;
  int64_t rows, columns, source_stride, target_stride;
  const T* norm;
  Packed packed;
  Scratch<T> inverse_b, source_rows, target_rows;
};

// Scratch of a worker, and the sums of its task.
template <class T>
struct BackwardScratch {
  T* c_block;
  T* g_block;
  T* dc;
  T* target_block;
  T* source_part;
  T* beta_part;
};

// One block of targets: its columns of the target gradient (complete but for beta), its share of the source gradient;
// target_grad or to.source_part null: not wanted.
template <class G, class In, class Tiles, class T = compute_t<In>>
static void backward_block(
    const BackwardSample<Tiles, T>& packed, const Features<In>& z, const Matrix<const G>& grad, int64_t q0, int64_t panels, T eps,
    const BackwardScratch<T>& to, T* target_grad) {
  const int64_t width = panels * kCols<T>, t0 = q0 * kCols<T>, valid = std::min(width, z.count - t0);
  vec<T> dot[kMaxVecs], inverse_n[kMaxVecs] = {}, slope[kMaxVecs] = {};
  gradient_dots<G>(
      packed.tiles, grad, z.sources, packed.rows, z.count, q0, panels, packed.inverse_b, to.c_block, to.g_block,
      dot);
  gradient_slopes<T>(packed.norm + t0, valid, eps, dot, inverse_n, slope);
  if (target_grad) {
    std::fill(to.target_block, to.target_block + packed.source_stride * width, T(0));
  }
  for (int64_t s0 = 0; s0 < packed.rows; s0 += kChunk) {
    const int64_t count = std::min<int64_t>(kChunk, packed.rows - s0);
    gradient_rows<T>(
        count, width, packed.inverse_b + s0, to.c_block + s0 * width, to.g_block + s0 * width, inverse_n, slope,
        to.dc, to.beta_part + s0);
    if (to.source_part) {
      add_source_product<T>(
          count, width, to.dc, packed.target_rows + t0 * packed.target_stride, packed.target_stride,
          to.source_part + s0 * packed.target_stride);
    }
    if (target_grad) {
      add_target_product<T>(
          count, width, to.dc, packed.source_rows + s0 * packed.source_stride, packed.source_stride, to.target_block);
    }
  }
  for (int64_t k = 0; target_grad && k < z.m; ++k) {
    std::copy(
        to.target_block + k * width, to.target_block + k * width + valid, target_grad + k * z.targets + t0);
  }
}

template <class In, class G, class Packed>
static void band_backward(const BandBackwardArguments<In, G>& x) {
  using T = compute_t<In>;
  const Features<In>& z = x.z;
  const int64_t m = z.m, S = z.sources, n = z.count, rows = round_up(S, kStep);
  const int64_t per_block = panels_per_block<T>(rows), width = per_block * kCols<T>;
  const int64_t columns = round_up(n, width), blocks = columns / width;
  BackwardBatch<In, Packed> packed(z, x.statistics, rows, columns);
  const int64_t part = rows * packed.target_stride, slots = source_slots(z.batch, blocks, part);
  Scratch<T> source_parts(x.source_grad ? z.batch * slots * part : 1), beta_parts(z.batch * slots * rows);
  const int64_t dc_size = kChunk * width, target_size = packed.source_stride * width;
  const int64_t per_worker = 2 * rows * width + dc_size + target_size;
  Scratch<T> scratch(count_workers(z.batch * slots) * per_worker);
  for_each_task(z.batch * slots, [&](int64_t worker, int64_t task) {
    [[maybe_unused]] const typename Packed::Tiles::Session session;
    const int64_t b = task / slots, slot = task % slots;
    BackwardScratch<T> to{};
    to.c_block = scratch.data() + worker * per_worker;
    to.g_block = to.c_block + rows * width;
    to.dc = to.g_block + rows * width;
    to.target_block = to.dc + dc_size;
    to.source_part = x.source_grad ? source_parts.data() + task * part : nullptr;
    to.beta_part = beta_parts.data() + task * rows;
    if (to.source_part) {
      std::fill(to.source_part, to.source_part + part, T(0));
    }
    std::fill(to.beta_part, to.beta_part + rows, T(0));
    const Matrix<const G> grad{x.grad + b * x.grad_strides.batch, x.grad_strides.source, x.grad_strides.target};
    for (int64_t block = blocks * slot / slots; block < blocks * (slot + 1) / slots; ++block) {
      const int64_t q0 = block * per_block;
      const int64_t panels = std::min(per_block, round_up(n, kCols<T>) / kCols<T> - q0);
      backward_block<G>(
          packed.at(b), z, grad, q0, panels, x.statistics.eps, to,
          x.target_grad ? x.target_grad + b * m * z.targets + z.begin : nullptr);
    }
  });
  if (x.source_grad) {
    add_source_parts<T>(z.batch, slots, m, S, rows, packed.target_stride, source_parts.data(), x.source_grad);
  }
  for (int64_t b = 0; b < z.batch; ++b) {
    for (int64_t slot = 0; slot < slots; ++slot) {
      const T* beta = beta_parts.data() + (b * slots + slot) * rows;
      for (int64_t s = 0; s < S; ++s) {
        x.beta[b * S + s] += beta[s];
      }
    }
  }
}

template <class In, class G>
void guided_band_backward(const BandBackwardArguments<In, G>& x) {
  const auto function =
      uses_tiles<In>() ? band_backward<In, G, TilesOrPanels<In>> : band_backward<In, G, PackedProducts<In>>;
  function(x);
}
