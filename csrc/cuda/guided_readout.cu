// guided_readout for CUDA tensors; see guided_readout.cuh.
#include "cuda/common.cuh"
#include "cuda/guided_readout.cuh"

namespace pose_kernels {

// Values may have a dtype of their own, as under autocast: then everything is converted to the dtype of computation.
// They are small beside what is computed with them.
static ScalarType common_type(const Tensor& source, const Tensor& values) {
  return source.scalar_type() == values.scalar_type() ? source.scalar_type() : compute_type(source.scalar_type());
}

static Tensor with_type(const Tensor& x, ScalarType type) {
  return x.scalar_type() == type ? x : torch::stable::to(x, type);
}

static Tensor readable(const Tensor& x, ScalarType type) {
  return torch::stable::contiguous(with_type(x, type));
}

// Contiguous inputs in one dtype.
struct ReadoutTensors {
  ScalarType type;
  Tensor source, target, values;
  int64_t power;

  ReadoutTensors(const Tensor& source_, const Tensor& target_, const Tensor& values_, int64_t power_)
      : type(common_type(source_, values_)),
        source(readable(source_, type)),
        target(readable(target_, type)),
        values(readable(values_, type)),
        power(power_) {}

  template <class In>
  Readout<In> of() const {
    return {features_of<In>(source, target), const_data<In>(values), values.size(-2), values.dim() == 3,
            static_cast<int>(power)};
  }
};

static MapAndStatistics guided_readout(
    const Tensor& source, const Tensor& target, const Tensor& values, int64_t power, double eps, bool tf32) {
  check_readout(source, target, values, power);
  check_positions(source, target);
  Call call(source);
  const ReadoutTensors x(source, target, values, power);
  const int64_t B = source.size(0), n = values.size(-2);
  const Tensor result = empty(x.values, {B, n, target.size(2), target.size(3)}, x.type);
  const StatisticsTensors statistics(source, B, positions(source), positions(target));
  if (B > 0) {
    dispatch_floating(x.type, "guided_readout", [&](auto zero) {
      using In = decltype(zero);
      run_guided_readout(
          x.of<In>(), statistics.of<compute_t<In>>(eps), tf32, mutable_data<In>(result), call.context());
    });
  }
  return {with_type(result, values.scalar_type()), statistics.row_max, statistics.row_argmax, statistics.norm};
}

static std::tuple<Tensor, Tensor, Tensor> guided_readout_backward(
    const Tensor& grad_, const Tensor& source, const Tensor& target, const Tensor& values, const Tensor& result_,
    const Tensor& row_max, const Tensor& row_argmax, const Tensor& norm, int64_t power, double eps, bool tf32,
    bool want_source, bool want_target, bool want_values) {
  check_readout(source, target, values, power);
  check_positions(source, target);
  const int64_t B = source.size(0), n = values.size(-2);
  for (const Tensor* like : {&grad_, &result_}) {
    const char* name = like == &grad_ ? "grad" : "result";
    check_shape(*like, name, {B, n, target.size(2), target.size(3)});
    check_type(*like, name, values.scalar_type());
  }
  Call call(source);
  const StatisticsTensors statistics(row_max, row_argmax, norm);
  check_statistics(statistics, B, positions(source), positions(target), source.scalar_type());
  const ReadoutTensors x(source, target, values, power);
  const Tensor grad = readable(grad_, x.type), result = readable(result_, x.type);
  const Tensor source_grad = new_like(x.source, want_source), target_grad = new_like(x.target, want_target);
  Tensor values_grad = new_like(x.values, want_values);
  if (B == 0) {
    torch::stable::zero_(values_grad);  // of all samples
  } else if (want_source || want_target || want_values) {
    dispatch_floating(x.type, "guided_readout_backward", [&](auto zero) {
      using In = decltype(zero);
      const ReadoutGrads<In> out{
          data_or_null<In>(source_grad), data_or_null<In>(target_grad), data_or_null<In>(values_grad)};
      run_guided_readout_backward(
          x.of<In>(), statistics.of<compute_t<In>>(eps), tf32, const_data<In>(grad), const_data<In>(result), out,
          call.context());
    });
  }
  return {with_type(source_grad, source.scalar_type()), with_type(target_grad, target.scalar_type()),
          with_type(values_grad, values.scalar_type())};
}

}  // namespace pose_kernels

STABLE_TORCH_LIBRARY_IMPL(pose_kernels, CUDA, m) {
  m.impl("guided_readout", TORCH_BOX(&pose_kernels::guided_readout));
  m.impl("guided_readout_backward", TORCH_BOX(&pose_kernels::guided_readout_backward));
}
