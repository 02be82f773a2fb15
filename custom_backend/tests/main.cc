// Runs the tests:  check FOLDER SCRATCH [PART OF A NAME]
// FOLDER is custom_backend; SCRATCH is a folder for files that tests write. The exit status is 1 where a check failed.

#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

#include "check.h"

namespace checking {
namespace {

struct Test {
  const char* name;
  void (*run)();
};

std::vector<Test>& tests() {
  static std::vector<Test> tests;
  return tests;
}

constexpr size_t kMostShown = 50;  // failures

std::mutex mutex;
size_t checks = 0, failures = 0;
std::string folder, scratch_folder;

}  // namespace

Registered::Registered(const char* name, void (*test)()) { tests().push_back({name, test}); }

void count(bool well, const char* file, int line, const std::string& what) {
  const std::lock_guard<std::mutex> lock(mutex);
  ++checks;
  if (well) return;
  if (++failures > kMostShown) return;
  std::printf("%s:%d: %s\n", file, line, what.substr(0, 2000).c_str());
  std::fflush(stdout);
}

std::string file(const std::string& name) { return folder + "/" + name; }
std::string scratch(const std::string& name) { return scratch_folder + "/" + name; }

int run(int words, char** word) {
  if (words < 3) return std::printf("usage: %s FOLDER SCRATCH [PART OF A NAME]\n", word[0]), 2;
  folder = word[1];
  scratch_folder = word[2];
  const std::string wanted = words > 3 ? word[3] : "";
  size_t ran = 0;
  for (const Test& test : tests()) {
    if (std::string(test.name).find(wanted) == std::string::npos) continue;
    ++ran;
    const size_t before = failures;
    try {
      test.run();
    } catch (const std::exception& error) {
      count(false, test.name, 0, std::string("the test was ended by: ") + error.what());
    }
    if (failures > before) std::printf("FAILED %s\n", test.name);
  }
  std::printf("%zu tests, %zu checks, %zu failed\n", ran, checks, failures);
  return ran > 0 && failures == 0 ? 0 : 1;
}

}  // namespace checking

int main(int words, char** word) { return checking::run(words, word); }
