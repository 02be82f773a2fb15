// Bytes to text, piece by piece, with one decoder for each open stream.
#pragma once

#include <chrono>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "token_bytes.h"

namespace token_stream {

// Decodes UTF-8 that comes in pieces. A character that is not complete yet is held back until the next piece; what can
// never become one is U+FFFD, as Python's incremental decoder has it ("replace").
class TextDecoder {
 public:
  // The text of the characters that this piece completes; with `last`, of what is held back too.
  std::string decode(std::string_view piece, bool last);

 private:
  void read(char byte, std::string& text);

  Utf8Reader reader_;
  std::string held_;  // the beginning of a character
};

// One decoder for each open stream, made on its first use, in a bounded table. A stream leaves with its end mark. After a
// cancellation no message comes any more: what has been idle for a time is dropped by the next use or by `sweep`.
// Any thread may call it.
class DecoderTable {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kMostStreams = 1024;

  explicit DecoderTable(Clock::duration idle) : idle_(idle) {}

  std::string decode(int64_t stream, std::string_view piece, bool last, Clock::time_point now = Clock::now());
  void drop(int64_t stream);
  // Drop what is idle, and say how many streams are left.
  size_t sweep(Clock::time_point now = Clock::now());

 private:
  struct Entry {
    int64_t stream;
    TextDecoder decoder;
    Clock::time_point used;
  };

  void drop_old(Clock::time_point now);

  Clock::duration idle_;
  std::mutex mutex_;
  std::list<Entry> entries_;  // oldest use first
  std::unordered_map<int64_t, std::list<Entry>::iterator> by_stream_;
};

}  // namespace token_stream
