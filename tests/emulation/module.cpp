// The Python module of all operators' bindings.
#include "bindings.h"

PYBIND11_MODULE(pose_kernels_emulated, m) {
  m.def("set_reversed", [](bool reversed) { emulation::state().reversed = reversed; });
  m.def("set_few_blocks", [](bool few) { emulation::state().few_blocks = few; });
  for (const auto binder : Bind::all()) {
    binder(m);
  }
}
