// A stand-in for the CUDA runtime: five functions that the device code finds by name, as it does in a server. The GPU's
// memory is memory of this process that is counted, and fenced: a copy that goes beyond an allocation fails.
#pragma once

#include <cstddef>

namespace cuda {

struct Counts {
  size_t allocations, frees, bytes_held, copies;
};

Counts counts();
// The next calls of a function fail, until it is set back: "cudaMalloc", "cudaMemcpy", "cudaFree", "cudaSetDevice", or
// "" for none.
void fail(const char* function);

}  // namespace cuda
