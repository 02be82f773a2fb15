// A test in a few lines: TEST(name) { CHECK(...); CHECK_EQUAL(got, expected); CHECK_THROWS(Type, work, "words"); }
// A check that fails prints where it stands and what it got; the test goes on. main.cc runs all tests of the program.
#pragma once

#include <exception>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace checking {

// Counts a check; prints one that failed. From any thread.
void count(bool well, const char* file, int line, const std::string& what);

struct Registered {
  Registered(const char* name, void (*test)());
};

template <typename T>
std::string show(const T& value) {
  std::ostringstream out;
  out.precision(9);
  out << std::boolalpha << value;
  return out.str();
}

template <typename T>
std::string show(const std::optional<T>& value) {
  return value ? show(*value) : "none";
}

template <typename T>
std::string show(const std::vector<T>& values) {
  std::string out = "[";
  for (const auto& value : values) out += (out.size() > 1 ? " " : "") + show(value);
  return out + "]";
}

template <typename Got, typename Expected>
void equal(const Got& got, const Expected& expected, const char* text, const char* file, int line) {
  const bool well = got == expected;
  count(well, file, line, well ? "" : std::string(text) + " is " + show(got) + "; expected " + show(expected));
}

template <typename Error, typename Work>
void throws(const Work& work, const std::string& words, const char* text, const char* file, int line) {
  std::string got = "nothing was thrown";
  try {
    work();
  } catch (const Error& error) {
    got = error.what();
    if (got.find(words) != got.npos) return count(true, file, line, "");
  } catch (const std::exception& error) {
    got = std::string("another type was thrown: ") + error.what();
  }
  count(false, file, line, std::string(text) + ": " + got + "; expected: " + words);
}

// Files of the tests: the folder custom_backend, and one for files that a test writes.
std::string file(const std::string& name);
std::string scratch(const std::string& name);

}  // namespace checking

#define TEST(name)                                             \
  static void name();                                          \
  static const checking::Registered registered_##name(#name, name); \
  static void name()
#define CHECK(condition) checking::count(condition, __FILE__, __LINE__, #condition)
#define CHECK_EQUAL(got, expected) checking::equal(got, expected, #got, __FILE__, __LINE__)
#define CHECK_THROWS(Error, expression, words) \
  checking::throws<Error>([&] { (void)(expression); }, words, #expression, __FILE__, __LINE__)
