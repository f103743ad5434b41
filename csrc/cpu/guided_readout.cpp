// guided_readout on the CPU: sums over the sources, weighted by a map that is never made.
//
//   out_n(t) = sum_s v_n(s) Qhat(s, t)^p,  u = C^3 / b_s,  n_t = max(||u(., t)||, eps),  Qhat = u / n_t
//
// Forward, after the sweep for b_s: per block of targets u^p in chunks of sources, while it is in the first-level
// cache, times the values; the norm is the sum of the same squares and divides at the end.
//
// Backward, per block of targets and chunk of sources, G = dL/dout: C again, g = sum_n v_n G_n, and with
// D_t = sum_n G_n out_n, which is known before: p = 1: du = g / n - u D / n^2; p = 2: du = 2 u (g - D) / n^2.
// Then dC = 3 C^2 du / b, dz_t += dC z_s in the block; dz_s += dC z_t, dv_n(s) += G_n Qhat^p and
// beta_s -= du u / b in the chunk, to which the blocks add one after the other.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <type_traits>

#include "checks.h"
#include "cpu/row_max.h"
#include "cpu/simd.h"

namespace pose_kernels {

// v, [n, S] per sample; `values_batch` values lie between the samples', none where all share them.
template <class T>
struct ReadoutValues {
  int64_t outputs;
  bool squared;  // p = 2
  bool narrow;  // they, the result and its gradient are bfloat16 values
  const T* values;
  int64_t values_batch;
};

template <class In>
struct ReadoutArguments {
  Features<In> z;
  Statistics<compute_t<In>> statistics;  // filled in
  ReadoutValues<compute_t<In>> v;
  compute_t<In>* result;  // [B, n, T]
};

// Null for a gradient that is not asked for; beta is there where one of the features' is.
template <class In>
struct ReadoutBackwardArguments {
  using T = compute_t<In>;
  Features<In> z;
  Statistics<T> statistics;
  ReadoutValues<T> v;
  const T* grad;  // [B, n, T]
  const T* result;
  T* source_grad;  // [B, m, S], added to
  T* target_grad;  // [B, m, T], written
  T* values_grad;  // [n, S] per sample or of all, added to
  T* beta;  // [B, S], added to
};

// Sums over blocks in the order of the blocks, whoever works on them: the same bits for any number of threads, and no
// memory for partial sums. Block n adds to a chunk when block n - 1 has.
class Turns {
 public:
  explicit Turns(int64_t chunks) : next_(new std::atomic<int64_t>[chunks]()) {}
  void wait(int64_t chunk, int64_t block) {
    while (next_[chunk].load(std::memory_order_acquire) != block) {
      std::this_thread::yield();
    }
  }
  void pass(int64_t chunk, int64_t block) {
    next_[chunk].store(block + 1, std::memory_order_release);
  }

 private:
  std::unique_ptr<std::atomic<int64_t>[]> next_;
};

}  // namespace pose_kernels

#define SIMD_INL "cpu/guided_readout.inl"
#include "cpu/foreach_target.h"

namespace pose_kernels {

// Contiguous, of this type.
static Tensor converted(const Tensor& x, ScalarType type) {
  return torch::stable::contiguous(x.scalar_type() == type ? x : torch::stable::to(x, type));
}

// Where the sums of a result lie: in itself where it has the type that they are computed in.
static Tensor sums_for(const Tensor& result, ScalarType type) {
  return result.scalar_type() == type ? result : torch::stable::new_empty(result, result.sizes(), type);
}

template <class T>
static T* zeroed(const Tensor& x, bool wanted) {
  if (!wanted) {
    return nullptr;
  }
  T* data = mutable_data<T>(x);
  std::fill_n(data, x.numel(), T(0));
  return data;
}

static void round_to(Tensor result, const Tensor& sums) {
  if (result.scalar_type() != sums.scalar_type()) {
    torch::stable::copy_(result, sums);
  }
}

template <class T>
static ReadoutValues<T> values_of(const Tensor& values, ScalarType stored, int64_t power) {
  const int64_t d = values.dim(), n = values.size(d - 2), S = values.size(d - 1);
  return {n, power == 2, stored == ScalarType::BFloat16, const_data<T>(values), d == 3 ? n * S : 0};
}

static MapAndStatistics guided_readout(
    const Tensor& source_, const Tensor& target_, const Tensor& values_, int64_t power, double eps, bool) {
  check_readout(source_, target_, values_, power);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), S = positions(source), T = positions(target);
  const ScalarType wide = compute_type(source.scalar_type());
  const Tensor values = converted(values_, wide);
  const Tensor result =
      empty(source, {B, values.size(values.dim() - 2), target.size(2), target.size(3)}, values_.scalar_type());
  const Tensor sums = sums_for(result, wide);
  const StatisticsTensors statistics(source, B, S, T);
  if (B > 0) {
    dispatch_floating(source.scalar_type(), "guided_readout", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      const Features<In> z = features_of<In>(source, target);
      SIMD_DISPATCH(guided_readout<In>)
      ({z, statistics.of<C>(eps), values_of<C>(values, values_.scalar_type(), power), mutable_data<C>(sums)});
    });
  }
  round_to(result, sums);
  return {result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

static std::tuple<Tensor, Tensor, Tensor> guided_readout_backward(
    const Tensor& grad_, const Tensor& source_, const Tensor& target_, const Tensor& values_, const Tensor& result_,
    const Tensor& row_max, const Tensor& row_argmax, const Tensor& norm, int64_t power, double eps, bool,
    bool source_wanted, bool target_wanted, bool values_wanted) {
  check_readout(source_, target_, values_, power);
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const StatisticsTensors statistics(row_max, row_argmax, norm);
  const int64_t B = source.size(0), S = positions(source), T = positions(target);
  const ScalarType wide = compute_type(source.scalar_type());
  check_statistics(statistics, B, S, T, source.scalar_type());
  for (const Tensor* like : {&grad_, &result_}) {
    const char* name = like == &grad_ ? "grad" : "result";
    check_shape(*like, name, {B, values_.size(-2), target.size(2), target.size(3)});
    check_type(*like, name, values_.scalar_type());
  }
  const Tensor grad = converted(grad_, wide), result = converted(result_, wide), values = converted(values_, wide);
  const Tensor source_grad = new_like(source, source_wanted), target_grad = new_like(target, target_wanted);
  const Tensor values_grad = new_like(values_, values_wanted);
  const Tensor source_sum = sums_for(source_grad, wide), target_sum = sums_for(target_grad, wide);
  const Tensor values_sum = sums_for(values_grad, wide);
  dispatch_floating(source.scalar_type(), "guided_readout_backward", [&](auto zero) {
    using In = decltype(zero);
    using C = compute_t<In>;
    const bool features = source_wanted || target_wanted;
    Sums<C> beta(features ? B * S : 0);
    const ReadoutBackwardArguments<In> x{
        features_of<In>(source, target), statistics.of<C>(eps), 
        values_of<C>(values, values_.scalar_type(), power), const_data<C>(grad),
        const_data<C>(result), zeroed<C>(source_sum, source_wanted), data_or_null<C>(target_sum),
        zeroed<C>(values_sum, values_wanted), features ? beta.data() : nullptr};
    if (B > 0) {
      SIMD_DISPATCH(guided_readout_backward<In>)(x);
    }
    if (B > 0 && features) {
      SIMD_DISPATCH(guided_row_max_backward<In>)({x.z, x.statistics, x.beta, x.source_grad, x.target_grad});
    }
  });
  round_to(source_grad, source_sum);
  round_to(target_grad, target_sum);
  round_to(values_grad, values_sum);
  return {source_grad, target_grad, values_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("guided_readout", TORCH_BOX(&pose_kernels::guided_readout));
  m.impl("guided_readout_backward", TORCH_BOX(&pose_kernels::guided_readout_backward));
}
