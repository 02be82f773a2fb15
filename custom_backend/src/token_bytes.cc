#include "token_bytes.h"

#include <stdexcept>

#include "safetensors.h"

namespace token_stream {

// The bounds of the second byte keep out overlong forms, surrogates and what lies past U+10FFFF (RFC 3629).
bool Utf8Reader::read(uint8_t byte) {
  if (missing_ > 0) {
    if (byte < least_ || byte > most_) return false;
    --missing_;
    least_ = 0x80;
    most_ = 0xBF;
    return true;
  }
  if (byte < 0x80) return true;
  if (byte < 0xC2 || byte > 0xF4) return false;
  missing_ = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
  least_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
  most_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
  return true;
}

TokenBytes::TokenBytes(const std::string& path) : ends_{0} {
  const SafeTensors file(path);
  const auto data = file.bytes("data");
  data_.assign(data.begin(), data.end());
  for (const uint8_t length : file.bytes("lengths")) ends_.push_back(ends_.back() + length);
  if (ends_.back() != data_.size()) {
    throw std::runtime_error("token table " + path + ": the lengths do not add up to the data. Restore the file");
  }
}

std::string_view TokenBytes::operator[](int32_t id) const {
  const auto i = static_cast<size_t>(id);
  return std::string_view(data_).substr(ends_[i], ends_[i + 1] - ends_[i]);
}

void TokenBytes::check(const Ids& ids) const {
  for (size_t at = 0; at < ids.size(); ++at) {
    if (ids[at] < 0 || static_cast<size_t>(ids[at]) >= size()) {
      throw std::invalid_argument("token id " + std::to_string(ids[at]) + " at position " + std::to_string(at) +
                                  " is not in the vocabulary (0 to " + with_commas(size() - 1) + ")");
    }
  }
}

bool TokenBytes::decodes_cleanly(const Ids& ids) const {
  Utf8Reader reader;
  for (const int32_t id : ids) {
    for (const char byte : (*this)[id]) {
      if (!reader.read(static_cast<uint8_t>(byte))) return false;
    }
  }
  return reader.complete();
}

std::string with_commas(uint64_t count) {
  std::string digits = std::to_string(count);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(static_cast<size_t>(at), ",");
  return digits;
}

}  // namespace token_stream
