// The Python module of all operators' bindings.
#include "bindings.h"

PYBIND11_MODULE(pose_kernels_emulated, m) {
  m.def("set_reversed", [](bool reversed) { emulation::state().reversed = reversed; });
  m.def("set_few_blocks", [](bool few) { emulation::state().few_blocks = few; });
  m.def("set_truncating", [](bool truncating) { emulation::state().truncating = truncating; });
  m.def("products", [] { return emulation::state().products; });
  m.def("operations", [] { return emulation::state().operations; });
  for (const auto binder : Bind::all()) {
    binder(m);
  }
}
