// Loops of correlation_4d for one instruction set; the mathematics is at the top of correlation_4d.cpp.
#include "cpu/matrix.inl"
#include "cpu/product.inl"
#include "cpu/products.inl"

// The register tile into its place: whole vectors past the caches where they are aligned, parts at the right edge.
template <class Out, class T = compute_t<Out>>
SIMD_INLINE void write_tile(
    const vec<T> (&c)[kRows][kVecs], int64_t rows, int64_t columns, bool aligned, Out* out, int64_t stride) {
  constexpr int W = simd<T>::width;
  static_assert(kVecs % kPerStore<Out> == 0);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (i >= rows) {
      continue;
    }
    if (aligned && kCols<T> <= columns) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; j += kPerStore<Out>) {
        store_streaming(out + i * stride + j * W, &c[i][j]);
      }
      continue;
    }
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      Out* to = out + i * stride + j * W;
      if ((j + 1) * W <= columns) {
        store_as(to, c[i][j]);
      } else if (j * W < columns) {
        store_part(to, c[i][j], columns - j * W);
      }
    }
  }
}

template <class In, class Out, class Packed>
static void correlate_with(const CorrelationArguments<In, Out>& x) {
  using T = compute_t<In>;
  const int64_t rows = round_up(x.rows, kRows), columns = round_up(x.columns, kCols<T>), panels = columns / kCols<T>;
  Packed packed(
      x.batch, x.m, {x.row_features, x.rows, 0, x.rows}, rows, {x.column_features, x.columns, 0, x.columns}, columns);
  const bool aligned =
      reinterpret_cast<uintptr_t>(x.result) % SIMD_BYTES == 0 && x.columns * sizeof(Out) % SIMD_BYTES == 0;
  const int64_t per_sample = rows / kRows;
  torch::stable::parallel_for(0, x.batch * per_sample, 4, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const typename Packed::Tiles::Session session;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / per_sample, p = i % per_sample;
      const auto tiles = packed.at(b);
      Out* out = x.result + (b * x.rows + p * kRows) * x.columns;
      for (int64_t q = 0; q < panels; ++q) {
        vec<T> c[kRows][kVecs];
        tiles.tile(p, q, c);
        write_tile<Out>(
            c, x.rows - p * kRows, x.columns - q * kCols<T>, aligned, out + q * kCols<T>, x.columns);
      }
    }
  });
}

template <class In, class Out>
void correlate(const CorrelationArguments<In, Out>& x) {
  const auto function =
      uses_tiles<In>() ? correlate_with<In, Out, TilesOrPanels<In>> : correlate_with<In, Out, PackedProducts<In>>;
  function(x);
}

template <class In, class G>
void correlate_backward(const CorrelationBackwardArguments<In, G>& x) {
  using T = compute_t<In>;
  constexpr int W = simd<T>::width;
  const int64_t batch = x.z.batch, m = x.z.m, S = x.z.sources, n = x.z.targets, rows = round_up(S, kStep);
  const int64_t per_block = panels_per_block<T>(rows), width = per_block * kCols<T>;
  const int64_t columns = round_up(n, width), blocks = columns / width;
  const int64_t source_stride = round_up(m, kRows), target_stride = round_up(m, W);
  const int64_t slots = source_slots(batch, blocks, rows * target_stride);
  Scratch<T> source_rows(batch * rows * source_stride), target_rows(batch * columns * target_stride);
  Scratch<T> parts(x.source_grad ? batch * slots * rows * target_stride : 1);
  pack_all_rows(x.z, rows, columns, source_stride, target_stride, source_rows.data(), target_rows.data());
  const int64_t dc_size = kChunk * width, per_worker = dc_size + source_stride * width;
  Scratch<T> scratch(count_workers(batch * slots) * per_worker);
  for_each_task(batch * slots, [&](int64_t worker, int64_t task) {
    const int64_t b = task / slots, slot = task % slots;
    T* const dc = scratch.data() + worker * per_worker;
    T* const target_block = dc + dc_size;
    const Matrix<const G> grad{x.grad + b * x.grad_strides.batch, x.grad_strides.source, x.grad_strides.target};
    T* const part = x.source_grad ? parts.data() + task * rows * target_stride : nullptr;
    if (part) {
      std::fill(part, part + rows * target_stride, T(0));
    }
    for (int64_t block = blocks * slot / slots; block < blocks * (slot + 1) / slots; ++block) {
      const int64_t t0 = block * width, valid = std::min(width, n - t0);
      std::fill(target_block, target_block + source_stride * width, T(0));
      for (int64_t s0 = 0; s0 < rows; s0 += kChunk) {
        const int64_t count = std::min<int64_t>(kChunk, rows - s0);
        grad.prefetch_rows(s0 + kChunk, std::clamp<int64_t>(S - s0 - kChunk, 0, kChunk), t0, valid);
        load_block(grad, s0, count, S, t0, width, n, dc);
        if (part) {
          add_source_product<T>(
              count, width, dc, target_rows.data() + (b * columns + t0) * target_stride, target_stride,
              part + s0 * target_stride);
        }
        if (x.target_grad) {
          add_target_product<T>(
              count, width, dc, source_rows.data() + (b * rows + s0) * source_stride, source_stride, target_block);
        }
      }
      if (x.target_grad) {
        for (int64_t k = 0; k < m; ++k) {
          for (int64_t t = 0; t < valid; ++t) {
            x.target_grad[(b * m + k) * n + t0 + t] = static_cast<In>(target_block[k * width + t]);
          }
        }
      }
    }
  });
  if (x.source_grad) {
    add_source_parts<T>(batch, slots, m, S, rows, target_stride, parts.data(), x.source_grad);
  }
}
