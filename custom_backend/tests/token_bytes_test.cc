#include "token_bytes.h"

#include <fstream>
#include <limits>
#include <stdexcept>

#include "check.h"

namespace token_stream {
namespace {

// What the reader says of some bytes: whether all of them can stand where they stand, and whether they are whole.
enum class Verdict { kInvalid, kBegun, kWhole };

Verdict verdict(const std::string& bytes) {
  Utf8Reader reader;
  for (const char byte : bytes) {
    if (!reader.read(static_cast<uint8_t>(byte))) return Verdict::kInvalid;
  }
  return reader.complete() ? Verdict::kWhole : Verdict::kBegun;
}

// A second decoder, made another way: it writes down each character's bytes and compares. A prefix is good where some
// character begins with it.
std::string encoded(uint32_t code) {
  std::string out;
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(192 + code / 64), put(128 + code % 64);
  } else if (code < 0x10000) {
    put(224 + code / 4096), put(128 + code / 64 % 64), put(128 + code % 64);
  } else {
    put(240 + code / 262144), put(128 + code / 4096 % 64), put(128 + code / 64 % 64), put(128 + code % 64);
  }
  return out;
}

// Of all characters there are, every beginning: 1 where it is begun, 2 where it is whole; found by its bytes' number.
class Beginnings {
 public:
  Beginnings() {
    for (auto& table : known_) table.clear();
    for (size_t length = 1; length <= 3; ++length) known_[length].assign(size_t{1} << (8 * length), 0);
    for (uint32_t code = 0; code <= 0x10FFFF; ++code) {
      if (code >= 0xD800 && code <= 0xDFFF) continue;
      const std::string bytes = encoded(code);
      for (size_t length = 1; length <= bytes.size() && length <= 3; ++length) {
        known_[length][number(bytes, length)] = length == bytes.size() ? 2 : 1;
      }
    }
  }

  char of(const std::string& bytes) const { return known_[bytes.size()][number(bytes, bytes.size())]; }

 private:
  static size_t number(const std::string& bytes, size_t length) {
    size_t value = 0;
    for (size_t i = 0; i < length; ++i) value = value * 256 + static_cast<uint8_t>(bytes[i]);
    return value;
  }

  std::vector<char> known_[4];
};

const Beginnings& beginnings() {
  static const Beginnings kBeginnings;
  return kBeginnings;
}

Verdict by_table(const std::string& bytes) {
  std::string begun;
  for (const char byte : bytes) {
    begun += byte;
    // A fourth byte is always a plain continuation byte: the three before it decide.
    const char known = begun.size() < 4 ? beginnings().of(begun)
                       : static_cast<uint8_t>(byte) / 64 == 2 ? 2 : 0;
    if (known == 0) return Verdict::kInvalid;
    if (known == 2) begun.clear();
  }
  return begun.empty() ? Verdict::kWhole : Verdict::kBegun;
}

void compare(const std::string& bytes, size_t& wrong) {
  if (verdict(bytes) == by_table(bytes)) return;
  if (++wrong > 5) return;
  std::vector<int> shown;
  for (const char byte : bytes) shown.push_back(static_cast<uint8_t>(byte));
  CHECK_EQUAL(checking::show(shown) + " " + checking::show(static_cast<int>(verdict(bytes))),
              checking::show(shown) + " " + checking::show(static_cast<int>(by_table(bytes))));
}

TEST(utf8_of_one_and_two_bytes) {
  size_t wrong = 0;
  for (int first = 0; first < 256; ++first) {
    compare({static_cast<char>(first)}, wrong);
    for (int second = 0; second < 256; ++second) compare({static_cast<char>(first), static_cast<char>(second)}, wrong);
  }
  CHECK_EQUAL(wrong, 0U);
}

// Third and fourth bytes at every bound, and in between.
TEST(utf8_of_three_and_four_bytes) {
  const std::vector<int> tails{0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xF4, 0xFF};
  size_t wrong = 0;
  for (int first = 0xC0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      for (const int third : tails) {
        const std::string three{static_cast<char>(first), static_cast<char>(second), static_cast<char>(third)};
        compare(three, wrong);
        for (const int fourth : tails) compare(three + static_cast<char>(fourth), wrong);
      }
    }
  }
  CHECK_EQUAL(wrong, 0U);
}

TEST(utf8_of_every_character) {
  size_t wrong = 0;
  for (uint32_t code = 0; code <= 0x10FFFF; code += code < 0x3000 ? 1 : 61) {
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    wrong += verdict(encoded(code)) != (surrogate ? Verdict::kInvalid : Verdict::kWhole);
  }
  CHECK_EQUAL(wrong, 0U);
}

TEST(utf8_that_is_known) {
  for (const char* text : {"", "a", "\xC3\xA9", "\xE8\xBF\x99", "\xF0\x9F\x98\x80", "\xEF\xBB\xBFx",
                           "\xF4\x8F\xBF\xBF"}) {
    CHECK(verdict(text) == Verdict::kWhole);
  }
  for (const char* text : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xED\xA0\x80",
                           "\xED\xBF\xBF", "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
                           "\xF5", "\xFF", "a\xBF"}) {
    CHECK(verdict(text) == Verdict::kInvalid);
  }
  for (const char* text : {"\xC3", "\xE8", "\xE8\xBF", "\xF0", "\xF0\x9F", "\xF0\x9F\x98", "a\xE8"}) {
    CHECK(verdict(text) == Verdict::kBegun);
  }
}

TEST(the_table_of_tokens) {
  const TokenBytes tokens(checking::file("models/token_stream_latest/token_bytes.safetensors"));
  CHECK_EQUAL(tokens.size(), 151'643U);
  CHECK_EQUAL(tokens[64], "a");
  const Ids reported{8908, 234, 114, 103081, 99662, 99808, 99219, 9909};
  std::string bytes;
  for (size_t at = 0; at < reported.size(); ++at) {
    bytes += tokens[reported[at]];
    const Ids so_far(reported.begin(), reported.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    CHECK_EQUAL(tokens.decodes_cleanly(so_far), verdict(bytes) == Verdict::kWhole);
  }
  CHECK(tokens.decodes_cleanly({}));
  CHECK_THROWS(std::invalid_argument, tokens.check({1, -1}),
               "token id -1 at position 1 is not in the vocabulary (0 to ");
  CHECK_THROWS(std::invalid_argument, tokens.check({static_cast<int32_t>(tokens.size())}), "at position 0 is not");
  tokens.check({0, static_cast<int32_t>(tokens.size()) - 1});
}

TEST(a_table_that_does_not_add_up) {
  const std::string header = R"({"data": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, )"
                             R"("lengths": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]}})";
  const std::string path = checking::scratch("table.safetensors");
  for (const char second : {'\1', '\3'}) {
    std::string length(8, '\0');
    length[0] = static_cast<char>(header.size());
    std::ofstream(path, std::ios::binary) << length << header << "abc" << '\1' << second;
    CHECK_THROWS(std::runtime_error, TokenBytes(path), "the lengths do not add up to the data");
  }
}

TEST(commas) {
  CHECK_EQUAL(with_commas(0), "0");
  CHECK_EQUAL(with_commas(999), "999");
  CHECK_EQUAL(with_commas(1000), "1,000");
  CHECK_EQUAL(with_commas(134'217'728), "134,217,728");
  CHECK_EQUAL(with_commas(std::numeric_limits<uint64_t>::max()), "18,446,744,073,709,551,615");
}

}  // namespace
}  // namespace token_stream
