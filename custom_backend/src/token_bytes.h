// The bytes of every token of the vocabulary, and whether ids are whole characters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace token_stream {

using Ids = std::vector<int32_t>;

// Reads UTF-8 byte by byte, and knows at the first byte that cannot be part of it.
class Utf8Reader {
 public:
  // False from the first byte on that is invalid where it stands.
  bool read(uint8_t byte);
  // Whether the bytes so far end with a whole character.
  bool complete() const { return missing_ == 0; }

 private:
  int missing_ = 0;                       // continuation bytes of the character that is being read
  uint8_t least_ = 0x80, most_ = 0xBF;    // what the next one of them may be
};

class TokenBytes {
 public:
  // Throws std::runtime_error where the file is not a table of tokens.
  explicit TokenBytes(const std::string& path);

  size_t size() const { return ends_.size() - 1; }

  // The bytes of an id; the id must be in the vocabulary.
  std::string_view operator[](int32_t id) const;

  // Throws std::invalid_argument for the first id that is not in the vocabulary.
  void check(const Ids& ids) const;

  // Whether the ids are whole characters. It stops at the first invalid byte, so the time does not grow with ids that
  // are broken from the start.
  bool decodes_cleanly(const Ids& ids) const;

 private:
  std::string data_;
  std::vector<size_t> ends_;  // token i is data_[ends_[i] .. ends_[i + 1]]
};

// A count with a comma at every third digit, as the messages for people have it.
std::string with_commas(uint64_t count);

}  // namespace token_stream
