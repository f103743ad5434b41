// The launchers of csrc/cuda for NumPy arrays, executed on the CPU. Results are arrays that the caller made.
// float16 arrays are half precision, uint16 arrays hold the bits of bfloat16. An operator binds its launchers in
// bindings/<op>.cpp, which build.py finds.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "scratch.h"

namespace py = pybind11;
using namespace pose_kernels;

// What fills the module.
using Bind = Listed<void (*)(py::module_&)>;

inline ScalarType type_of(const py::array& x) {
  if (x.dtype().kind() != 'f') {
    return ScalarType::BFloat16;
  }
  const auto bytes = x.dtype().itemsize();
  return bytes == 8 ? ScalarType::Double : bytes == 4 ? ScalarType::Float : ScalarType::Half;
}

// Calls f(zero, context) with a zero of the array's type.
template <class F>
void dispatch(const py::array& x, F&& f) {
  Scratch scratch;
  dispatch_floating(type_of(x), "emulation", [&](auto zero) { f(zero, scratch.context()); });
}

// The same for what a map is made of and the map, which may be narrower.
template <class F>
void dispatch(const py::array& from, const py::array& map, F&& f) {
  Scratch scratch;
  dispatch_map(
      type_of(from), type_of(map), "emulation", [&](auto zero, auto narrow) { f(zero, narrow, scratch.context()); });
}

template <class T>
const T* in(const py::array& x) {
  return static_cast<const T*>(x.data());
}
template <class T>
T* out(py::array& x) {
  return x.size() == 0 ? nullptr : static_cast<T*>(x.mutable_data());
}

// [B, m, S], [B, m, T]
template <class In>
Features<In> features(const py::array& source, const py::array& target) {
  return {source.shape(0), source.shape(1), source.shape(2), target.shape(2), in<In>(source), in<In>(target), 0,
          target.shape(2)};
}

template <class T>
Statistics<T> statistics(double eps, py::array& row_max, py::array& row_argmax, py::array& norm) {
  return {static_cast<T>(eps), out<T>(row_max), out<int64_t>(row_argmax), out<T>(norm)};
}
