#include "safetensors.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "json.h"

namespace token_stream {
namespace {

constexpr size_t kLongestHeader = 100'000'000;  // the format's own bound

size_t item_size(const std::string& dtype) {
  static const std::map<std::string, size_t> kSizes = {{"F16", 2}, {"F32", 4}, {"I32", 4}, {"U8", 1}};
  const auto found = kSizes.find(dtype);
  return found == kSizes.end() ? 0 : found->second;
}

// IEEE 754 half to single precision. Halves below 2^-14 have no implicit leading one.
float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1F, fraction = half & 0x3FF;
  if (exponent == 0) {
    const float small = static_cast<float>(fraction) * 0x1p-24F;
    return sign ? -small : small;
  }
  const uint32_t bits = sign | (exponent == 0x1F ? 0x7F800000 : (exponent + 112) << 23) | (fraction << 13);
  float single;
  std::memcpy(&single, &bits, sizeof single);
  return single;
}

}  // namespace

SafeTensors::SafeTensors(const std::string& path) : path_(path) {
  std::ifstream file(path, std::ios::binary);
  uint64_t length = 0;
  if (!file) fail("it cannot be opened");
  if (!file.read(reinterpret_cast<char*>(&length), sizeof length) || length > kLongestHeader) {
    fail("it does not begin with the length of a header");
  }
  std::string header(length, '\0');
  if (!file.read(header.data(), static_cast<std::streamsize>(length))) fail("its header is cut off");
  data_.assign(std::istreambuf_iterator<char>(file), {});
  try {
    read_header(header);
  } catch (const std::invalid_argument& error) {
    fail(error.what());
  }
}

void SafeTensors::read_header(const std::string& text) {
  const Json header = Json::parse(text);
  for (const auto& [name, entry] : header.object()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.object()) metadata_[key] = value.string();
      continue;
    }
    Tensor tensor{entry.at("dtype").string(), {}, 0, 0};
    for (const Json& dim : entry.at("shape").array()) tensor.shape.push_back(dim.size());
    const auto& offsets = entry.at("data_offsets").array();
    if (offsets.size() != 2) fail("tensor \"" + name + "\" has no two offsets");
    tensor.begin = offsets[0].size();
    tensor.end = offsets[1].size();
    check(name, tensor);
    tensors_.emplace(name, std::move(tensor));
  }
}

// The product of hostile dims may wrap around, so they are divided out of the size instead.
void SafeTensors::check(const std::string& name, const Tensor& tensor) const {
  if (tensor.begin > tensor.end || tensor.end > data_.size()) fail("tensor \"" + name + "\" lies outside of the file");
  size_t left = tensor.end - tensor.begin;
  const size_t size = item_size(tensor.dtype);
  if (size == 0) fail("tensor \"" + name + "\" has dtype " + tensor.dtype + "; expected F16, F32, I32 or U8");
  const bool empty = std::count(tensor.shape.begin(), tensor.shape.end(), 0U) > 0;
  bool fits = left % size == 0;
  left /= size;
  for (const size_t dim : tensor.shape) {
    if (empty) break;
    fits = fits && left % dim == 0;
    left /= dim;
  }
  if (!fits || left != (empty ? 0 : 1)) fail("tensor \"" + name + "\" has a shape that does not fit its bytes");
}

const SafeTensors::Tensor& SafeTensors::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail("tensor \"" + name + "\" is missing");
  return found->second;
}

template <typename T>
std::vector<T> SafeTensors::values(const Tensor& tensor) const {
  std::vector<T> out((tensor.end - tensor.begin) / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), data_.data() + tensor.begin, tensor.end - tensor.begin);
  return out;
}

std::vector<float> SafeTensors::floats(const std::string& name, const std::vector<size_t>& shape) const {
  const Tensor& found = tensor(name);
  if (found.shape != shape) fail("tensor \"" + name + "\" has another shape than the configuration says");
  if (found.dtype == "F32") return values<float>(found);
  if (found.dtype != "F16") fail("tensor \"" + name + "\" is " + found.dtype + "; expected F16 or F32");
  std::vector<float> out;
  for (const uint16_t half : values<uint16_t>(found)) out.push_back(from_half(half));
  return out;
}

std::vector<int32_t> SafeTensors::ids(const std::string& name) const {
  const Tensor& found = tensor(name);
  if (found.dtype != "I32") fail("tensor \"" + name + "\" is " + found.dtype + "; expected I32");
  return values<int32_t>(found);
}

std::vector<uint8_t> SafeTensors::bytes(const std::string& name) const {
  const Tensor& found = tensor(name);
  if (found.dtype != "U8") fail("tensor \"" + name + "\" is " + found.dtype + "; expected U8");
  return values<uint8_t>(found);
}

const std::string& SafeTensors::metadata(const std::string& name) const {
  const auto found = metadata_.find(name);
  if (found == metadata_.end()) fail("metadata \"" + name + "\" is missing");
  return found->second;
}

void SafeTensors::fail(const std::string& what) const {
  throw std::runtime_error("safetensors file " + path_ + ": " + what + ". Restore the file from the repository");
}

}  // namespace token_stream
