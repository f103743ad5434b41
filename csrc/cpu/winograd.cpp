// The convolution of guided_correlation_conv2d on the CPU for windows 3 wide: Winograd's F(2, 3) along x (Lavin and
// Gray 2016, section 4.1), 4 products for 2 columns of the output instead of 6.
//
// With even and odd columns e_j = M(2j), o_j = M(2j + 1) of a row of the map and the weights g_0, g_1, g_2 of a row:
//
//   V_0 = o_{j-1} - o_j    U_0 = g_0                      Y(2j)     = P_0 + P_1 + P_2
//   V_1 = e_j + o_j        U_1 = (g_0 + g_1 + g_2) / 2    Y(2j + 1) = P_1 - P_2 - P_3
//   V_2 = o_j - e_j        U_2 = (g_0 - g_1 + g_2) / 2
//   V_3 = e_j - e_{j+1}    U_3 = g_2                      P_c = U_c V_c
//
// and backward, G_c the adjoint of what makes Y out of P_c: dV_c = U_c^T G_c, dU_c += V_c G_c^T.
//
// U is made once per walk, in the panels that its product reads. V and dV are never there as a whole: V_c is made while
// the product goes through it, and the dV_c of some sources become the gradients of their maps at once. How a sum is
// cut follows from the shapes alone, and each element belongs to one task: the same bits for any number of threads.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "checks.h"
#include "cpu/memory.h"
#include "cpu/simd.h"

namespace pose_kernels {

// The rows of Y or dY [outputs][height][2 * row] that a band meets, for output and tap r = output * kh + tap.
template <class T>
struct OutputBand {
  T* data;
  int64_t outputs, height, kh, first, rows, row;

  T* at(int64_t r, int64_t y) const {
    return data + (r / kh * height + first + kh - 1 - r % kh + y) * 2 * row;
  }
};

// `maps` are the even and the odd one, [2][S][rows * row]; the components of U are U_component apart.
template <class T>
struct WinogradOutput {
  int64_t S, U_component;
  const T* U;  // panels of outputs * kh rows, S deep
  const T* maps;
  OutputBand<T> Y;  // added to
};

template <class T>
struct WinogradMapGradient {
  int64_t S, U_component;
  const T* U;  // panels of S rows, outputs * kh deep
  OutputBand<const T> dY;
  T* maps;  // their gradients
};

template <class T>
struct WinogradWeightGradient {
  int64_t S;
  const T* maps;
  OutputBand<const T> dY;
  T* dU;  // [4][S][outputs * kh], added to
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/winograd.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

constexpr int64_t kPadding = 12;  // rows of U are padded to a multiple of every panel

static int64_t padded(int64_t rows) {
  return (rows + kPadding - 1) / kPadding * kPadding;
}

static void check_weight(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(3) == 3, "weight: expected [n, S, kh, 3]");
}

// A task packs some sources, whole panels of them.
constexpr int64_t kSources = 48;

template <class In, class T>
static void pack_weight(const Tensor& weight, bool transposed, int64_t panel, Tensor& U) {
  const int64_t n = weight.size(0), S = weight.size(1), kh = weight.size(2), depth = U.size(2);
  const int64_t at_n = weight.stride(0), at_s = weight.stride(1), at_y = weight.stride(2), at_x = weight.stride(3);
  const int64_t component = U.size(1) * depth;
  const In* const g = const_data<In>(weight);
  T* const to = mutable_data<T>(U);
  // Sources in a run lie `step` apart in U.
  const int64_t run = transposed ? panel : kSources, step = transposed ? 1 : panel;
  torch::stable::parallel_for(0, (S + kSources - 1) / kSources, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t r = 0; r < n * kh; ++r) {
        for (int64_t s0 = block * kSources; s0 < std::min(S, (block + 1) * kSources); s0 += run) {
          const In* from = g + r / kh * at_n + s0 * at_s + r % kh * at_y;
          T* U_0 = to + (transposed ? s0 * depth + r * panel : (r - r % panel) * depth + s0 * panel + r % panel);
          for (int64_t i = 0; i < std::min(run, S - s0); ++i, from += at_s, U_0 += step) {
            const T g_0 = static_cast<T>(from[0]), g_1 = static_cast<T>(from[at_x]);
            const T g_2 = static_cast<T>(from[2 * at_x]);
            U_0[0] = g_0;
            U_0[component] = (g_0 + g_2 + g_1) / 2;
            U_0[2 * component] = (g_0 + g_2 - g_1) / 2;
            U_0[3 * component] = g_2;
          }
        }
      }
    }
  });
}

static void winograd_weight(const Tensor& weight, bool transposed, Tensor U) {
  check_weight(weight);
  const int64_t S = weight.size(1), R = weight.size(0) * weight.size(2);
  check_shape(U, "U", {4, padded(transposed ? S : R), transposed ? R : S});
  check_contiguous({&U});
  const int64_t panel = SIMD_DISPATCH(winograd_panel)();
  dispatch_floating(weight.scalar_type(), "winograd_weight", [&](auto in) {
    dispatch_wide(U.scalar_type(), "winograd", [&](auto out) {
      pack_weight<decltype(in), decltype(out)>(weight, transposed, panel, U);
    });
  });
}

template <class T, class Out>
static void unpack_gradient(const Tensor& dU, Tensor& dW) {
  constexpr int64_t kBlock = 16;  // sources, whose rows of dU stay in the cache for all outputs
  const int64_t n = dW.size(0), S = dW.size(1), kh = dW.size(2), R = n * kh, component = S * R;
  const T* const from = const_data<T>(dU);
  Out* const to = mutable_data<Out>(dW);
  torch::stable::parallel_for(0, (S + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t output = 0; output < n; ++output) {
        for (int64_t s = block * kBlock; s < std::min(S, (block + 1) * kBlock); ++s) {
          const T* dU_0 = from + s * R + output * kh;
          Out* dg = to + (output * S + s) * kh * 3;
          for (int64_t y = 0; y < kh; ++y, ++dU_0, dg += 3) {
            const T half_1 = dU_0[component] / 2, half_2 = dU_0[2 * component] / 2;
            dg[0] = static_cast<Out>(dU_0[0] + half_1 + half_2);
            dg[1] = static_cast<Out>(half_1 - half_2);
            dg[2] = static_cast<Out>(dU_0[3 * component] + half_1 + half_2);
          }
        }
      }
    }
  });
}

static void winograd_weight_gradient(const Tensor& dU, Tensor dW) {
  check_weight(dW);
  check_shape(dU, "dU", {4, dW.size(1), dW.size(0) * dW.size(2)});
  check_contiguous({&dU, &dW});
  dispatch_wide(dU.scalar_type(), "winograd", [&](auto in) {
    dispatch_floating(dW.scalar_type(), "winograd_weight_gradient", [&](auto out) {
      unpack_gradient<decltype(in), decltype(out)>(dU, dW);
    });
  });
}

// Y or dY is [n, height, 2 * row], `maps` [2, S, rows * row].
template <class T>
static OutputBand<T> output_band(const Tensor& Y, T* data, const Tensor& maps, int64_t first, int64_t kh) {
  STD_TORCH_CHECK(
      Y.dim() == 3 && Y.size(0) > 0 && Y.size(2) > 0 && Y.size(2) % 2 == 0, "Y: expected [n, height, even width]");
  const int64_t row = Y.size(2) / 2;
  STD_TORCH_CHECK(
      maps.dim() == 3 && maps.size(0) == 2 && maps.size(1) * maps.size(2) > 0 && maps.size(2) % row == 0,
      "maps: expected [2, S, rows * width / 2]");
  const int64_t rows = maps.size(2) / row;
  STD_TORCH_CHECK(kh > 0 && first >= 0 && first + rows + kh - 1 <= Y.size(1), "first: the band lies outside the map");
  check_type(maps, "maps", Y.scalar_type());
  return {data, Y.size(0), Y.size(1), kh, first, rows, row};
}

static void winograd_add_output(const Tensor& U, const Tensor& maps, int64_t first, int64_t kh, Tensor Y) {
  check_contiguous({&U, &maps, &Y});
  check_type(U, "U", Y.scalar_type());
  dispatch_wide(Y.scalar_type(), "winograd", [&](auto zero) {
    using T = decltype(zero);
    const OutputBand<T> band = output_band<T>(Y, mutable_data<T>(Y), maps, first, kh);
    const int64_t S = maps.size(1), rows = padded(band.outputs * kh);
    check_shape(U, "U", {4, rows, S});
    SIMD_DISPATCH(winograd_add_output<T>)({S, rows * S, const_data<T>(U), const_data<T>(maps), band});
  });
}

static void winograd_map_gradient(const Tensor& U, const Tensor& dY, int64_t first, int64_t kh, Tensor maps) {
  check_contiguous({&U, &maps, &dY});
  check_type(U, "U", dY.scalar_type());
  dispatch_wide(dY.scalar_type(), "winograd", [&](auto zero) {
    using T = decltype(zero);
    const OutputBand<const T> band = output_band<const T>(dY, const_data<T>(dY), maps, first, kh);
    const int64_t S = maps.size(1), R = band.outputs * kh;
    check_shape(U, "U", {4, padded(S), R});
    SIMD_DISPATCH(winograd_map_gradient<T>)({S, padded(S) * R, const_data<T>(U), band, mutable_data<T>(maps)});
  });
}

static void winograd_add_weight_gradient(
    const Tensor& maps, const Tensor& dY, int64_t first, int64_t kh, Tensor dU) {
  check_contiguous({&maps, &dY, &dU});
  check_type(dU, "dU", dY.scalar_type());
  dispatch_wide(dY.scalar_type(), "winograd", [&](auto zero) {
    using T = decltype(zero);
    const OutputBand<const T> band = output_band<const T>(dY, const_data<T>(dY), maps, first, kh);
    const int64_t S = maps.size(1);
    check_shape(dU, "dU", {4, S, band.outputs * kh});
    SIMD_DISPATCH(winograd_add_weight_gradient<T>)({S, const_data<T>(maps), band, mutable_data<T>(dU)});
  });
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("winograd_weight", TORCH_BOX(&pose_kernels::winograd_weight));
  m.impl("winograd_weight_gradient", TORCH_BOX(&pose_kernels::winograd_weight_gradient));
  m.impl("winograd_add_output", TORCH_BOX(&pose_kernels::winograd_add_output));
  m.impl("winograd_map_gradient", TORCH_BOX(&pose_kernels::winograd_map_gradient));
  m.impl("winograd_add_weight_gradient", TORCH_BOX(&pose_kernels::winograd_add_weight_gradient));
}
