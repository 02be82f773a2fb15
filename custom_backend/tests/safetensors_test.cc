#include "safetensors.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <stdexcept>

#include "check.h"
#include "token_bytes.h"

namespace token_stream {
namespace {

using Broken = std::runtime_error;

std::string write(const std::string& bytes) {
  const std::string path = checking::scratch("test.safetensors");
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

std::string length_of(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

std::string with_header(const std::string& header, const std::string& data = "") {
  return write(length_of(header.size()) + header + data);
}

// A file with one tensor "t".
std::string with_tensor(const std::string& dtype, const std::string& shape, const std::string& offsets,
                        const std::string& data) {
  const std::string type = R"({"t": {"dtype": ")" + dtype + R"(", "shape": )" + shape;
  return with_header(type + R"(, "data_offsets": )" + offsets + "}}", data);
}

// A half as a sum of powers of two, with none of the bit tricks of the reader.
double half(unsigned bits) {
  const int exponent = static_cast<int>(bits / 1024 % 32);
  const double fraction = bits % 1024 / 1024.0, sign = bits < 32768 ? 1 : -1;
  if (exponent == 31) return fraction > 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15));
}

TEST(every_half) {
  std::string data;
  for (unsigned bits = 0; bits < 65536; ++bits) data += {static_cast<char>(bits & 255), static_cast<char>(bits >> 8)};
  const SafeTensors file(with_tensor("F16", "[256, 256]", "[0, 131072]", data));
  const std::vector<float> values = file.floats("t", {256, 256});
  size_t wrong = 0;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const double expected = half(bits), got = values[bits];
    const bool same = std::isnan(expected) ? std::isnan(got) : got == expected && std::signbit(got) == (bits >= 32768);
    if (!same && ++wrong < 5) CHECK_EQUAL(got, expected);
  }
  CHECK_EQUAL(values.size(), 65536U);
  CHECK_EQUAL(wrong, 0U);
}

TEST(tensors_of_each_type) {
  const std::string one = with_tensor("F32", "[2]", "[0, 8]", std::string("\0\0\x80?\0\0\0\xC0", 8));
  CHECK_EQUAL(SafeTensors(one).floats("t", {2}), (std::vector<float>{1, -2}));
  CHECK_THROWS(Broken, SafeTensors(one).floats("t", {1, 2}), "has another shape than the configuration says");
  CHECK_THROWS(Broken, SafeTensors(one).ids("t"), "is F32; expected I32");
  CHECK_THROWS(Broken, SafeTensors(one).bytes("t"), "is F32; expected U8");
  CHECK_THROWS(Broken, SafeTensors(one).ids("u"), "tensor \"u\" is missing");
  CHECK_THROWS(Broken, SafeTensors(one).metadata("x"), "metadata \"x\" is missing");
  const SafeTensors ids(with_tensor("I32", "[2]", "[0, 8]", std::string("\x01\0\0\0\xFF\xFF\xFF\xFF", 8)));
  CHECK_EQUAL(ids.ids("t"), (Ids{1, -1}));
  CHECK_THROWS(Broken, ids.floats("t", {2}), "is I32; expected F16 or F32");
  CHECK(SafeTensors(with_tensor("U8", "[0, 7]", "[0, 0]", "")).bytes("t").empty());
  CHECK_EQUAL(SafeTensors(with_tensor("U8", "[]", "[1, 2]", "ab")).bytes("t"), (std::vector<uint8_t>{'b'}));
  CHECK_EQUAL(SafeTensors(with_header(R"({"__metadata__": {"a": "b"}})")).metadata("a"), "b");
}

TEST(files_that_are_none) {
  CHECK_THROWS(Broken, SafeTensors(checking::scratch("none")), "none: it cannot be opened. Restore the file");
  for (const std::string& bytes : {std::string(), std::string("1234567"), length_of(100'000'001) + "{}"}) {
    CHECK_THROWS(Broken, SafeTensors(write(bytes)), "does not begin with the length of a header");
  }
  CHECK_THROWS(Broken, SafeTensors(write(length_of(~uint64_t{0}) + "{}")), "does not begin with the length");
  CHECK_THROWS(Broken, SafeTensors(write(length_of(3) + "{}")), "its header is cut off");
  CHECK_THROWS(Broken, SafeTensors(write(length_of(100'000'000) + "{}")), "its header is cut off");
  CHECK_THROWS(Broken, SafeTensors(with_header("")), "expected more text");
  CHECK_THROWS(Broken, SafeTensors(with_header("[]")), "expected an object");
  CHECK_THROWS(Broken, SafeTensors(with_header(R"({"t": 1})")), "expected an object");
  CHECK_THROWS(Broken, SafeTensors(with_header(R"({"t": {"dtype": "U8"}})")), "is missing");
  CHECK_THROWS(Broken, SafeTensors(with_header(R"({"__metadata__": {"a": 1}})")), "expected a string");
}

TEST(tensors_that_lie_outside) {
  const std::string four = "1234";
  for (const char* offsets : {"[0, 5]", "[5, 5]", "[3, 1]", "[4, 9007199254740992]", "[9007199254740992, 0]"}) {
    CHECK_THROWS(Broken, SafeTensors(with_tensor("U8", "[1]", offsets, four)), "lies outside of the file");
  }
  for (const char* offsets : {"[]", "[0]", "[0, 1, 2]"}) {
    CHECK_THROWS(Broken, SafeTensors(with_tensor("U8", "[1]", offsets, four)), "has no two offsets");
  }
  for (const char* offsets : {"[-1, 4]", "[0.5, 4]", "[0, \"4\"]", "[0, 1e300]"}) {
    CHECK_THROWS(Broken, SafeTensors(with_tensor("U8", "[1]", offsets, four)), "JSON: expected a");
  }
  CHECK_THROWS(Broken, SafeTensors(with_tensor("F64", "[1]", "[0, 4]", four)), "has dtype F64; expected F16");
}

// Some products of dims wrap around in 64 bits: 2^32 * 2^32 is 0 there.
TEST(shapes_that_do_not_fit) {
  const std::string four = "1234";
  for (const char* shape : {"[5]", "[3]", "[2, 3]", "[0]", "[]", "[4, 0]", "[0, 4]", "[4294967296, 4294967296]",
                            "[9007199254740992, 2048, 4]", "[9007199254740992, 2048]", "[4, 9007199254740992]"}) {
    CHECK_THROWS(Broken, SafeTensors(with_tensor("U8", shape, "[0, 4]", four)),
                 "has a shape that does not fit its bytes");
  }
  CHECK_THROWS(Broken, SafeTensors(with_tensor("I32", "[1]", "[0, 3]", four)), "does not fit its bytes");
  for (const char* shape : {"[4294967296, 4294967296]", "[1]", "[]"}) {
    CHECK_THROWS(Broken, SafeTensors(with_tensor("U8", shape, "[0, 0]", four)), "does not fit its bytes");
  }
  for (const char* shape : {"[0]", "[0, 9007199254740992]", "[9007199254740992, 0]", "[0, 0]"}) {
    CHECK(SafeTensors(with_tensor("U8", shape, "[2, 2]", four)).bytes("t").empty());
  }
}

TEST(a_file_cut_off_anywhere) {
  const std::string header = R"({"t": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})";
  const std::string whole = length_of(header.size()) + header + "1234";
  for (size_t length = 0; length < whole.size(); ++length) {
    CHECK_THROWS(Broken, SafeTensors(write(whole.substr(0, length))), "safetensors file");
  }
  CHECK_EQUAL(SafeTensors(write(whole)).bytes("t").size(), 4U);
}

}  // namespace
}  // namespace token_stream
