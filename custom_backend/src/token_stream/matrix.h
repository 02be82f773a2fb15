// y = x * w, for matrices that are small enough to stay in a core's cache.
#pragma once

#include <cstddef>

namespace token_stream {

constexpr size_t kTile = 64;  // columns of w that are summed up at once, in the vector registers

// x (rows, in), w (in, out), y (rows, out), row by row; out is a multiple of kTile. The sum over `in` goes from first to
// last for each number of y, whatever `rows` is: so a sequence gets the same bits alone and among others.
void multiply(const float* x, size_t rows, size_t in, const float* w, size_t out, float* y);

}  // namespace token_stream
