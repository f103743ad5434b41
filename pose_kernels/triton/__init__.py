"""The operators in Triton: a file per operator, with a Python function per schema that it defines.

Kernels are deterministic by construction: a program owns a block of rows or columns and walks over
all of the others in order, so there is nothing to add up afterwards (the one exception, the image
gradient of `flow_sample`, has a deterministic form too). No inline assembly, no autotuning.

Naming law: i_ an index of a program, o_ offsets, p_ pointers, m_ masks, b_ blocks in registers,
BLOCK_* sizes of blocks; a name without a prefix is a scalar. Pointers advance in 64 bits.
"""
