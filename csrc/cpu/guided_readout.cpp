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
#include <optional>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>

#include "checks.h"
#include "cpu/row_max.h"
#include "cpu/simd.h"

namespace pose_kernels {

// v, [n, S] per sample; `values_batch` values lie between the samples', none where all share them.
template <class T>
struct ReadoutValues {
  int64_t outputs;  // 0: none of this power
  bool narrow;  // they, the result and its gradient are bfloat16 values
  const T* values;
  int64_t values_batch;
};

// Of p = 1 and of p = 2; one of the two may have no outputs.
template <class X>
using PerPower = std::array<X, 2>;

template <class In>
struct ReadoutArguments {
  using T = compute_t<In>;
  Features<In> z;
  Statistics<T> statistics;  // filled in
  PerPower<ReadoutValues<T>> v;
  PerPower<T*> result;  // [B, n, T]
};

// Null for a gradient that is not asked for; beta is there where one of the features' is.
template <class In>
struct ReadoutBackwardArguments {
  using T = compute_t<In>;
  Features<In> z;
  Statistics<T> statistics;
  PerPower<ReadoutValues<T>> v;
  PerPower<const T*> grad;  // [B, n, T]
  PerPower<const T*> result;
  T* source_grad;  // [B, m, S], added to
  T* target_grad;  // [B, m, T], written
  PerPower<T*> values_grad;  // [n, S] per sample or of all, added to
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

// What is read with one power: the values as they came and in the type that is computed in, and the result.
struct ReadoutOf {
  ScalarType type, wide;
  Tensor values, result;

  ReadoutOf(const Tensor& values_, ScalarType wide_)
      : type(values_.scalar_type()), wide(wide_), values(converted(values_, wide_)) {}
  template <class T>
  ReadoutValues<T> of() const {
    const int64_t d = values.dim(), n = values.size(d - 2), S = values.size(d - 1);
    return {n, type == ScalarType::BFloat16, const_data<T>(values), d == 3 ? n * S : 0};
  }
};

// The values that there are, by their power.
using Readouts = PerPower<std::optional<ReadoutOf>>;

template <class T>
static PerPower<ReadoutValues<T>> values_of(const Readouts& all) {
  const auto one = [](const std::optional<ReadoutOf>& x) { return x ? x->of<T>() : ReadoutValues<T>{}; };
  return {one(all[0]), one(all[1])};
}

static StatisticsTensors forward(const Tensor& source_, const Tensor& target_, Readouts& readouts, double eps) {
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0);
  PerPower<Tensor> sums;
  for (int p = 0; p < 2; ++p) {
    if (std::optional<ReadoutOf>& one = readouts[p]) {
      one->result = empty(source, {B, one->values.size(-2), target.size(2), target.size(3)}, one->type);
      sums[p] = sums_for(one->result, one->wide);
    }
  }
  const StatisticsTensors statistics(source, B, positions(source), positions(target));
  if (B > 0) {
    dispatch_floating(source.scalar_type(), "guided_readout", [&](auto zero) {
      using In = decltype(zero);
      using C = compute_t<In>;
      const auto data = [&](int p) { return readouts[p] ? mutable_data<C>(sums[p]) : nullptr; };
      SIMD_DISPATCH(guided_readout<In>)
      ({features_of<In>(source, target), statistics.of<C>(eps), values_of<C>(readouts), {data(0), data(1)}});
    });
  }
  for (int p = 0; p < 2; ++p) {
    if (readouts[p]) {
      round_to(readouts[p]->result, sums[p]);
    }
  }
  return statistics;
}

// The gradient of one power's result, and what is asked for in return.
struct ReadoutGradients {
  Tensor grad, result, values_grad, values_sum;
  bool wanted;

  ReadoutGradients(
      const ReadoutOf& x, const Tensor& grad_, const Tensor& result_, const Tensor& values, const Tensor& target,
      int64_t batch, bool wanted_)
      : wanted(wanted_) {
    for (const Tensor* like : {&grad_, &result_}) {
      const char* name = like == &grad_ ? "grad" : "result";
      check_shape(*like, name, {batch, values.size(-2), target.size(2), target.size(3)});
      check_type(*like, name, x.type);
    }
    grad = converted(grad_, x.wide);
    result = converted(result_, x.wide);
    values_grad = new_like(values, wanted);
    values_sum = sums_for(values_grad, x.wide);
  }
};

static std::pair<Tensor, Tensor> backward(
    const Tensor& source_, const Tensor& target_, const Readouts& readouts,
    const PerPower<std::optional<ReadoutGradients>>& gradients, const StatisticsTensors& statistics, double eps,
    bool source_wanted, bool target_wanted) {
  const Tensor source = torch::stable::contiguous(source_), target = torch::stable::contiguous(target_);
  const int64_t B = source.size(0), S = positions(source);
  const ScalarType wide = compute_type(source.scalar_type());
  check_statistics(statistics, B, S, positions(target), source.scalar_type());
  const Tensor source_grad = new_like(source, source_wanted), target_grad = new_like(target, target_wanted);
  const Tensor source_sum = sums_for(source_grad, wide), target_sum = sums_for(target_grad, wide);
  dispatch_floating(source.scalar_type(), "guided_readout_backward", [&](auto zero) {
    using In = decltype(zero);
    using C = compute_t<In>;
    const bool features = source_wanted || target_wanted;
    Sums<C> beta(features ? B * S : 0);
    ReadoutBackwardArguments<In> x{
        features_of<In>(source, target), statistics.of<C>(eps), values_of<C>(readouts), {}, {},
        zeroed<C>(source_sum, source_wanted), data_or_null<C>(target_sum), {}, features ? beta.data() : nullptr};
    for (int p = 0; p < 2; ++p) {
      if (const auto& one = gradients[p]) {
        x.grad[p] = const_data<C>(one->grad);
        x.result[p] = const_data<C>(one->result);
        x.values_grad[p] = zeroed<C>(one->values_sum, one->wanted);
      }
    }
    if (B > 0) {
      SIMD_DISPATCH(guided_readout_backward<In>)(x);
    }
    if (B > 0 && features) {
      SIMD_DISPATCH(guided_row_max_backward<In>)({x.z, x.statistics, x.beta, x.source_grad, x.target_grad});
    }
  });
  round_to(source_grad, source_sum);
  round_to(target_grad, target_sum);
  for (const auto& one : gradients) {
    if (one) {
      round_to(one->values_grad, one->values_sum);
    }
  }
  return {source_grad, target_grad};
}

static MapAndStatistics guided_readout(
    const Tensor& source, const Tensor& target, const Tensor& values, int64_t power, double eps, bool) {
  check_readout(source, target, values, power);
  Readouts readouts;
  ReadoutOf& one = readouts[power - 1].emplace(values, compute_type(source.scalar_type()));
  const StatisticsTensors statistics = forward(source, target, readouts, eps);
  return {one.result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

static std::tuple<Tensor, Tensor, Tensor> guided_readout_backward(
    const Tensor& grad, const Tensor& source, const Tensor& target, const Tensor& values, const Tensor& result,
    const Tensor& row_max, const Tensor& row_argmax, const Tensor& norm, int64_t power, double eps, bool,
    bool source_wanted, bool target_wanted, bool values_wanted) {
  check_readout(source, target, values, power);
  Readouts readouts;
  PerPower<std::optional<ReadoutGradients>> gradients;
  const ReadoutOf& one = readouts[power - 1].emplace(values, compute_type(source.scalar_type()));
  const ReadoutGradients& of =
      gradients[power - 1].emplace(one, grad, result, values, target, source.size(0), values_wanted);
  const auto [source_grad, target_grad] = backward(
      source, target, readouts, gradients, StatisticsTensors(row_max, row_argmax, norm), eps, source_wanted,
      target_wanted);
  return {source_grad, target_grad, of.values_grad};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> guided_readout_pair(
    const Tensor& source, const Tensor& target, const Tensor& values, const Tensor& squared, double eps, bool) {
  check_readout(source, target, values, 1);
  check_readout(source, target, squared, 2);
  const ScalarType wide = compute_type(source.scalar_type());
  Readouts readouts{ReadoutOf(values, wide), ReadoutOf(squared, wide)};
  const StatisticsTensors statistics = forward(source, target, readouts, eps);
  return {readouts[0]->result, readouts[1]->result, statistics.row_max, statistics.row_argmax, statistics.norm};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> guided_readout_pair_backward(
    const Tensor& grad, const Tensor& squared_grad, const Tensor& source, const Tensor& target, const Tensor& values,
    const Tensor& squared, const Tensor& result, const Tensor& squared_result, const Tensor& row_max,
    const Tensor& row_argmax, const Tensor& norm, double eps, bool, bool source_wanted, bool target_wanted,
    bool values_wanted, bool squared_wanted) {
  check_readout(source, target, values, 1);
  check_readout(source, target, squared, 2);
  const ScalarType wide = compute_type(source.scalar_type());
  const int64_t B = source.size(0);
  const Readouts readouts{ReadoutOf(values, wide), ReadoutOf(squared, wide)};
  const PerPower<std::optional<ReadoutGradients>> gradients{
      ReadoutGradients(*readouts[0], grad, result, values, target, B, values_wanted),
      ReadoutGradients(*readouts[1], squared_grad, squared_result, squared, target, B, squared_wanted)};
  const auto [source_grad, target_grad] = backward(
      source, target, readouts, gradients, StatisticsTensors(row_max, row_argmax, norm), eps, source_wanted,
      target_wanted);
  return {source_grad, target_grad, gradients[0]->values_grad, gradients[1]->values_grad};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CPU, m) {
  m.impl("guided_readout", TORCH_BOX(&pose_kernels::guided_readout));
  m.impl("guided_readout_backward", TORCH_BOX(&pose_kernels::guided_readout_backward));
  m.impl("guided_readout_pair", TORCH_BOX(&pose_kernels::guided_readout_pair));
  m.impl("guided_readout_pair_backward", TORCH_BOX(&pose_kernels::guided_readout_pair_backward));
}
