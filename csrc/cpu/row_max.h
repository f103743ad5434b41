// The maxima b_s = max_t C(s, t), for every operator that divides by them: what their loops get.
#pragma once

#include "cpu/bf16_vectors.h"
#include "cpu/memory.h"

namespace pose_kernels {

template <class In>
struct RowMaxArguments {
  Features<In> z;
  Statistics<compute_t<In>> statistics;
  FreshPages* pages;  // of the result, to be brought in on the way; or null
};

template <class In>
struct RowMaxBackwardArguments {
  Features<In> z;
  Statistics<compute_t<In>> statistics;
  const compute_t<In>* beta;  // [B, S]
  compute_t<In>* source_grad;  // [B, m, S], added to; or null
  compute_t<In>* target_grad;  // [B, m, T], added to; or null
};

}  // namespace pose_kernels
