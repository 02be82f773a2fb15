#include "token_stream/matrix.h"

namespace token_stream {
namespace {

// One row of x with kTile columns of w. The inner loop has a fixed length, so the compiler makes vectors of it.
void tile(const float* x, size_t in, const float* w, size_t out, float* y) {
  float sum[kTile] = {};
  for (size_t i = 0; i < in; ++i) {
    for (size_t column = 0; column < kTile; ++column) sum[column] += x[i] * w[i * out + column];
  }
  for (size_t column = 0; column < kTile; ++column) y[column] = sum[column];
}

}  // namespace

void multiply(const float* x, size_t rows, size_t in, const float* w, size_t out, float* y) {
  for (size_t column = 0; column < out; column += kTile) {  // these columns of w stay in the cache for all rows
    for (size_t row = 0; row < rows; ++row) tile(x + row * in, in, w + column, out, y + row * out + column);
  }
}

}  // namespace token_stream
