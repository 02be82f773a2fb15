// y = x * w, for matrices that are small enough to stay in a core's cache.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace token_stream {

// Memory that begins with a line of the cache: a vector that lies across two lines would take twice the time to read.
template <typename Value>
struct OnLines {
  static constexpr std::align_val_t kLine{64};
  using value_type = Value;

  OnLines() = default;
  template <typename Other>
  OnLines(const OnLines<Other>&) {}

  Value* allocate(size_t count) { return static_cast<Value*>(::operator new(count * sizeof(Value), kLine)); }
  void deallocate(Value* values, size_t) { ::operator delete(values, kLine); }
  bool operator==(const OnLines&) const { return true; }
  bool operator!=(const OnLines&) const { return false; }
};

using Matrix = std::vector<float, OnLines<float>>;

constexpr size_t kTile = 64;    // columns of w that are summed up at once, in the vector registers
constexpr size_t kNarrow = 16;  // and of those that are left over

// x (rows, in), w (in, out), y (rows, out), row by row; out is a multiple of kNarrow. `width` numbers lie between the
// beginnings of two rows of w. The sum over `in` goes from first to last for each number of y, whatever `rows` is: so a
// sequence gets the same bits alone and among others.
void multiply(const float* x, size_t rows, size_t in, const float* w, size_t width, size_t out, float* y);

}  // namespace token_stream
