#include "token_stream/matrix.h"

namespace token_stream {
namespace {

// Vectors that g++ and clang++ fit to the processor, in the registers and at any place in the memory.
using Lanes = float __attribute__((vector_size(kNarrow * sizeof(float))));
using Stored = float __attribute__((vector_size(kNarrow * sizeof(float)), aligned(alignof(float)), may_alias));

// Some rows of x with some columns of w: what was read of w serves all the rows.
template <size_t rows, size_t vectors>
void tile(const float* x, size_t in, const float* w, size_t width, size_t out, float* y) {
  Lanes sum[rows][vectors] = {};
  for (size_t i = 0; i < in; ++i) {
    const auto* weights = reinterpret_cast<const Stored*>(w + i * width);
    for (size_t vector = 0; vector < vectors; ++vector) {
      const Lanes weight = weights[vector];
      for (size_t row = 0; row < rows; ++row) sum[row][vector] += x[row * in + i] * weight;
    }
  }
  for (size_t row = 0; row < rows; ++row) {
    for (size_t vector = 0; vector < vectors; ++vector) reinterpret_cast<Stored*>(y + row * out)[vector] = sum[row][vector];
  }
}

// These columns of w stay in the cache for all rows.
template <size_t vectors>
void tiles(const float* x, size_t rows, size_t in, const float* w, size_t width, size_t out, float* y) {
  size_t row = 0;
  for (; row + 4 <= rows; row += 4) tile<4, vectors>(x + row * in, in, w, width, out, y + row * out);
  for (; row < rows; ++row) tile<1, vectors>(x + row * in, in, w, width, out, y + row * out);
}

}  // namespace

void multiply(const float* x, size_t rows, size_t in, const float* w, size_t width, size_t out, float* y) {
  size_t column = 0;
  for (; column + kTile <= out; column += kTile) tiles<kTile / kNarrow>(x, rows, in, w + column, width, out, y + column);
  for (; column < out; column += kNarrow) tiles<1>(x, rows, in, w + column, width, out, y + column);
}

}  // namespace token_stream
