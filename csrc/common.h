// Shared by every operator: tensors and what the loops get of them. Only the LibTorch stable ABI, never ATen.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "types.h"

namespace pose_kernels {

using torch::stable::Tensor;

template <class T>
const T* const_data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type);
}

// An uninitialised tensor as x, but contiguous; one without elements where it is not wanted.
inline Tensor new_like(const Tensor& x, bool wanted = true) {
  return wanted ? torch::stable::new_empty(x, x.sizes(), x.scalar_type()) : empty(x, {0}, x.scalar_type());
}

template <class T>
T* data_or_null(const Tensor& x) {
  return x.numel() > 0 ? mutable_data<T>(x) : nullptr;
}

// An uninitialised 4D tensor [B, S, ht, wt] as a correlation map is returned.
inline Tensor empty_map(const Tensor& target, int64_t sources, bool channels_last, ScalarType type) {
  const int64_t B = target.size(0), ht = target.size(2), wt = target.size(3);
  if (!channels_last) {
    return empty(target, {B, sources, ht, wt}, type);
  }
  return torch::stable::permute(empty(target, {B, ht, wt, sources}, type), {0, 3, 1, 2});
}

inline bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) {
      return false;
    }
    expected *= x.size(d);
  }
  return true;
}

// A map [B, S, ht, wt] as matrices [S, T]: strides of batch, source and target.
struct MapStrides {
  int64_t batch, source, target;
};

// A map to be written: new memory, or a caller's, which has its pages already.
struct MapResult {
  Tensor map;
  bool channels_last, fresh;
};

// A caller's, in one of the two layouts.
inline MapResult given_map(const Tensor& out) {
  return {out, !out.is_contiguous() && is_channels_last(out), false};
}

// Of a map S x T.
inline MapStrides strides_of(const MapResult& result, int64_t sources, int64_t targets) {
  return result.channels_last ? MapStrides{sources * targets, 1, sources} : MapStrides{sources * targets, targets, 1};
}

// Calls write(result), whose loops make maps of float64 in float64: a narrower one is rounded from such a one.
template <class F>
void fill_map(const MapResult& result, ScalarType from, F&& write) {
  if (result.map.size(0) == 0) {
    return;
  }
  if (from != ScalarType::Double || result.map.scalar_type() == ScalarType::Double) {
    return write(result);
  }
  const Tensor wide = empty_map(result.map, result.map.size(1), result.channels_last, ScalarType::Double);
  write(MapResult{wide, result.channels_last, true});
  Tensor to = result.map;
  torch::stable::copy_(to, wide);
}

// Loops on float64 read gradients in float64.
inline Tensor readable_gradient(const Tensor& grad, ScalarType of) {
  const bool narrow = of == ScalarType::Double && grad.scalar_type() != ScalarType::Double;
  return narrow ? torch::stable::to(grad, ScalarType::Double) : grad;
}

// False where the target positions do not lie at even distances.
inline bool map_strides(const Tensor& map, MapStrides& strides) {
  const int64_t ht = map.size(2), wt = map.size(3);
  strides = {map.stride(0), map.stride(1), wt > 1 ? map.stride(3) : map.stride(2)};
  return ht == 1 || wt == 1 || map.stride(2) == wt * map.stride(3);
}

// The map itself where its strides will do, which includes channels-last and expanded gradients, else a copy.
inline Tensor with_map_strides(const Tensor& map, MapStrides& strides) {
  if (map_strides(map, strides)) {
    return map;
  }
  const Tensor copy = torch::stable::contiguous(map);
  map_strides(copy, strides);
  return copy;
}

// Positions of features [B, m, h, w] or [B, m, positions].
inline int64_t positions(const Tensor& x) {
  return x.dim() == 4 ? x.size(2) * x.size(3) : x.size(2);
}

// Contiguous features.
template <class In>
Features<In> features_of(const Tensor& source, const Tensor& target) {
  return {source.size(0), source.size(1), positions(source), positions(target), const_data<In>(source),
          const_data<In>(target), 0, positions(target)};
}

template <class In>
Features<In> band_of(const Tensor& source, const Tensor& target, int64_t begin, int64_t count) {
  Features<In> z = features_of<In>(source, target);
  z.begin = begin;
  z.count = count;
  return z;
}

// The statistics of a map as tensors, from one operator to its backward.
struct StatisticsTensors {
  Tensor row_max, row_argmax, norm;

  // New ones, beside `like`.
  StatisticsTensors(const Tensor& like, int64_t batch, int64_t sources, int64_t targets)
      : row_max(empty(like, {batch, sources}, compute_type(like.scalar_type()))),
        row_argmax(empty(like, {batch, sources}, ScalarType::Long)),
        norm(empty(like, {batch, targets}, compute_type(like.scalar_type()))) {}
  // Given ones, made contiguous.
  StatisticsTensors(const Tensor& row_max_, const Tensor& row_argmax_, const Tensor& norm_)
      : row_max(torch::stable::contiguous(row_max_)),
        row_argmax(torch::stable::contiguous(row_argmax_)),
        norm(torch::stable::contiguous(norm_)) {}

  template <class T>
  Statistics<T> of(double eps) const {
    return {static_cast<T>(eps), mutable_data<T>(row_max), mutable_data<int64_t>(row_argmax), mutable_data<T>(norm)};
  }
};

// What a call on bands has of them.
template <class T>
Statistics<T> statistics_of(double eps, const Tensor& row_max, const Tensor* row_argmax, const Tensor* norm) {
  return {static_cast<T>(eps), mutable_data<T>(row_max),
          row_argmax == nullptr ? nullptr : mutable_data<int64_t>(*row_argmax),
          norm == nullptr ? nullptr : mutable_data<T>(*norm)};
}

// As an operator returns them.
using MapAndStatistics = std::tuple<Tensor, Tensor, Tensor, Tensor>;

}  // namespace pose_kernels
