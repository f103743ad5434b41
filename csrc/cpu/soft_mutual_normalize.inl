// Loops of soft_mutual_normalize for one instruction set; the mathematics is at the top of soft_mutual_normalize.cpp.
#include "cpu/matrix.inl"
#include "cpu/product.inl"
#include "cpu/soft_mutual.inl"

// The largest value of a row and its first place; a NaN is the largest.
template <class In, class T = compute_t<In>>
static void row_maximum(const In* row, int64_t n, T& highest, int64_t& at) {
  constexpr int W = simd<T>::width;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  vec<T> best = splat<T>(kLowest), poison{};
  int64_t t = 0;
  for (; t + W <= n; t += W) {
    const vec<T> c = load_as(row + t);
    best = c > best ? c : best;
    poison += c * T(0);  // NaN for ever, once a value is NaN or infinite
  }
  highest = kLowest;
  bool finite = true;
  for (int i = 0; i < W; ++i) {
    highest = std::max(highest, best[i]);
    finite = finite && poison[i] == 0;
  }
  for (; t < n; ++t) {
    const T c = static_cast<T>(row[t]);
    highest = c > highest ? c : highest;
    finite = finite && c * T(0) == 0;
  }
  if (!finite) {  // the slow way
    highest = kLowest;
    for (int64_t i = 0; i < n && highest == highest; ++i) {
      const T c = static_cast<T>(row[i]);
      highest = c > highest || c != c ? c : highest;
    }
  }
  at = 0;
  while (static_cast<T>(row[at]) != highest && !(highest != highest && static_cast<T>(row[at]) != static_cast<T>(row[at]))) {
    ++at;
  }
}

template <class In, class Out>
void normalize(const NormalizeArguments<In, Out>& x) {
  using T = compute_t<In>;
  const int64_t S = x.sources, n = x.targets;
  torch::stable::parallel_for(0, x.batch * S, 32768 / n + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T highest;
      row_maximum<In>(x.map + i * n, n, highest, x.statistics.row_argmax[i]);
      x.statistics.row_max[i] = highest < x.statistics.eps ? x.statistics.eps : highest;
    }
  });
  normalize_columns<Out>(
      x.batch, S, n, x.statistics,
      [&](int64_t b) { return Stored<In>{{x.map + b * S * n, n, 1}, S, n}; },
      [&](int64_t b) {
        return Matrix<Out>{
            x.result + b * x.result_strides.batch, x.result_strides.source, x.result_strides.target};
      },
      n);
}

template <class In, class T = compute_t<In>>
static void write_row(const T* from, int64_t count, In* to) {
  constexpr int W = simd<T>::width;
  int64_t t = 0;
  for (; t + W <= count; t += W) {
    store_as(to + t, load(from + t));
  }
  if (t < count) {
    store_part(to + t, load(from + t), count - t);
  }
}

template <class In, class G>
void normalize_backward(const NormalizeBackwardArguments<In, G>& x) {
  using T = compute_t<In>;
  const int64_t S = x.sources, n = x.targets, rows = round_up(S, kRows);
  const int64_t per_block = panels_per_block<T>(rows), width = per_block * kCols<T>;
  const int64_t panels = round_up(n, kCols<T>) / kCols<T>, blocks = round_up(panels, per_block) / per_block;
  const int64_t slots = source_slots(x.batch, blocks, rows);
  Scratch<T> inverse_b(x.batch * rows), beta_parts(x.batch * slots * rows);
  for (int64_t b = 0; b < x.batch; ++b) {
    invert(x.statistics.row_max + b * S, S, rows, inverse_b.data() + b * rows);
  }
  const int64_t per_worker = (2 * rows + kChunk) * width;
  Scratch<T> scratch(count_workers(x.batch * slots) * per_worker);
  for_each_task(x.batch * slots, [&](int64_t worker, int64_t task) {
    const int64_t b = task / slots, slot = task % slots;
    T* const c_block = scratch.data() + worker * per_worker;
    T* const g_block = c_block + rows * width;
    T* const dc = g_block + rows * width;
    T* const beta = beta_parts.data() + task * rows;
    std::fill(beta, beta + rows, T(0));
    const Stored<In> tiles{{x.map + b * S * n, n, 1}, S, n};
    const Matrix<const G> grad{x.grad + b * x.grad_strides.batch, x.grad_strides.source, x.grad_strides.target};
    const T* const scale = inverse_b.data() + b * rows;
    for (int64_t block = blocks * slot / slots; block < blocks * (slot + 1) / slots; ++block) {
      const int64_t q0 = block * per_block, used = std::min(per_block, panels - q0), t0 = q0 * kCols<T>;
      const int64_t used_width = used * kCols<T>, valid = std::min(used_width, n - t0);
      vec<T> dot[kMaxVecs], inverse_n[kMaxVecs] = {}, slope[kMaxVecs] = {};
      gradient_dots<G>(tiles, grad, S, rows, n, q0, used, scale, c_block, g_block, dot);
      gradient_slopes<T>(x.statistics.norm + b * n + t0, valid, x.statistics.eps, dot, inverse_n, slope);
      for (int64_t s0 = 0; s0 < S; s0 += kChunk) {
        const int64_t count = std::min<int64_t>(kChunk, S - s0);
        gradient_rows<T>(
            count, used_width, scale + s0, c_block + s0 * used_width, g_block + s0 * used_width, inverse_n, slope, dc,
            beta + s0);
        for (int64_t r = 0; r < count; ++r) {
          write_row<In>(dc + r * used_width, valid, x.map_grad + (b * S + s0 + r) * n + t0);
        }
      }
    }
  });
  for (int64_t b = 0; b < x.batch; ++b) {
    for (int64_t s = 0; s < S; ++s) {
      T sum = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        sum += beta_parts.data()[(b * slots + slot) * rows + s];
      }
      if (x.statistics.row_max[b * S + s] != x.statistics.eps) {  // at its floor b_s has no gradient
        In& at = x.map_grad[(b * S + s) * n + x.statistics.row_argmax[b * S + s]];
        at = static_cast<In>(static_cast<T>(at) + sum);
      }
    }
  }
}
