// Triton's C API: the official header where the compiler finds it, otherwise the part that this backend needs.
#pragma once

#if __has_include("triton/core/tritonbackend.h")
#include "triton/core/tritonbackend.h"
#else
#include "triton_minimal.h"
#endif
